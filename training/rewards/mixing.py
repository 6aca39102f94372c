"""Several sources of reward as one.

Raw sums would let the source with the largest spread decide, so each is normalised over the replies to one prompt, then
weighted and summed, and the sums are normalised over the batch (GDPO, arXiv 2601.05242, eq. 4 to 6). A source alone
keeps its scale, by which the KL coefficient is set.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from training.model.reward_heads import RewardModels
from training.rewards.base import Asked, Reward, RewardContext, Sampled

EPSILON = 1e-4  # as TRL's; replies that score the same have the advantage 0


def built(asked: Sequence[Asked], context: RewardContext) -> Reward:
    """The reward that these sources make together. Raises `Refused` if one of them cannot be used."""
    sources = [(each.source.build(each.argument, context), each.weight) for each in asked if each.weight > 0]

    def reward(sampled: Sequence[Sampled]) -> list[Tensor]:
        found = [(source(sampled), weight) for source, weight in sources]
        if len(found) == 1:
            return [filled(each.float()) for each in found[0][0]]
        return mixed([scores for scores, _ in found], [weight for _, weight in found])

    return reward


def require_usable(asked: Sequence[Asked], folder: Path) -> None:
    """Raise `Refused`, before a night begins, if a source that needs no reward models cannot be used."""
    context = RewardContext(_no_models, _no_models, folder)
    for each in asked:
        if not each.source.needs_models:
            each.source.build(each.argument, context)


def _no_models(night: int = 0) -> RewardModels:
    raise AssertionError("this source needs no reward models")


def filled(scores: Tensor) -> Tensor:
    """The scores (K,) of a prompt's replies, NaN replaced by the mean of the others; all 0 if there are none."""
    known = scores[~scores.isnan()]
    return torch.where(scores.isnan(), known.mean() if len(known) else scores.new_zeros(()), scores)


def mixed(sources: Sequence[Sequence[Tensor]], weights: Sequence[float]) -> list[Tensor]:
    """The mixed rewards, (K,) for each prompt, of sources that each give (K,) for each prompt."""
    sums = [
        torch.stack([weight * normalised(scores) for scores, weight in zip(of_sources, weights, strict=True)]).sum(0)
        for of_sources in zip(*sources, strict=True)
    ]
    every = torch.cat(sums)
    spread = every.std(correction=0) + EPSILON
    return [(each - every.mean()) / spread for each in sums]


def normalised(scores: Tensor) -> Tensor:
    """Scores (K,) with mean 0 and standard deviation 1, or all 0 if they are equal."""
    whole = filled(scores.float())
    centred = whole - whole.mean()
    return centred / (whole.std(correction=0) + EPSILON)
