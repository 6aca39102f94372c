"""What every method asks of the numbers it is told."""

import math
from collections.abc import Sequence
from dataclasses import fields

from feedback.errors import Refused


def require_sensible(settings: object, may_be_zero: Sequence[str], may_be_negative: Sequence[str] = ()) -> None:
    """Raises `Refused` on a number that is not finite, or not above 0 where it must be; words are passed over."""
    for each in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, each.name)
        if isinstance(value, str):
            continue
        if not math.isfinite(value):
            raise Refused(f"{each.name} must be a finite number, not {value}")
        if each.name in may_be_negative:
            continue
        if value < 0 or (value == 0 and each.name not in may_be_zero):
            raise Refused(f"{each.name} must be {'at least' if each.name in may_be_zero else 'above'} 0, not {value}")
