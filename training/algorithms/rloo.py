"""REINFORCE and RLOO: the policy writes, is scored, and makes likelier what did better than the rest.

Each batch of rollouts teaches one step, so the policy that learns is the one that wrote (arXiv 2402.14740). All replies
to a prompt share a row, and the gradient needs one pass. The KL from the reference is taken off the reward.
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

FORGETTING = 0.9  # of REINFORCE's baseline: the share of it that a step leaves as it was


class RlooConfig(PolicyConfig):
    """What a night of REINFORCE or RLOO may be told."""

    replies: int = Field(4, ge=2, description="replies to each prompt, that are compared with each other")
    learning_rate: LearningRate = 3e-4


class RlooTrainer(PolicyTrainer):
    """Each batch of rollouts teaches one step; `moving_baseline`: REINFORCE's, for the mean of a prompt's others."""

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
        measured(state, found["kl"], config)  # the policy that wrote, before it moves
        if baseline is not None:
            state.numbers["baseline"] = FORGETTING * baseline + (1 - FORGETTING) * found["reward"]

        # 3. one step
        rate = config.learning_rate * schedule(min(state.step, config.steps - 1), config.steps)
        return found | {"grad_norm": apply_gradients(state, found["loss"], rate)}


class ReinforceTrainer(RlooTrainer):
    """RLOO with a moving baseline."""

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
    """Add up the gradient of all replies, the mean over them; what was seen. Without a baseline, RLOO's advantages."""
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
        "entropy": surprise / tokens,  # nats a token; of draws, so without bias
    }


def build(trainer: type[RlooTrainer], context: PolicyContext, config: RlooConfig) -> RlooTrainer:
    """Reward models, and the trainer of a policy that learns by them. Raises `NothingFits` without a pair or prompt."""
    score = by_reward_models(context.reward_models(config), config.uncertainty_penalty)
    prompts = prompts_in(context.examples)
    return trainer(context.backbone, context.sampler, prompts, score, config, context.examples)


for facts, trainer in ((methods.RLOO, RlooTrainer), (methods.REINFORCE, ReinforceTrainer)):
    register(Method(facts, ("pairs", "ties", "thumbs"), RlooConfig, partial(build, trainer), on_policy=True))
