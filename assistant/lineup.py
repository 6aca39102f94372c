"""The adapters in memory, side by side, so that one product computes what all of them add to a batch.

For each group of linear layers with one input, the a-factors of all adapters are the rows of one matrix and their
b-factors the rows of another; a mask lets each token of the batch see only its own adapter's columns between the
two. Adding, dropping or swapping an adapter writes numbers and changes no shape that a step depends on.
(The low-rank update is LoRA's, eq. 3 of arXiv 2106.09685.)
Left out on purpose: reading an adapter from disk (`adapters`).
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assistant.adapters import Factors
from assistant.families import Target

PARTS = {"qkv": 3, "out": 1, "gate_up": 2, "down": 1}  # linear layers multiplied together


@dataclass(frozen=True, eq=False)
class Seat:
    """Where an adapter's factors lie: `width` columns from `start` on, times the parts of a group."""

    start: int
    width: int

    @property
    def end(self) -> int:
        """The column behind its last."""
        return self.start + self.width


@dataclass(frozen=True)
class Stack:
    """The factors of one group in one layer: a (columns, in) and b (columns, out)."""

    a: Tensor
    b: Tensor


Stacks = Mapping[tuple[int, str], Stack]  # by layer and group


@dataclass(frozen=True)
class Choice:
    """Which columns of the stacks a batch needs, and which of them each of its tokens sees."""

    stacks: Stacks
    start: int
    end: int
    seen: Mapping[int, Tensor | None]  # by parts of a group: (T, columns) of 0 and 1; None: all see all

    def add(self, layer: int, group: str, x: Tensor, y: Tensor) -> Tensor:
        """What a group computes, y (T, out), with what each token's adapter adds to it for x (T, in)."""
        parts = PARTS[group]
        stack = self.stacks[layer, group]
        columns = slice(self.start * parts, self.end * parts)
        a, b, seen = stack.a[columns], stack.b[columns], self.seen[parts]
        between = x.to(a.dtype) @ a.T
        if seen is not None:
            between = between * seen
        return torch.addmm(y.to(b.dtype), between, b)


class Lineup:
    """All adapters in memory. Adding and removing is for any thread; `choose` for the engine's."""

    def __init__(
        self, targets: Mapping[str, Target], shapes: Mapping[str, tuple[int, int]], dtype: torch.dtype, device: str
    ):
        self._targets = targets
        self.shapes = shapes
        self._dtype = dtype
        self._device = device
        self._lock = threading.Lock()
        self._seats: list[Seat] = []
        self._capacity = 0
        self._stacks: Stacks = {}

    def add(self, factors: Factors) -> Seat:
        """Take an adapter in. Those that answer meanwhile are not disturbed."""
        width = max(len(a) for a, _ in factors.values())
        with self._lock:
            seat = Seat(self._gap(width), width)
            if seat.end > self._capacity:
                self._resize(max(16, 1 << (seat.end - 1).bit_length()))
            for parts in self._stacks:
                stack, times = self._stacks[parts], PARTS[parts[1]]
                columns = slice(seat.start * times, seat.end * times)
                stack.a[columns] = 0
                stack.b[columns] = 0
            for name, (a, b) in factors.items():
                target = self._targets[name]
                stack = self._stacks[target.layer, target.group]
                start = seat.start * PARTS[target.group] + target.part * width
                stack.a[start : start + len(a)] = a.to(stack.a)
                stack.b[start : start + len(a), target.outputs] = _ordered(b, target).T.to(stack.b)
            self._seats.append(seat)
        return seat

    def remove(self, seat: Seat) -> None:
        """Let an adapter go that answers nobody any more, and give memory back where much is free."""
        with self._lock:
            self._seats.remove(seat)
            end = max((each.end for each in self._seats), default=0)
            if end <= self._capacity // 4:
                self._resize(1 << (end - 1).bit_length() if end else 0)

    def choose(self, seats: Sequence[Seat | None]) -> Choice | None:
        """What a batch needs whose tokens have these adapters (None: the base); None: nothing at all."""
        used = {seat for seat in seats if seat is not None}
        if not used:
            return None
        stacks = self._stacks
        start, end = min(seat.start for seat in used), max(seat.end for seat in used)
        if len(used) == 1 and None not in seats:
            return Choice(stacks, start, end, dict.fromkeys((1, 2, 3), None))
        return Choice(stacks, start, end, {parts: self._seen(seats, start, end, parts) for parts in (1, 2, 3)})

    @property
    def nbytes(self) -> int:
        """The memory that all factors hold."""
        return sum(stack.a.nbytes + stack.b.nbytes for stack in self._stacks.values())

    def _seen(self, seats: Sequence[Seat | None], start: int, end: int, parts: int) -> Tensor:
        first = torch.tensor([(seat.start - start) * parts if seat else 0 for seat in seats])
        last = torch.tensor([(seat.end - start) * parts if seat else 0 for seat in seats])
        columns = torch.arange((end - start) * parts)
        seen = (columns >= first[:, None]) & (columns < last[:, None])
        return seen.to(self._device, self._dtype)

    def _gap(self, width: int) -> int:
        """The first run of free columns that is wide enough."""
        at = 0
        for seat in sorted(self._seats, key=lambda seat: seat.start):
            if seat.start - at >= width:
                break
            at = seat.end
        return at

    def _resize(self, capacity: int) -> None:
        """New stacks with the old ones' columns; a step that is being computed goes on with the old ones."""
        outputs: dict[tuple[int, str], int] = {}
        inputs: dict[tuple[int, str], int] = {}
        for name, target in self._targets.items():
            key = target.layer, target.group
            outputs[key] = max(outputs.get(key, 0), target.outputs.stop)
            inputs[key] = self.shapes[name][1]
        stacks = {}
        kept = min(capacity, self._capacity)
        for key in outputs if capacity else ():
            parts = PARTS[key[1]]
            a = torch.zeros(capacity * parts, inputs[key], dtype=self._dtype, device=self._device)
            b = torch.zeros(capacity * parts, outputs[key], dtype=self._dtype, device=self._device)
            if kept:
                a[: kept * parts] = self._stacks[key].a[: kept * parts]
                b[: kept * parts] = self._stacks[key].b[: kept * parts]
            stacks[key] = Stack(a, b)
        self._stacks, self._capacity = stacks, capacity


def _ordered(b: Tensor, target: Target) -> Tensor:
    return b if target.order is None else b[target.order]
