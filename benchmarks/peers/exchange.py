"""How a measured program is talked to: one JSON line asks, one JSON line answers.

It loads its model, says so in a first line, and then takes turn after turn, so that only one program computes at a
time. It runs in environments of several makes, so it needs nothing but Python.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Turn:
    """Requests that are made at the same moment: token ids of each prompt, and how many tokens each reply has."""

    prompts: list[list[int]]
    new_tokens: int
    adapters: list[str] = field(default_factory=list)  # directories, dealt to the requests in turn; none: the base
    task: str = "write"  # or "swap": adapters come and go meanwhile; or "stay": the same without that


@dataclass(frozen=True)
class Took:
    """What a turn took; seconds from the submission of all its requests."""

    tokens: int
    seconds: float
    first_token_s: list[float]  # a reply each
    intervals_s: list[float] = field(default_factory=list)  # between two tokens of a reply, where that is asked
    dropped: int = 0  # replies that are not whole
    swaps: int = 0

    @property
    def rate(self) -> float:
        """Tokens a second, over all replies."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Ready:
    """A loaded program: what takes its turns, and facts about it for the record."""

    take: Callable[[Any], Any]  # a turn in, what it took out
    facts: dict[str, str | int]


def answer(load: Callable[[], Ready], kind: type[Any] = Turn) -> None:
    """Load, then take turns of a kind until there are no more. Whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    ready = load()
    print(json.dumps(ready.facts), file=answers)
    for line in sys.stdin:
        print(json.dumps(asdict(ready.take(kind(**json.loads(line))))), file=answers)
