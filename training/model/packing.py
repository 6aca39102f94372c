"""Rows of token ids, and packs of rows in which shared prefixes are computed once and no text is padded.

A row is one prompt and the replies to it. A pack merges several rows into one tree of tokens in depth-first order:
every prefix that two of its texts share (the system message, a conversation's history, a prompt, the beginning of two
replies) appears once. A token attends to itself and its ancestors, and its position is its depth. The results therefore
equal those of one text at a time; a test checks this.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.engine.kv_cache import shared_length

TOKENS_AT_ONCE = 1024  # per forward pass; a longer row gets a pass of its own
DENSE = 384  # tokens of a subtree that attends by one mask; a larger one is divided into its stem and branches


@dataclass(frozen=True)
class Row:
    """One prompt and R replies to it as token ids, none of them empty."""

    prompt_ids: Sequence[int]
    replies: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        assert len(self.prompt_ids), "a row needs a prompt"
        assert len(self.replies), "a row needs a reply"
        assert all(len(reply) for reply in self.replies), "a reply needs a token"

    @property
    def tokens(self) -> int:
        """An upper bound on the row's tokens: prefixes that replies share are counted once per reply."""
        return len(self.prompt_ids) + self.reply_tokens

    @cached_property
    def reply_tokens(self) -> int:
        """N, the total number of reply tokens."""
        return sum(map(len, self.replies))

    def summed(self, values: Tensor) -> Tensor:
        """Sum (N,) values of reply tokens over each reply: (R,)."""
        return torch.stack([part.sum() for part in self.by_reply(values)])

    def by_reply(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split (N,) values of reply tokens into one tensor per reply."""
        return values.split([len(reply) for reply in self.replies])


@dataclass(frozen=True)
class Block:
    """Tokens `start` to `stop` of a pack, which attend among themselves and to all tokens of the blocks `before`."""

    start: int
    stop: int
    before: tuple[int, ...]  # indices of the ancestor blocks, root first; each is an unbranched chain
    depths: Tensor  # (n,) positions of its tokens
    sees: Tensor | None  # (n, n) bool mask among its own tokens; None: plain causal
    masks: dict[Any, Any] = field(init=False, default_factory=dict)  # cached by `tree_attention` for all layers


@dataclass(frozen=True)
class Pack:
    """Several rows merged into one tree of T tokens, as the model takes them."""

    ids: Tensor  # (T,)
    positions: Tensor  # (T,) depth in the tree: the number of ancestors
    blocks: tuple[Block, ...]  # in order, without gaps; any padding follows the last
    predicted_at: Tensor  # (N,) for every reply token, row by row, reply by reply, the index that predicts it
    targets: Tensor  # (N,) the reply tokens
    reply_at: Tensor  # (N,) the index of the reply token itself
    sizes: tuple[int, ...]  # N of each row

    def padded(self, length: int) -> "Pack":
        """Return the pack padded at the end to `length`; no token attends to the padding or is predicted from it."""
        tail = (0, length - len(self.ids))
        return replace(self, ids=F.pad(self.ids, tail), positions=F.pad(self.positions, tail))

    def to(self, device: str) -> "Pack":
        """Return the pack with its tensors on `device`."""
        if device == "cpu":
            return self
        return replace(_moved(self, device), blocks=tuple(_moved(each, device) for each in self.blocks))


def _moved(of: Any, device: str) -> Any:
    return replace(of, **{name: each.to(device) for name, each in of.__dict__.items() if isinstance(each, Tensor)})


def pack(rows: Sequence[Row], dense: int = DENSE) -> Pack:
    """Merge rows into one tree; reply tokens keep the order of rows. `dense` is the largest subtree in one block."""
    texts = [[*row.prompt_ids, *reply] for row in rows for reply in row.replies]
    begins = [len(row.prompt_ids) for row in rows for _ in row.replies]
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []  # for each token, the index after its last descendant
    way: list[int] = []  # the path of the previous text: its token indices, root first
    ways: list[list[int]] = [[] for _ in texts]
    before: list[int] = []
    for number in sorted(range(len(texts)), key=texts.__getitem__):
        text = texts[number]
        shared = shared_length(before, text)
        for token in way[shared:]:
            ends[token] = len(ids)
        way = [*way[:shared], *range(len(ids), len(ids) + len(text) - shared)]
        ids += text[shared:]
        positions += range(shared, len(text))
        ends += [0] * (len(ids) - len(ends))
        before, ways[number] = text, way
    for token in way:
        ends[token] = len(ids)

    predicted_at = [at for way, begin in zip(ways, begins, strict=True) for at in way[begin - 1 : -1]]
    targets = [token for row in rows for reply in row.replies for token in reply]
    reply_at = [at for way, begin in zip(ways, begins, strict=True) for at in way[begin:]]
    return Pack(
        torch.tensor(ids),
        torch.tensor(positions),
        _blocks(ends, torch.tensor(positions), dense),
        torch.tensor(predicted_at),
        torch.tensor(targets),
        torch.tensor(reply_at),
        tuple(row.reply_tokens for row in rows),
    )


def _blocks(ends: Sequence[int], depths: Tensor, dense: int) -> tuple[Block, ...]:
    """Divide the tree into blocks: a subtree of up to `dense` tokens is one, a larger one its stem, then branches."""
    blocks: list[Block] = []
    whole = torch.tensor(ends)

    def grow(start: int, before: tuple[int, ...]) -> None:
        stop = stem = ends[start]
        if stop - start > dense:
            stem = start + 1
            while stem < stop and ends[stem] == stop:
                stem += 1
        blocks.append(Block(start, stem, before, depths[start:stem], _sees(whole[start:stem], start)))
        own = (*before, len(blocks) - 1)
        while stem < stop:
            grow(stem, own)
            stem = ends[stem]

    start = 0
    while start < len(ends):
        grow(start, ())
        start = ends[start]
    return tuple(blocks)


def _sees(ends: Tensor, start: int) -> Tensor | None:
    """Mask (n, n) among the tokens from `start` on, true at a token itself and its ancestors; None if plain causal."""
    if bool((ends >= start + len(ends)).all()):
        return None
    return (torch.arange(start, start + len(ends))[:, None] < ends[None, :]).tril()


def together(rows: Sequence[Row], most: int) -> list[list[int]]:
    """Group row indices into passes of at most `most` tokens; a longer row gets a pass of its own.

    Rows are sorted by prompt first, so that rows with a common prefix share a pass where possible.
    """
    groups: list[list[int]] = []
    filled = most
    for number in sorted(range(len(rows)), key=lambda each: list(rows[each].prompt_ids)):
        filled += rows[number].tokens
        if filled > most:
            groups.append([])
            filled = rows[number].tokens
        groups[-1].append(number)
    return groups
