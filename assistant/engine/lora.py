"""The LoRA slots: all adapters in memory, stacked, so that one product computes what they add to a batch.

For each group of linear layers with the same input, the factors of all adapters lie in one tensor, one slot each, and a
batched product gives every token of a batch what its own adapter adds. Adding, dropping or swapping an adapter writes
numbers and changes nothing that a step depends on.
(The low-rank update is LoRA's, eq. 3 of arXiv 2106.09685.)
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assistant.engine.architectures import Target
from assistant.models.adapter import Factors

COLUMNS = 8  # ranks are padded to multiples of this
BASE_SLOT = 0  # the slot of no adapter: zeros

Key = tuple[int, str]  # a layer and a group of it


@dataclass(frozen=True, eq=False)
class LoraSlot:
    """An adapter's slot in the stacked factors."""

    index: int
    rank: int


@dataclass(frozen=True)
class StackedWeights:
    """The factors of one group in one layer: a (slots, in, parts x rank) and b (slots, parts x rank, out).

    The columns of a part of the group reach only its own outputs: elsewhere b is zero.
    """

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class LoraBatch:
    """The LoRA slots that a batch needs, and how its tokens are grouped by slot."""

    stacks: Mapping[Key, StackedWeights]  # of those slots alone
    group_index: Tensor | None  # (slots x m,): the tokens of each slot, padded to m; None: all in one slot
    ungroup_index: Tensor | None  # (T,): where each token was put

    def add(self, layer: int, group: str, x: Tensor, y: Tensor) -> Tensor:
        """Add to y (T, out), a group's output, what each token's adapter adds for x (T, in); return the sum in float32.

        In place if y is float32. A smaller format would lose what is added: y already lies on its grid, and anything
        less than half a step would always be rounded away.
        """
        stack = self.stacks[layer, group]
        x = x.to(stack.a.dtype)
        if self.group_index is None or self.ungroup_index is None:
            added = x.mm(stack.a[0]).mm(stack.b[0])
        else:
            group_index = x.index_select(0, self.group_index).view(len(stack.a), -1, x.shape[1])
            added = group_index.bmm(stack.a).bmm(stack.b).flatten(0, 1).index_select(0, self.ungroup_index)
        return y.add_(added) if y.dtype == torch.float32 else y + added.float()


class LoraPool:
    """All adapters in memory. Any thread may add and remove; only the engine's thread may call `choose`."""

    def __init__(
        self, targets: Mapping[str, Target], shapes: Mapping[str, tuple[int, int]], dtype: torch.dtype, device: str
    ) -> None:
        self.shapes = shapes
        self._targets = targets
        self._dtype = dtype
        self._device = device
        self._lock = threading.Lock()
        self.lora_slots: list[LoraSlot] = []
        self._size = (0, 0)  # slots and rank
        self._stacks: Mapping[Key, StackedWeights] = {}
        self._last: tuple[tuple[LoraSlot | None, ...], Mapping[Key, StackedWeights], LoraBatch | None] | None = None

    def add(self, factors: Factors) -> LoraSlot:
        """Add an adapter without disturbing those that are answering; return its LoRA slot."""
        rank = -(-max(len(a) for a, _ in factors.values()) // COLUMNS) * COLUMNS
        with self._lock:
            taken = {each.index for each in self.lora_slots} | {BASE_SLOT}
            lora_slot = LoraSlot(next(place for place in range(len(taken) + 1) if place not in taken), rank)
            self._fit([*self.lora_slots, lora_slot])
            rank = self._size[1]
            for stack in self._stacks.values():
                stack.a[lora_slot.index] = 0
                stack.b[lora_slot.index] = 0
            for name, (a, b) in factors.items():
                target = self._targets[name]
                stack = self._stacks[target.layer, target.group]
                columns = slice(target.part * rank, target.part * rank + len(a))
                stack.a[lora_slot.index, :, columns] = a.T
                stack.b[lora_slot.index, columns, target.outputs] = (b if target.order is None else b[target.order]).T
            self.lora_slots.append(lora_slot)
        return lora_slot

    def remove(self, lora_slot: LoraSlot) -> None:
        """Drop an adapter that no reply uses any more, and free memory if much of it is unused."""
        with self._lock:
            self.lora_slots.remove(lora_slot)
            self._fit(self.lora_slots)

    def choose(self, lora_slots: Sequence[LoraSlot | None]) -> LoraBatch | None:
        """The LoRA batch for tokens that have these adapters (None: the base); None if no token has one.

        It is mostly the same from step to step, so the last answer is kept.
        """
        asked = tuple(lora_slots)
        stacks = self._stacks
        if self._last is not None and self._last[0] == asked and self._last[1] is stacks:
            return self._last[2]
        places = [lora_slot.index if lora_slot is not None else BASE_SLOT for lora_slot in asked]
        choice = self._choice(places, stacks) if any(places) else None
        self._last = asked, stacks, choice
        return choice

    @property
    def nbytes(self) -> int:
        """The memory that all factors hold, in bytes."""
        return sum(stack.a.nbytes + stack.b.nbytes for stack in self._stacks.values())

    def _choice(self, places: Sequence[int], stacks: Mapping[Key, StackedWeights]) -> LoraBatch:
        first, last = min(places), max(places) + 1
        chosen = {key: StackedWeights(stack.a[first:last], stack.b[first:last]) for key, stack in stacks.items()}
        if last - first == 1:
            return LoraBatch(chosen, None, None)
        tokens: list[list[int]] = [[] for _ in range(first, last)]
        for at, place in enumerate(places):
            tokens[place - first].append(at)
        most = max(len(each) for each in tokens)
        group_index = [at for each in tokens for at in each + [0] * (most - len(each))]
        ungroup_index = [0] * len(places)
        for row, each in enumerate(tokens):
            for column, at in enumerate(each):
                ungroup_index[at] = row * most + column
        return LoraBatch(
            chosen, torch.tensor(group_index, device=self._device), torch.tensor(ungroup_index, device=self._device)
        )

    def _fit(self, lora_slots: Sequence[LoraSlot]) -> None:
        """Make room for these adapters; free memory if they need a quarter of it at most."""
        places, rank = self._size
        most = max((lora_slot.index + 1 for lora_slot in lora_slots), default=0)
        widest = max((lora_slot.rank for lora_slot in lora_slots), default=0)
        if most > places or widest > rank or most <= places // 4:
            self._resize((1 << (most - 1).bit_length() if most else 0, widest if lora_slots else 0))

    def _resize(self, size: tuple[int, int]) -> None:
        """Make new stacks with the old ones' factors; a step that is being computed goes on with the old ones."""
        groups: dict[Key, list[str]] = {}
        for name, target in self._targets.items():
            groups.setdefault((target.layer, target.group), []).append(name)
        (places, rank), (places_before, rank_before) = size, self._size
        stacks = {}
        for key, names in groups.items() if places else ():
            parts, inputs = len(names), self.shapes[names[0]][1]
            outputs = sum(self.shapes[name][0] for name in names)
            a = torch.zeros(places, inputs, parts, rank, dtype=self._dtype, device=self._device)
            b = torch.zeros(places, parts, rank, outputs, dtype=self._dtype, device=self._device)
            if kept := min(places, places_before):
                ranks = min(rank, rank_before)
                old_a = self._stacks[key].a.unflatten(2, (parts, rank_before))
                old_b = self._stacks[key].b.unflatten(1, (parts, rank_before))
                a[:kept, :, :, :ranks] = old_a[:kept, :, :, :ranks]
                b[:kept, :, :ranks] = old_b[:kept, :, :ranks]
            stacks[key] = StackedWeights(a.flatten(2), b.flatten(1, 2))
        self._stacks, self._size = stacks, size
