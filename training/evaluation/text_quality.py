"""Whether a text is a reply at all: not empty, not going round in circles, not broken off inside a word.

Plain rules over the text, the same for the gate and for a rehearsal, whatever anybody's taste.
"""

import re
from collections import Counter
from collections.abc import Iterable

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
NEW_TRIGRAMS = 0.7  # the least share of three-word runs that are said for the first time


def words(text: str) -> list[str]:
    """Its words, in lower case."""
    return [each.lower() for each in WORD.findall(text)]


def is_empty(text: str) -> bool:
    """Whether it says nothing."""
    return not words(text) and not any(each.isdigit() for each in text)


def is_repetitive(text: str) -> bool:
    """Whether more than three in ten of its runs of three words have come before in it."""
    said = words(text)
    runs = list(zip(said, said[1:], said[2:], strict=False))
    return len(runs) >= 10 and len(set(runs)) < NEW_TRIGRAMS * len(runs)


def whole_words(texts: Iterable[str]) -> Counter[str]:
    """Every word that stands before the end of a text, and how often: a word broken off is at the end."""
    return Counter(word for text in texts for word in words(text)[:-1])


def is_broken_off(text: str, known: Counter[str]) -> bool:
    """Whether it ends inside a word: in letters that are no word of those `known`."""
    last = words(text)[-1:]
    return bool(last) and text[-1:].isalpha() and last[0] not in known


def flaw(text: str, known: Counter[str] | None = None) -> str:
    """What is wrong with it, in a word or two; empty if nothing is. Without `known` words none is broken off."""
    if is_empty(text):
        return "empty"
    if is_repetitive(text):
        return "repetitive"
    return "broken off" if known is not None and is_broken_off(text, known) else ""
