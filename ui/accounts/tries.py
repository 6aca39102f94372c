"""Counts of recent tries by key, in a fixed amount of memory.

A count-min sketch (Cormode and Muthukrishnan, 2005) for each slice of time: counts expire by the clock alone, however
much else is counted meanwhile. A count may be too high, by chance, but never too low.
"""

import hashlib
import math
import secrets
import time
from array import array
from collections.abc import Callable, Iterator

SLICES = 5
ROWS = 4
WIDTH = 1 << 16  # cells a row: 200,000 tries in a slice make a count 9 too high with a chance below 1 in 10^9


class Tries:
    """Counts by key over the last `within_s` seconds, to within a fifth of them. Not thread-safe."""

    def __init__(self, within_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._slice_s = within_s / SLICES
        self._clock = clock
        self._salt = secrets.token_bytes(16)  # so that nobody can choose keys that collide
        self._slices: dict[int, array[int]] = {}

    def add(self, key: str) -> int:
        """Count one try; the slice it was counted in."""
        now = self._slice()
        cells = self._slices.setdefault(now, array("H", bytes(2 * ROWS * WIDTH)))
        for cell in self._cells(key):
            cells[cell] = min(cells[cell] + 1, 65_535)
        return now

    def take_back(self, key: str, slice: int) -> None:
        """Undo an `add` in that slice."""
        cells = self._slices.get(slice)
        for cell in self._cells(key) if cells else ():
            assert cells is not None
            cells[cell] = max(cells[cell] - 1, 0)

    def count(self, key: str) -> int:
        """The number of tries within the last `within_s` seconds."""
        self._slice()
        return self._count(key, list(self._slices))

    def wait_s(self, key: str, most: int) -> float:
        """The number of seconds until fewer than `most` are counted, if no more come."""
        now = self._slice()
        kept = sorted(self._slices)
        while kept and self._count(key, kept) >= most:
            now = kept.pop(0) + SLICES
        return max(now * self._slice_s - self._clock(), 0.0)

    def _count(self, key: str, slices: list[int]) -> int:
        return min(sum(self._slices[each][cell] for each in slices) for cell in self._cells(key))

    def _cells(self, key: str) -> Iterator[int]:
        """The cells of a key, one in each row."""
        digest = hashlib.blake2b(key.encode(errors="replace"), digest_size=4 * ROWS, key=self._salt).digest()
        for row in range(ROWS):
            yield row * WIDTH + int.from_bytes(digest[4 * row : 4 * row + 4]) % WIDTH

    def _slice(self) -> int:
        """The current slice; drops those that have expired."""
        now = math.floor(self._clock() / self._slice_s)
        for each in [each for each in self._slices if each <= now - SLICES]:
            del self._slices[each]
        return now
