"""Whether a reply is good or bad, by the words and numbers that files have for it."""

from collections.abc import Mapping
from typing import Any

from feedback.formats.turns.dropped import Dropped

GOOD = {"true", "1", "1.0", "+1", "yes", "up", "thumbs_up", "good", "like", "liked", "positive", "desirable", "👍"}
BAD = {"false", "0", "0.0", "-1", "-1.0", "no", "down", "thumbs_down", "bad", "dislike", "disliked", "negative"}
BAD |= {"undesirable", "👎"}
# A table program writes true and false in its own language.
GOOD |= {"wahr", "vrai", "verdadero", "verdadeiro", "vero", "waar"}
BAD |= {"falsch", "faux", "falso", "onwaar"}
# Columns in which a file says so. A conversation beside one of them is no demonstration without more.
COLUMNS = "label kto_tag thumb rating feedback"


def verdict(value: Any) -> bool | None:
    """True for good, False for bad; None for anything else, as for nothing."""
    word = str(value).strip().lower().replace("-up", "_up").replace("-down", "_down")
    return True if word in GOOD else False if word in BAD else None


def require_not_bad(raw: Mapping[str, Any]) -> None:
    """Raises `Dropped` on a row whose own columns say that its reply is bad, which is no demonstration."""
    if any(verdict(raw.get(name)) is False for name in ("label", "kto_tag", "thumb")):
        raise Dropped("a reply that is labelled bad is no demonstration")
