"""A histogram of people's waits for a reply's first token, since the program started."""

import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True)
class Counted:
    """For each bound, the last of them infinite, the number of waits at most that long; and the sum of all waits."""

    at_most: tuple[tuple[float, int], ...]
    total_s: float


class Waits:
    """Counts of waits; safe to share between threads."""

    def __init__(self, bounds_s: Sequence[float] = BOUNDS_S) -> None:
        self._bounds_s = (*bounds_s, float("inf"))
        self._counts = [0] * len(self._bounds_s)
        self._total_s = 0.0
        self._counting = threading.Lock()

    def add(self, wait_s: float) -> None:
        """Count one wait."""
        with self._counting:
            self._counts[bisect_left(self._bounds_s, wait_s)] += 1
            self._total_s += wait_s

    def counted(self) -> Counted:
        """All waits so far."""
        with self._counting:
            sums = tuple((bound, sum(self._counts[: at + 1])) for at, bound in enumerate(self._bounds_s))
            return Counted(sums, self._total_s)
