"""The KV cache: keys and values of the sequences being written, and of those finished recently.

Sequences of similar length share a slab, one slot each, so that one call computes the attention of all of them and a
long sequence costs short ones nothing; the longest have a slab each. What a finished sequence leaves is kept for a
while, so that the next turn of a conversation, a retry, or the second reply of a pair pays only for what is new.
"""

import math
import mmap
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from assistant.engine.architectures import Sizes

SHORTEST_ROOM = 256
LONGEST_SHARED_ROOM = 1024  # above it, a sequence has a slab of its own, which is kept without copying
LEAST_SHARED = 16  # fewest tokens in common that are worth a copy
MOST_COPIED = 256  # tokens in one step, so that no reply being written waits for a long copy


class Slab:
    """Slots of `room` tokens each: keys and values (layers, slots, 2, kv heads, room, head width).

    A head's keys are contiguous: a long sequence's are read twice as fast as with the heads interleaved.
    """

    def __init__(self, sizes: Sizes, room: int, dtype: torch.dtype, device: str) -> None:
        self.room = room
        self.rows: list[CacheSlot | None] = []
        self._like = torch.empty(sizes.layers, 0, 2, sizes.kv_heads, room, sizes.head_width, dtype=dtype, device=device)
        self.data = self._like

    def take(self, key: Hashable) -> "CacheSlot":
        """Take the lowest free slot; if there is none, the slab doubles in size."""
        if None not in self.rows:
            self._resize(max(1, 2 * len(self.rows)))
        row = CacheSlot(self, self.rows.index(None), key)
        self.rows[row.slot] = row
        return row

    def free(self, row: "CacheSlot") -> None:
        """Free a slot; freeing the last one frees the memory."""
        self.rows[row.slot] = None
        if not any(self.rows):
            self.rows, self.data = [], self._like

    def settle(self) -> None:
        """Move sequences from high slots to low ones if more than half of the slots up to the highest are free."""
        taken = [row for row in self.rows if row is not None]
        if not taken or taken[-1].slot < 2 * len(taken):
            return
        for row in reversed(taken):
            free = self.rows.index(None)
            if free > row.slot:
                break
            self.copy(row.slot, free, row.length)
            self.rows[row.slot], self.rows[free] = None, row
            row.slot = free

    def written(self, row: "CacheSlot") -> Tensor:
        """A sequence's keys and values, (layers, 2, kv heads, length, head width)."""
        return self.data[:, row.slot, :, :, : row.length]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot into another."""
        self.data[:, target, :, :, :length] = self.data[:, source, :, :, :length]

    def _resize(self, slots: int) -> None:
        shape = list(self._like.shape)
        shape[1] = slots
        data = _zeros(shape, self._like)  # what a mask hides is multiplied by zero, so it must be finite
        for row in self.rows:
            if row is not None:
                data[:, row.slot, :, :, : row.length] = self.written(row)
        self.data = data
        self.rows += [None] * (slots - len(self.rows))


@dataclass(eq=False)
class CacheSlot:
    """A sequence in the cache. `token_ids` are those whose keys and values are written."""

    slab: Slab
    slot: int
    key: Hashable  # of what computed it: sequences of two adapters share nothing
    token_ids: list[int] = field(default_factory=list)
    sound: int = 0  # the number of first tokens whose keys and values are known to be finite

    @property
    def length(self) -> int:
        """The number of tokens written."""
        return len(self.token_ids)

    @property
    def room(self) -> int:
        """The most tokens it may have."""
        return self.slab.room


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """What a finished sequence left: keys and values (layers, 2, kv heads, n or more, head width) of its n tokens."""

    key: Hashable
    token_ids: list[int]
    data: Tensor

    @property
    def size(self) -> int:
        """The number of tokens that its memory could hold."""
        return self.data.shape[3]


class Cache:
    """All slabs, and what is kept of finished sequences, within `budget` bytes."""

    worth_waiting = LEAST_SHARED

    def __init__(self, sizes: Sizes, window: int, budget: int, dtype: torch.dtype, device: str) -> None:
        self.window = window
        self.budget = budget
        self.token_bytes = sizes.layers * sizes.kept_width * dtype.itemsize
        self._make = lambda room: Slab(sizes, room, dtype, device)
        self._slabs: list[Slab] = []
        self._kept: list[CachedPrefix] = []  # least recently used first

    def fits(self, room: int, texts: int = 1, share: float = 1.0) -> bool:
        """Whether `texts` sequences of `room` tokens each fit beside those being written, in `share` of the budget."""
        return (self._taken() + texts * self._class(room)) * self.token_bytes <= share * self.budget

    def take(self, room: int, key: Hashable) -> CacheSlot:
        """Take a slot for a sequence of up to `room` tokens."""
        row = self._slab(self._class(room)).take(key)
        self._let_go()
        return row

    def fork(self, row: CacheSlot) -> CacheSlot:
        """Copy a sequence, so that the copy can go on differently."""
        copy = self.take(row.room, row.key)
        copy.token_ids = list(row.token_ids)
        copy.sound = row.sound
        copy.slab.written(copy)[:] = row.slab.written(row)
        return copy

    def free(self, row: CacheSlot) -> None:
        """Free a slot, keeping what was computed while there is memory for it."""
        written = row.slab.written(row)
        if not written[:, :, :, row.sound :].sum((1, 2, 3, 4)).isfinite().all():  # flattening would copy it
            written.zero_()  # non-finite values would spoil the next sequence there, and every one that shares it
        elif row.length >= LEAST_SHARED:
            self._keep(row)
        row.slab.free(row)
        row.slab.settle()
        self._let_go()

    def reuse(self, row: CacheSlot, prompt_ids: Sequence[int]) -> bool:
        """Copy into a row what another sequence has computed of the prompt's next tokens; False if there is no more.

        The prompt's last token is never copied: the row needs the logits after it.
        """
        best, shared = self._longest(row, prompt_ids[: len(prompt_ids) - 1])
        if best is None or shared < row.length + LEAST_SHARED:
            return False
        if isinstance(best, CachedPrefix):
            self._kept.append(self._kept.pop(self._kept.index(best)))  # now used last
            alone = row.length == 0 and best.size == row.room and len(row.slab.rows) == 1
            if alone and 2 * shared >= len(best.token_ids):
                self._kept.remove(best)  # the next turn takes over its memory
                row.slab.data = best.data[:, None]
                row.token_ids = list(prompt_ids[:shared])
                row.sound = shared
                return True
            source = best.data
            if row.sound == row.length:
                row.sound = min(shared, row.length + MOST_COPIED)
        else:
            source = best.slab.data[:, best.slot]
        new = slice(row.length, min(shared, row.length + MOST_COPIED))
        row.slab.data[:, row.slot, :, :, new] = source[:, :, :, new]
        row.token_ids += prompt_ids[new]
        return True

    def forget(self, key: Hashable) -> None:
        """Drop what is kept under a key, such as an unloaded adapter's."""
        self._kept = [each for each in self._kept if each.key != key]

    def clear(self) -> None:
        """Drop everything."""
        self._slabs, self._kept = [], []

    @property
    def kept_bytes(self) -> int:
        """The memory that finished sequences hold."""
        return sum(each.size for each in self._kept) * self.token_bytes

    @property
    def taken_bytes(self) -> int:
        """The memory that the sequences being written may come to hold."""
        return self._taken() * self.token_bytes

    def _longest(self, row: CacheSlot, prompt_ids: Sequence[int]) -> tuple[CachedPrefix | CacheSlot | None, int]:
        living = [each for slab in self._slabs for each in slab.rows if each is not None and each is not row]
        best: CachedPrefix | CacheSlot | None = None
        shared = 0
        texts: list[CachedPrefix | CacheSlot] = [*self._kept, *living]
        for each in texts:
            if each.key == row.key and (more := shared_length(each.token_ids, prompt_ids)) > shared:
                best, shared = each, more
        return best, shared

    def _keep(self, row: CacheSlot) -> None:
        kept = []
        for each in self._kept:
            shared = shared_length(each.token_ids, row.token_ids) if each.key == row.key else -1
            if shared == row.length:
                return  # a longer sequence holds it already
            if shared < len(each.token_ids):  # otherwise the new one holds it
                kept.append(each)
        own = row.room > LONGEST_SHARED_ROOM
        data = row.slab.data[:, row.slot] if own else row.slab.written(row).clone()
        kept.append(CachedPrefix(row.key, list(row.token_ids), data))
        self._kept = kept

    def _let_go(self) -> None:
        """Drop what was used longest ago until all fits; at least half the budget is for sequences being written."""
        room = min(self.budget - self.taken_bytes, self.budget // 2)
        while self._kept and self.kept_bytes > room:
            self._kept.pop(0)
        self._slabs = [slab for slab in self._slabs if slab.rows]

    def _slab(self, room: int) -> Slab:
        if room <= LONGEST_SHARED_ROOM:
            for slab in self._slabs:
                if slab.room == room:
                    return slab
        self._slabs.append(self._make(room))
        return self._slabs[-1]

    def _class(self, room: int) -> int:
        """The room of the slab for a sequence of this many tokens."""
        size = SHORTEST_ROOM
        while size < room:
            size *= 2
        return max(room, min(size, self.window))

    def _taken(self) -> int:
        return sum(slab.room for slab in self._slabs for row in slab.rows if row is not None)


def _zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Zeros of a tensor's dtype and device. On a CPU the system provides them in small pages, each when first used.

    Large pages, which numpy asks for, would be provided for all layers at once, in a step that takes four times as
    long.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    pages = mmap.mmap(-1, math.prod(shape) * like.itemsize)
    return torch.frombuffer(pages, dtype=like.dtype).view(*shape)


def shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the prefix that two sequences share, in tokens."""
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    low, high = 0, most  # the first `low` are the same, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
