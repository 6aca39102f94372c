"""What tells who somebody is, taken out of texts on their way out: e-mail addresses, telephone numbers and the like.

Found by the package scrubadub, an optional extra, by patterns alone. It overlooks what no pattern tells, such as names:
a masked file is safer, and not anonymous.
Only exports are masked; the ledger keeps what people said.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from feedback.errors import Refused

KEPT = ("id", "role", "from", "kind", "label", "choice", "rater", "at", "model", "message", "reasons")  # no prose


def masked(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows with every text masked. Raises `Refused` where the extra is not installed."""
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
