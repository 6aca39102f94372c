"""Masking of personal data in exports: e-mail addresses, telephone numbers and the like.

The package scrubadub, an optional extra, finds them by patterns alone. It misses what no pattern matches, such as
names: a masked file is safer, but not anonymous. Only exports are masked; the ledger keeps what people said.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from feedback.errors import Refused

KEPT = ("id", "role", "from", "kind", "label", "choice", "rater", "at", "model", "message", "reasons")  # not prose


def masked(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows with every text masked. Raises `Refused` if the extra is not installed."""
    try:
        import scrubadub
    except ImportError:
        raise Refused("masking takes scrubadub; install it with: pip install 'nightschool[mask]'") from None
    scrubber = scrubadub.Scrubber()

    def mask(value: Any) -> Any:
        if isinstance(value, str):
            return scrubber.clean(value)
        if isinstance(value, dict):
            return {name: each if name in KEPT else mask(each) for name, each in value.items()}
        return [mask(each) for each in value] if isinstance(value, list) else value

    return (mask(row) for row in rows)
