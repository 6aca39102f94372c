"""Rules for whether a text is a sound reply: not empty, not repetitive, not broken off inside a word.

They are the same for the gate and for a rehearsal, whatever its taste.
"""

import re
from collections import Counter
from collections.abc import Iterable

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
NEW_TRIGRAMS = 0.7  # the least share of distinct three-word runs


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [each.lower() for each in WORD.findall(text)]


def is_empty(text: str) -> bool:
    """Whether a text has neither words nor digits."""
    return not words(text) and not any(each.isdigit() for each in text)


def is_repetitive(text: str) -> bool:
    """Whether more than 30 % of a text's three-word runs are repeats; never for fewer than ten runs."""
    said = words(text)
    runs = list(zip(said, said[1:], said[2:], strict=False))
    return len(runs) >= 10 and len(set(runs)) < NEW_TRIGRAMS * len(runs)


def whole_words(texts: Iterable[str]) -> Counter[str]:
    """Counts of all words but the last of each text, which may be broken off."""
    return Counter(word for text in texts for word in words(text)[:-1])


def is_broken_off(text: str, known: Counter[str]) -> bool:
    """Whether a text ends inside a word: in letters that are not one of the `known` words."""
    last = words(text)[-1:]
    return bool(last) and text[-1:].isalpha() and last[0] not in known


def flaw(text: str, known: Counter[str] | None = None) -> str:
    """A text's flaw in a word or two; empty if it has none. Without `known` words, broken words are not looked for."""
    if is_empty(text):
        return "empty"
    if is_repetitive(text):
        return "repetitive"
    return "broken off" if known is not None and is_broken_off(text, known) else ""
