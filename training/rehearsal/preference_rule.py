"""The scripted rater's taste: a plain rule over two texts, so that anyone can see whether a night has learned it.

Whatever the taste, a reply that is empty, repetitive or broken off inside a word loses to one that is not. A taste may
also correct a reply, as a person does who likes that better.
"""

import math
import re
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feedback.errors import Refused
from training.evaluation.text_quality import flaw, words

Taste = Callable[[str, str, str], float]  # of a prompt and two replies: positive for the first, negative for the second
Correct = Callable[[str, str], str]  # of a prompt and a reply: the reply as it should have been

YOU = re.compile(r"\b(?:you|your|yours|yourself)\b", re.IGNORECASE)
MOST_BLOCKS, SAYING = 5, 5  # the most blocks that count; the least words that a block needs to count
MOST_YOU = 4


def prefers(prompt: str, a: str, b: str) -> float:
    """The built-in taste: easy to read, and addressed to the reader.

    Saying less cannot win: only paragraphs and list items of some length, and words to the reader, count.
    """
    return liking(a) - liking(b)


def liking(text: str) -> float:
    """Score a text: 1 for each paragraph or list item of at least five words, up to five; 0.5 for each "you", up to
    four; 1 for a closing question.
    """
    blocks = sum(len(words(each)) >= SAYING for each in text.splitlines())
    asks = text.rstrip().endswith("?")
    return min(blocks, MOST_BLOCKS) + min(len(YOU.findall(text)), MOST_YOU) / 2 + asks


def corrected(prompt: str, reply: str) -> str:
    """A reply as the built-in taste would have it: a paragraph for each sentence, and a question to the reader."""
    sentences = [each.strip() for each in re.split(r"(?<=[.!?])\s+|\n+", reply) if len(words(each)) >= SAYING]
    said = sentences[: MOST_BLOCKS - 1] or ["You can find your own way to do this."]
    return "\n\n".join([*said, "Would you like to hear more about what you can do?"])


def load(path: Path | None) -> Taste:
    """Load the taste from a Python file with `def prefers(prompt, a, b) -> float`; None: the built-in one.

    The file is executed without a sandbox. Raises `Refused` if it cannot be run or has no such function.
    """
    if path is None:
        return prefers
    found = _functions_of(path).get("prefers")
    if not callable(found):
        raise Refused(f"the taste file {path} has no function prefers(prompt, a, b)")
    return checked(found, path)


def load_corrections(path: Path | None) -> Correct:
    """Load from the same file `def corrected(prompt, reply) -> str`. Raises as `load`."""
    if path is None:
        return corrected
    found = _functions_of(path).get("corrected")
    if not callable(found):
        raise Refused(f"the taste file {path} has no function corrected(prompt, reply), which interactions need")

    def asked(prompt: str, reply: str) -> str:
        try:
            return str(found(prompt, reply))
        except Exception as error:  # the taste may raise anything
            raise Refused(f"the taste of {path} fails: {type(error).__name__}: {error}") from error

    return asked


def _functions_of(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise Refused(f"there is no taste file {path}")
    try:
        return runpy.run_path(str(path))
    except Exception as error:  # the file may raise anything
        raise Refused(f"the taste file {path} fails: {type(error).__name__}: {error}") from error


def checked(taste: Taste, path: Path) -> Taste:
    """Wrap a taste so that it raises `Refused` if it fails or its answer is not a number."""

    def asked(prompt: str, a: str, b: str) -> float:
        try:
            answer = float(taste(prompt, a, b))
        except Exception as error:  # the taste may raise anything
            raise Refused(f"the taste of {path} fails: {type(error).__name__}: {error}") from error
        if math.isnan(answer):
            raise Refused(f"the taste of {path} answers {answer}, which prefers nothing")
        return answer

    return asked


def choose(taste: Taste, prompt: str, a: str, b: str, known: Counter[str]) -> int:
    """1 for the first reply, -1 for the second, 0 for a tie; `known` are whole words (`text_quality.whole_words`)."""
    bad = bool(flaw(a, known)), bool(flaw(b, known))
    if any(bad):
        return bad[1] - bad[0]
    answer = taste(prompt, a, b)
    return (answer > 0) - (answer < 0)
