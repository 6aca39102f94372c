"""What people said of the replies to one prompt, as one example of a reward model.

Several people's judgements of the same two replies are one pair, whose label is the share of them that prefers one; so
a prompt that many were asked about weighs no more than one that a single person judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from feedback.example_types import TIE
from training.data.tokenize import TokenizedExample
from training.model.packing import Row


@dataclass(frozen=True)
class JudgedPair:
    """Two of an example's replies by index, and the shares of those who judged them, by weight; the rest prefers the
    second, which no more do than the first."""

    first: int
    second: int
    wins: float = 1.0  # the share that prefers the first
    ties: float = 0.0  # the share that prefers neither
    weight: float = 1.0
    strength: float = 0.0  # mean of all, 0 to 1, what was said for the second counted against the first


@dataclass(frozen=True)
class RewardExample:
    """One prompt, K replies to it, and what people said of them."""

    prompt_ids: list[int]
    replies: tuple[list[int], ...]
    pairs: tuple[JudgedPair, ...]

    def row(self) -> Row:
        """The row of the prompt with all replies."""
        return Row(self.prompt_ids, self.replies)


class Judgement(NamedTuple):
    """What one person said of two replies, in the order of their indices."""

    side: int  # 1: the first is better, -1: the second, 0: neither
    weight: float
    strength: float


def group_by_prompt(examples: Sequence[TokenizedExample]) -> list[RewardExample]:
    """Group pairs, rankings and ties by prompt, in the order of first appearance; all others are left out."""
    gathered: dict[tuple[int, ...], tuple[list[list[int]], dict[tuple[int, int], list[Judgement]]]] = {}
    for example in examples:
        if example.kind in ("thumb", "demonstration"):
            continue
        replies, judged = gathered.setdefault(tuple(example.prompt_ids), ([], {}))
        replies += [reply for reply in example.replies if reply not in replies]
        for each in example.preferences:
            better, worse = (replies.index(example.replies[side]) for side in (each.chosen, each.rejected))
            side = 0 if example.kind == TIE else 1 if better < worse else -1
            both = (min(better, worse), max(better, worse))
            judged.setdefault(both, []).append(Judgement(side, each.weight, each.strength))
    return [
        RewardExample(list(prompt), tuple(replies), tuple(_as_one(*both, said) for both, said in judged.items()))
        for prompt, (replies, judged) in gathered.items()
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


def has_pair(examples: Sequence[TokenizedExample]) -> bool:
    """Whether any of these prefers a reply to another, which a reward model cannot do without."""
    return any(example.field == "pairs" for example in examples)
