"""Reward models as sources: those that this night trains, or those that an earlier night has made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from feedback.errors import Refused
from training.model.reward_heads import RewardModels
from training.rewards.base import Reward, RewardContext, Sampled, Source
from training.rewards.registry import MODELS, register


def _scored(models: RewardModels, uncertainty_penalty: float) -> Reward:
    def reward(sampled: Sequence[Sampled]) -> list[Tensor]:
        with torch.no_grad():
            return models.pessimistic([each.row for each in sampled], uncertainty_penalty)

    return reward


def _own(argument: str, context: RewardContext) -> Reward:
    return _scored(context.models(), context.uncertainty_penalty)


def _earlier(argument: str, context: RewardContext) -> Reward:
    return _scored(context.models_of(int(argument)), context.uncertainty_penalty)


def _require_night(argument: str) -> None:
    if not (argument.isascii() and argument.isdecimal() and 0 < int(argument[:12]) < 10**9):
        raise Refused(f"reward:NIGHT names a night by its number, not {argument[:40]!r}")


register(Source(MODELS, "the reward models that this night trains", _own, needs_models=True, needs_pairs=True))
register(
    Source(
        "reward", "the reward models of an earlier night", _earlier, "NIGHT", check=_require_night, needs_models=True
    )
)
