"""Reward models as sources: those that this night trains, or those that an earlier night has made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from feedback.errors import Refused
from training.data.tokenize import NothingFits
from training.model.reward_heads import RewardModels
from training.rewards.base import Reward, RewardContext, Sampled, Source
from training.rewards.registry import MODELS, register

WAY_OUT = "compare more replies, or learn by them all the same with --set least_reward_accuracy=0"


def require_knowing(models: RewardModels, least_accuracy: float) -> None:
    """Raise `NothingFits` unless the lower bound of reward models' held-out accuracy is above `least_accuracy`.

    Below some 2,000 comparisons reward models are often no better than chance, and a policy finds out what they reward
    instead (Gao et al., arXiv 2210.10760, section 3.3). With `least_accuracy` 0 they may be anything.
    """
    told = models.metrics
    if least_accuracy and not told:
        raise NothingFits(f"the policy waits: nothing was held out to judge its reward models by; {WAY_OUT}")
    if least_accuracy and told["low"] <= least_accuracy:
        raise NothingFits(
            f"the policy waits: its reward models are right on {told['accuracy']:.0%} of {told['pairs']:,} held-out "
            f"pairs ({told['low']:.0%} to {told['high']:.0%}), and the lower bound must be above {least_accuracy:.0%}; "
            f"{WAY_OUT}"
        )


def _scored(models: RewardModels, context: RewardContext) -> Reward:
    require_knowing(models, context.least_accuracy)

    def reward(sampled: Sequence[Sampled]) -> list[Tensor]:
        with torch.no_grad():
            return models.pessimistic([each.row for each in sampled], context.uncertainty_penalty)

    return reward


def _own(argument: str, context: RewardContext) -> Reward:
    return _scored(context.models(), context)


def _earlier(argument: str, context: RewardContext) -> Reward:
    return _scored(context.models_of(int(argument)), context)


def _require_night(argument: str) -> None:
    if not (argument.isascii() and argument.isdecimal() and 0 < int(argument[:12]) < 10**9):
        raise Refused(f"reward:NIGHT names a night by its number, not {argument[:40]!r}")


register(Source(MODELS, "the reward models that this night trains", _own, needs_models=True, trains_models=True))
register(
    Source(
        "reward", "the reward models of an earlier night", _earlier, "NIGHT", check=_require_night, needs_models=True
    )
)
