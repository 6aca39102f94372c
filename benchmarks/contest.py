"""Measurement in rounds, in which the programs take turns, so that whatever else the machine does affects them all.

A program that fails on the way is dropped, with its reason; only ours must not fail.
"""

import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from assistant.models.base_model import Base
from benchmarks.entrants import NEW_TOKENS, OURS, Entrant, Prompts, enter
from benchmarks.peers.exchange import Took, Turn
from benchmarks.programs import Failed

MANY = 16  # streams in the measurements with adapters


@dataclass
class Contest:
    """The programs that take part, and those that were dropped, with the reason."""

    base: Base
    prompts: Prompts
    rounds: int
    entrants: dict[str, Entrant] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def admit(self, name: str, streams: Sequence[int]) -> None:
        """Start a program and warm it up. Raises `Failed` if it is ours and that fails."""
        started = time.perf_counter()
        try:
            self.entrants[name] = enter(name, self.base, streams, self.prompts)
        except Failed as error:
            self.drop(name, error)
        say(f"{name}: {self.skipped.get(name, 'ready')} ({time.perf_counter() - started:.0f} s)")

    def drop(self, name: str, error: Failed) -> None:
        """Drop a program. Raises the error if it is ours."""
        if name == OURS:
            raise error
        self.skipped[name] = str(error)
        if name in self.entrants:
            self.entrants.pop(name).close()

    def everyone(self, streams: int, new_tokens: int = NEW_TOKENS) -> dict[str, list[Took]]:
        """Measure every program on the same requests, round by round."""
        took: dict[str, list[Took]] = defaultdict(list)
        for _ in range(self.rounds):
            turn = self.turn(streams, new_tokens)
            for name, entrant in list(self.entrants.items()):
                try:
                    took[name].append(entrant.take(streams, turn))
                except Failed as error:
                    self.drop(name, error)
                    took.pop(name, None)
            say(
                f"{streams} streams of {new_tokens}: "
                + ", ".join(f"{name} {each[-1].rate:.0f} tok/s" for name, each in took.items())
            )
        return took

    def two_ways(self, requests: int, one: Turn, other: Turn) -> tuple[list[Took], list[Took]]:
        """Measure ours in two ways, alternating; each gets prompts of its own, and is warmed up once."""
        program = self.entrants[OURS].chosen[MANY]
        took: tuple[list[Took], list[Took]] = [], []
        for way in (one, other):
            program.take_once(replace(way, prompts=self.turn(requests).prompts))
        for _ in range(self.rounds):
            for way, kept in zip((one, other), took, strict=True):
                kept.append(program.take(replace(way, prompts=self.turn(requests).prompts)))
            say(f"{requests} requests in two ways: {took[0][-1].rate:.0f} and {took[1][-1].rate:.0f} tok/s")
        return took

    def turn(self, requests: int, new_tokens: int = NEW_TOKENS) -> Turn:
        """A turn of prompts that no program has seen."""
        return Turn(list(itertools.islice(self.prompts, requests)), new_tokens)

    def close(self) -> None:
        """End every program."""
        for each in self.entrants.values():
            each.close()


def say(words: str) -> None:
    """Print progress to standard error, apart from the result."""
    print(words, file=sys.stderr, flush=True)
