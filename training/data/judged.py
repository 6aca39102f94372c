"""What people said of the replies to one prompt, as one example of a reward model.

Several people's judgements of the same two replies are one pair, whose label is the share of them that prefers one; so
a prompt that many were asked about weighs no more than one that a single person judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from feedback.example_types import TIE
from training.data.tokenize import TokenizedExample
from training.model.packing import Row


@dataclass(frozen=True)
class JudgedPair:
    """Two of an example's replies by index, and the shares of those who judged them, by weight.

    The rest prefers the second, which no more do than the first.
    """

    first: int
    second: int
    wins: float = 1.0  # the share that prefers the first
    ties: float = 0.0  # the share that prefers neither
    weight: float = 1.0
    strength: float = 0.0  # mean of all, 0 to 1, what was said for the second counted against the first

    @property
    def losses(self) -> float:
        """The share that prefers the second."""
        return 1 - self.wins - self.ties


@dataclass(frozen=True)
class JudgedReply:
    """A thumb on one of an example's replies, by index."""

    reply: int
    wanted: bool
    user: int  # the number of who gave it
    weight: float = 1.0


@dataclass(frozen=True)
class RewardExample:
    """One prompt, K replies to it, and what people said of them."""

    prompt_ids: list[int]
    replies: tuple[list[int], ...]
    pairs: tuple[JudgedPair, ...] = ()
    thumbs: tuple[JudgedReply, ...] = ()

    def row(self) -> Row:
        """The row of the prompt with all replies."""
        return Row(self.prompt_ids, self.replies)


class Judgement(NamedTuple):
    """What one person said of two replies, in the order of their indices."""

    side: int  # 1: the first is better, -1: the second, 0: neither
    weight: float
    strength: float


@dataclass
class _Gathered:
    """What has been found of one prompt."""

    replies: list[list[int]] = field(default_factory=list)
    judged: dict[tuple[int, int], list[Judgement]] = field(default_factory=dict)  # by the indices of two replies
    thumbs: list[JudgedReply] = field(default_factory=list)

    def index(self, reply: list[int]) -> int:
        """The index of a reply, which is added if it is new."""
        if reply not in self.replies:
            self.replies.append(reply)
        return self.replies.index(reply)


def group_by_prompt(examples: Sequence[TokenizedExample]) -> list[RewardExample]:
    """Group pairs, rankings, ties and thumbs by prompt, in the order of first appearance; others are left out."""
    prompts: dict[tuple[int, ...], _Gathered] = {}
    for example in examples:
        if example.kind == "demonstration":
            continue
        found = prompts.setdefault(tuple(example.prompt_ids), _Gathered())
        if example.kind == "thumb":
            reply = found.index(example.replies[0])
            found.thumbs.append(JudgedReply(reply, example.wanted, example.user, example.weight))
            continue
        of = [found.index(reply) for reply in example.replies]
        for each in example.preferences:
            better, worse = of[each.chosen], of[each.rejected]
            side = 0 if example.kind == TIE else 1 if better < worse else -1
            both = (min(better, worse), max(better, worse))
            found.judged.setdefault(both, []).append(Judgement(side, each.weight, each.strength))
    return [
        RewardExample(
            list(prompt),
            tuple(found.replies),
            tuple(_as_one(*both, said) for both, said in found.judged.items()),
            tuple(found.thumbs),
        )
        for prompt, found in prompts.items()
    ]


def _as_one(first: int, second: int, said: Sequence[Judgement]) -> JudgedPair:
    """All judgements of two replies as one pair.

    Its weight is the mean of theirs, weighted by themselves: a person of little weight neither outvotes the others nor
    takes their weight away.
    """
    total = sum(each.weight for each in said)
    weight = sum(each.weight**2 for each in said) / total
    wins, ties, losses = (sum(each.weight for each in said if each.side == side) / total for side in (1, 0, -1))
    strength = sum(each.weight * each.side * each.strength for each in said) / total
    if losses > wins:
        first, second, wins, strength = second, first, losses, -strength
    return JudgedPair(first, second, wins, ties, weight, max(0.0, strength))


def has_contrast(examples: Sequence[TokenizedExample]) -> bool:
    """Whether these say of a reply that it is better than another: by a pair, or by thumbs of both kinds.

    A reward model learns nothing without it: of ties alone, and of thumbs of one kind, equal scores are the best.
    """
    thumbs = {example.wanted for example in examples if example.kind == "thumb"}
    return len(thumbs) == 2 or any(example.field == "pairs" for example in examples)
