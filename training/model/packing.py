"""Rows of token ids, and packs of them: what several replies have in common is computed once, and nothing is padded.

A row is one prompt and the replies to it. A pack is several rows as one tree of tokens: every prefix that two of its
texts share (the system message, a conversation's history, a prompt, how two replies begin) stands in it once, in the
order in which a walk through the tree meets it. A token sees those on its way from the root, and its position is its
depth; so the numbers are those of one text at a time, and a test holds that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.engine.kv_cache import shared_length

TOKENS_AT_ONCE = 1024  # in one pass through the model; a longer row goes alone
DENSE = 384  # tokens of a subtree that attends by one mask; in a larger one every branch attends by itself


@dataclass(frozen=True)
class Row:
    """One prompt and R replies to it, none of them empty, as token ids."""

    prompt_ids: Sequence[int]
    replies: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        assert len(self.prompt_ids), "a row needs a prompt"
        assert len(self.replies), "a row needs a reply"
        assert all(len(reply) for reply in self.replies), "a reply needs a token"

    @property
    def tokens(self) -> int:
        """How many tokens it is at most: what its replies share is not taken off."""
        return len(self.prompt_ids) + self.reply_tokens

    @cached_property
    def reply_tokens(self) -> int:
        """N, the tokens of all its replies."""
        return sum(map(len, self.replies))

    def summed(self, values: Tensor) -> Tensor:
        """(N,) values of reply tokens as (R,) sums over replies."""
        return torch.stack([part.sum() for part in self.by_reply(values)])

    def by_reply(self, values: Tensor) -> tuple[Tensor, ...]:
        """(N,) values of reply tokens, those of each reply by themselves."""
        return values.split([len(reply) for reply in self.replies])


@dataclass(frozen=True)
class Block:
    """Tokens that attend together: `start` to `stop`, to themselves and to all tokens of the blocks `before`."""

    start: int
    stop: int
    before: tuple[int, ...]  # numbers of earlier blocks, each a run on the way from the root
    depths: Tensor  # (n,) their positions
    sees: Tensor | None  # (n, n) bool among its own tokens; None: each sees those before it
    masks: dict[Any, Any] = field(
        init=False, default_factory=dict
    )  # kept by `tree_attention`, as every layer needs them


@dataclass(frozen=True)
class Pack:
    """Several rows, T tokens in all, as the model takes them."""

    ids: Tensor  # (T,)
    positions: Tensor  # (T,) how many tokens stand before it on its way from the root
    blocks: tuple[Block, ...]  # in order, without gaps; padding behind the last
    predicted_at: Tensor  # (N,) for every reply token, row by row, reply by reply, where it is predicted
    targets: Tensor  # (N,) the reply tokens
    reply_at: Tensor  # (N,) where it stands itself
    sizes: tuple[int, ...]  # N of each row

    def padded(self, length: int) -> "Pack":
        """The same with a tail, up to a length, that no token sees and nothing is predicted from."""
        tail = (0, length - len(self.ids))
        return replace(self, ids=F.pad(self.ids, tail), positions=F.pad(self.positions, tail))

    def to(self, device: str) -> "Pack":
        """The same on a device."""
        if device == "cpu":
            return self
        return replace(_moved(self, device), blocks=tuple(_moved(each, device) for each in self.blocks))


def _moved(of: Any, device: str) -> Any:
    return replace(of, **{name: each.to(device) for name, each in of.__dict__.items() if isinstance(each, Tensor)})


def pack(rows: Sequence[Row], dense: int = DENSE) -> Pack:
    """Rows as one tree; replies and their tokens are counted in the order of the rows."""
    texts = [[*row.prompt_ids, *reply] for row in rows for reply in row.replies]
    begins = [len(row.prompt_ids) for row in rows for _ in row.replies]
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []  # of each token, where the tokens behind it that see it end
    way: list[int] = []  # the tokens of the text before, from the root on
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
    """The tree in blocks: a small subtree is one, of a larger one first the stem, then each branch."""
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
    """(n, n), true where a token sees another, both from `start` on: it comes after it, and before that one's end."""
    if bool((ends >= start + len(ends)).all()):
        return None
    return (torch.arange(start, start + len(ends))[:, None] < ends[None, :]).tril()


def together(rows: Sequence[Row], most: int) -> list[list[int]]:
    """The numbers of rows that go through the model in one pass, `most` tokens at a time; a longer row goes alone.

    Rows that begin alike stand side by side, so that they share what they can.
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
