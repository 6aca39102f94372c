"""The protocol with a measured program: one JSON line asks, one JSON line answers.

The program loads its model, says so in a first line, and then takes turn after turn, so that only one program computes
at a time. This module runs in several different environments, so it needs nothing but Python.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Turn:
    """Requests made at the same moment: token ids of each prompt, and the number of tokens in each reply."""

    prompts: list[list[int]]
    new_tokens: int
    adapters: list[str] = field(default_factory=list)  # directories, dealt to the requests in turn; none: the base
    task: str = "write"  # or "swap": adapters come and go meanwhile; or "stay": the same without swaps


@dataclass(frozen=True)
class Took:
    """The measurements of a turn; seconds count from the submission of all its requests."""

    tokens: int
    seconds: float
    first_token_s: list[float]  # one per reply
    intervals_s: list[float] = field(default_factory=list)  # between two tokens of a reply, if asked for
    dropped: int = 0  # incomplete replies
    swaps: int = 0

    @property
    def rate(self) -> float:
        """Tokens per second, over all replies."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Ready:
    """A loaded program: the function that takes its turns, and facts about it for the record."""

    take: Callable[[Any], Any]  # from a turn to its measurements
    facts: dict[str, str | int]


def answer(load: Callable[[], Ready], kind: type[Any] = Turn) -> None:
    """Load, then take turns of a kind until there are no more. Whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    ready = load()
    print(json.dumps(ready.facts), file=answers)
    for line in sys.stdin:
        print(json.dumps(asdict(ready.take(kind(**json.loads(line))))), file=answers)
