"""Stop strings: where a reply's text ends, and how much of it may already be shown."""

from collections.abc import Sequence


def before_stop(text: str, stops: Sequence[str]) -> str | None:
    """The text before the first stop string in it; None if there is none."""
    starts = [at for at in map(text.find, stops) if at >= 0]
    return text[: min(starts)] if starts else None


def surely_shown(text: str, stops: Sequence[str]) -> str:
    """The text without an ending that may turn out to be the beginning of a stop string."""
    return text[: len(text) - max((overlap(text, stop) for stop in stops), default=0)]


def overlap(text: str, stop: str) -> int:
    """The number of characters at the end of the text that begin the stop string, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
