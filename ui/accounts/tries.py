"""How often something was tried of late, in memory that neither grows nor forgets before its time.

A count-min sketch (Cormode and Muthukrishnan, 2005) for each slice of time: what was counted is forgotten by the clock
alone, however much else is counted meanwhile. A count may come out too high, by chance, and never too low.
"""

import hashlib
import math
import secrets
import time
from array import array
from collections.abc import Callable, Iterator

SLICES = 5
ROWS = 4
WIDTH = 1 << 16  # cells a row: 200,000 keys within a slice leave a key's count right, but for a chance of 1 in 10^9


class Tries:
    """Counts by key over the last `within_s` seconds, to within a fifth of them. Not for several threads at once."""

    def __init__(self, within_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._slice_s = within_s / SLICES
        self._clock = clock
        self._salt = secrets.token_bytes(16)  # so that nobody can choose keys that fall together
        self._slices: dict[int, array[int]] = {}

    def add(self, key: str) -> int:
        """Count one; the slice it was counted in."""
        now = self._slice()
        cells = self._slices.setdefault(now, array("H", bytes(2 * ROWS * WIDTH)))
        for cell in self._cells(key):
            cells[cell] = min(cells[cell] + 1, 65_535)
        return now

    def take_back(self, key: str, slice: int) -> None:
        """Undo `add`."""
        cells = self._slices.get(slice)
        for cell in self._cells(key) if cells else ():
            assert cells is not None
            cells[cell] = max(cells[cell] - 1, 0)

    def count(self, key: str) -> int:
        """How many were counted of late."""
        self._slice()
        return self._count(key, list(self._slices))

    def wait_s(self, key: str, most: int) -> float:
        """In how many seconds fewer than `most` will be counted, if no more come."""
        now = self._slice()
        kept = sorted(self._slices)
        while kept and self._count(key, kept) >= most:
            now = kept.pop(0) + SLICES
        return max(now * self._slice_s - self._clock(), 0.0)

    def _count(self, key: str, slices: list[int]) -> int:
        return min(sum(self._slices[each][cell] for each in slices) for cell in self._cells(key))

    def _cells(self, key: str) -> Iterator[int]:
        """Where a key is counted, once in each row."""
        digest = hashlib.blake2b(key.encode(errors="replace"), digest_size=4 * ROWS, key=self._salt).digest()
        for row in range(ROWS):
            yield row * WIDTH + int.from_bytes(digest[4 * row : 4 * row + 4]) % WIDTH

    def _slice(self) -> int:
        """The slice of this moment; those that are over are dropped."""
        now = math.floor(self._clock() / self._slice_s)
        for each in [each for each in self._slices if each <= now - SLICES]:
            del self._slices[each]
        return now
