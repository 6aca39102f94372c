"""REINFORCE and RLOO: the policy writes replies and makes those likelier that score above a baseline.

Each batch of rollouts is used for one step, so the policy that learns is the one that wrote (arXiv 2402.14740). All
replies to a prompt share a row, and the gradient needs one pass. The KL from the reference, times beta, is subtracted
from the reward.
"""

from collections.abc import Sequence
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from feedback.records import methods
from training.algorithms.base import Method, Metrics, PolicyContext
from training.algorithms.registry import register
from training.loop.config import LearningRate
from training.loop.optim import apply_gradients, schedule, within_memory
from training.loop.state import TrainState
from training.losses import policy_gradient
from training.model.packing import together
from training.model.policy import Backbone
from training.rollouts.on_policy import PolicyConfig, PolicyTrainer, by_reward_models, measured, prompts_in
from training.rollouts.sampler import Rollout, token_values

FORGETTING = 0.9  # decay of REINFORCE's moving baseline: the share of it that a step keeps


class RlooConfig(PolicyConfig):
    """The settings of REINFORCE and RLOO."""

    replies: int = Field(4, ge=2, le=256, description="replies per prompt, compared with each other")
    learning_rate: LearningRate = 3e-4


class RlooTrainer(PolicyTrainer):
    """Takes one step per batch of rollouts; `moving_baseline`: REINFORCE's instead of the mean of a prompt's others."""

    moving_baseline = False

    def new_state(self, config: RlooConfig) -> TrainState:
        return TrainState.over(self.backbone.parameters(), config.learning_rate)

    def learn(
        self, state: TrainState, rollouts: Sequence[Rollout], scores: list[Tensor], config: RlooConfig
    ) -> Metrics:
        rows = [each.row for each in rollouts]

        # 1. the reference's log-probs, and the baseline
        references = token_values(self.backbone, rows, config.temperature, reference=True)
        baseline = None
        if self.moving_baseline:
            baseline = state.numbers.setdefault("baseline", float(torch.cat(scores).mean()))

        # 2. one gradient
        found = within_memory(state, partial(gradients, self.backbone, rollouts, scores, references, baseline, config))
        measured(state, found["kl"], config)  # of the policy that wrote, before it changes
        if baseline is not None:
            state.numbers["baseline"] = FORGETTING * baseline + (1 - FORGETTING) * found["reward"]

        # 3. one step
        rate = config.learning_rate * schedule(min(state.step, config.steps - 1), config.steps)
        return found | {"grad_norm": apply_gradients(state, found["loss"], rate)}


class ReinforceTrainer(RlooTrainer):
    """REINFORCE: RLOO with a moving baseline."""

    moving_baseline = True


def gradients(
    backbone: Backbone,
    rollouts: Sequence[Rollout],
    scores: list[Tensor],
    references: list[Tensor],
    baseline: float | None,
    config: RlooConfig,
    tokens_at_once: int,
) -> dict[str, float]:
    """Accumulate the gradient of the mean loss over replies; returns metrics. Without a baseline, as RLOO."""
    rows = [each.row for each in rollouts]
    replies, tokens = sum(len(row.replies) for row in rows), sum(row.reply_tokens for row in rows)
    total = kl = gap = rewarded = surprise = 0.0
    for group in together(rows, tokens_at_once):
        policies = backbone.each_token_of([rows[at] for at in group], temperature=config.temperature)
        loss = torch.zeros((), device=backbone.device)
        for at, policy in zip(group, policies, strict=True):
            apart = policy.detach() - references[at]
            rewards = scores[at].to(policy.device) - config.beta * rows[at].summed(apart)
            others = policy_gradient.rloo_advantages(rewards[None])[0]
            advantages = others if baseline is None else rewards - baseline
            loss = loss + policy_gradient.reinforce_loss(rows[at].summed(policy), advantages).sum()
            kl += float(apart.sum())
            gap += float((policy.detach().cpu() - rollouts[at].drawn).abs().sum())
            rewarded += float(rewards.sum())
            surprise -= float(policy.detach().sum())
        (loss / replies).backward()
        total += loss.item() / replies
    return {
        "loss": total,
        "reward": rewarded / replies,
        "kl": kl / tokens,
        "engine_gap": gap / tokens,
        "entropy": surprise / tokens,  # nats a token; unbiased, as of draws
    }


def build(trainer: type[RlooTrainer], context: PolicyContext, config: RlooConfig) -> RlooTrainer:
    """Make reward models, and the trainer of a policy by them. Raises `NothingFits` without a pair or prompt."""
    score = by_reward_models(context.reward_models(config), config.uncertainty_penalty)
    prompts = prompts_in(context.examples)
    return trainer(context.backbone, context.sampler, prompts, score, config, context.examples)


for facts, trainer in ((methods.RLOO, RlooTrainer), (methods.REINFORCE, ReinforceTrainer)):
    given = ("pairs", "ties", "thumbs")
    register(Method(facts, given, RlooConfig, partial(build, trainer), on_policy=True, needs=("pairs",)))
