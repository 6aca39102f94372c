"""REINFORCE and RLOO: the policy writes replies and makes those likelier that score above a baseline.

By default each batch of rollouts is used for one step, so the policy that learns is the one that wrote (arXiv
2402.14740), and the KL from the reference, times beta, is subtracted from the reward. All replies to a prompt share a
row, and the gradient needs one pass. GRPO (arXiv 2402.03300), Dr. GRPO (2503.20783) and DAPO (2503.14476) are other
values of the settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from feedback.records import methods
from training.algorithms.base import Method, Metrics, PolicyContext
from training.algorithms.registry import register
from training.algorithms.reward_model import LEARNED, NEEDED
from training.loop.config import LearningRate
from training.loop.optim import apply_gradients, schedule, within_memory
from training.loop.state import TrainState
from training.losses import policy_gradient
from training.model.packing import Row, together
from training.model.policy import Backbone
from training.rollouts.on_policy import (
    PolicyConfig,
    PolicyTrainer,
    prompts_in,
    require_near,
)
from training.rollouts.sampler import Rollout, token_values

FORGETTING = 0.9  # decay of REINFORCE's moving baseline: the share of it that a step keeps


class ReinforceConfig(PolicyConfig):
    """The settings of REINFORCE, which are also RLOO's."""

    replies: int = Field(4, ge=2, le=256, description="replies per prompt, compared with each other")
    learning_rate: LearningRate = 3e-4
    epochs: int = Field(1, ge=1, le=64, description="passes over each batch of rollouts")
    clip_coef: float = Field(0.2, ge=0.001, le=0.999, description="lower clip range of the probability ratio, below 1")
    clip_high: float = Field(0.28, ge=0.001, le=1000, description="upper clip range of the probability ratio, above 1")
    normalise: Literal["sequence", "reply", "token", "constant"] = Field(
        "sequence",
        description="the mean is over replies of summed log-probs (sequence) or of means (reply: GRPO), over the "
        "batch's tokens (token: DAPO), or as sequence, divided by a reply's most tokens (constant: Dr. GRPO)",
    )
    kl_in: Literal["reward", "loss"] = Field(
        "reward", description="where the KL penalty is: subtracted from a reply's reward, or a term of the loss (GRPO)"
    )


class RlooConfig(ReinforceConfig):
    """The settings of RLOO, and of its relatives GRPO, Dr. GRPO and DAPO, which are some of them."""

    advantage: Literal["rloo", "group"] = Field(
        "rloo", description="baseline of a reply: the mean of the prompt's other replies, or of all (group: GRPO)"
    )
    scale: Literal["none", "group", "batch"] = Field(
        "none", description="advantages are divided by the rewards' standard deviation, of the prompt or of the batch"
    )
    redraws: int = Field(
        0, ge=0, le=16, description="times that replies are drawn again where all of a prompt score the same (DAPO)"
    )


@dataclass(frozen=True)
class Batch:
    """A batch of rollouts, and what is known of the policy that wrote it. Tensors are (N,) over a row's tokens."""

    rollouts: Sequence[Rollout]
    scores: Sequence[Tensor]  # (K,) of each row's replies
    kept: Sequence[Tensor]  # (K,) whether a reply is learned from
    references: Sequence[Tensor]
    old: Sequence[Tensor] | None = None  # log-probs of the policy that wrote; None: it is the current one
    baseline: float | None = None  # None: each prompt has its own

    @property
    def rows(self) -> list[Row]:
        return [each.row for each in self.rollouts]

    def drawn(self, at: int, old: Tensor) -> Tensor:
        """(N,) log-probs of a row's tokens as the engine drew them; without an engine, `old`."""
        drawn = self.rollouts[at].drawn
        return old if drawn is None else drawn.to(old)

    def rewards(self, at: int, old: Tensor, config: ReinforceConfig) -> Tensor:
        """(K,) rewards of a row's replies, whose log-probs are `old`."""
        scores = self.scores[at].to(old.device)
        if config.kl_in == "loss":
            return scores
        return scores - config.beta * self.rows[at].summed(old - self.references[at])

    def advantages(self, at: int, old: Tensor, config: Any) -> Tensor:
        """(K,) advantages of a row's replies; without a `baseline`, by a `RlooConfig`."""
        rewards = self.rewards(at, old, config)
        if self.baseline is not None:
            return rewards - self.baseline
        centred = policy_gradient.rloo_advantages if config.advantage == "rloo" else policy_gradient.group_advantages
        advantages = centred(rewards[None])
        if config.scale == "group":
            advantages = policy_gradient.scaled_advantages(advantages, rewards[None], of_batch=False)
        if config.scale == "batch":
            assert self.old is not None
            every = torch.stack([self.rewards(each, of, config) for each, of in enumerate(self.old)])
            advantages = policy_gradient.scaled_advantages(advantages, every, of_batch=True)
        return advantages[0]

    def weights(self, config: ReinforceConfig) -> list[Tensor]:
        """(K,) for each row: the weight of every token of a reply in the loss."""
        tokens = torch.tensor([len(reply) for row in self.rows for reply in row.replies])
        kept, longest = torch.cat(list(self.kept)), max(1, config.max_completion_length)
        weights = policy_gradient.reply_weights(tokens, kept, config.normalise, longest)
        return list(weights.split([len(row.replies) for row in self.rows]))


class RlooTrainer(PolicyTrainer):
    """Takes a step for each pass over a batch of rollouts; `moving_baseline`: REINFORCE's, not the prompt's own."""

    moving_baseline = False

    def new_state(self, config: ReinforceConfig) -> TrainState:
        return TrainState.over(self.backbone.parameters(), config.learning_rate)

    def learn(
        self, state: TrainState, rollouts: Sequence[Rollout], scores: list[Tensor], config: ReinforceConfig
    ) -> Metrics:
        rows = [each.row for each in rollouts]

        # 1. the reference's log-probs, the baseline, and the policy's own log-probs where one pass does not do
        references = token_values(self.backbone, rows, config.temperature, reference=True)
        baseline = None
        if self.moving_baseline:
            baseline = state.numbers.setdefault("baseline", float(torch.cat(scores).mean()))
        passes = config.epochs > 1 or getattr(config, "scale", "none") == "batch"
        old = token_values(self.backbone, rows, config.temperature) if passes else None
        given = Batch(rollouts, scores, self.learned_from(rollouts, config), references, old, baseline)

        # 2. passes of one gradient and one step each
        rate = config.learning_rate * schedule(min(state.step, config.steps - 1), config.steps)
        seen: list[Metrics] = []
        for _ in range(config.epochs):
            found = within_memory(state, partial(gradients, self.backbone, given, config))
            if not seen:
                require_near(found["engine_gap"])
            seen.append(found | {"grad_norm": apply_gradients(state, found["loss"], rate)})
        if baseline is not None:
            state.numbers["baseline"] = FORGETTING * baseline + (1 - FORGETTING) * seen[0]["reward"]
        return seen[0] | {"clip_fraction": seen[-1]["clip_fraction"]}


class ReinforceTrainer(RlooTrainer):
    """REINFORCE: RLOO with a moving baseline."""

    moving_baseline = True


def gradients(backbone: Backbone, batch: Batch, config: ReinforceConfig, tokens_at_once: int) -> dict[str, float]:
    """Accumulate the gradient of the mean loss over replies, a pack of rows at a time; returns metrics."""
    rows, weights = batch.rows, batch.weights(config)
    replies, tokens = sum(len(row.replies) for row in rows), sum(row.reply_tokens for row in rows)
    sums = dict.fromkeys(("loss", "reward", "rollout_kl", "engine_gap", "entropy", "clip_fraction"), 0.0)
    for group in together(rows, tokens_at_once):
        policies = backbone.each_token_of([rows[at] for at in group], temperature=config.temperature)
        total = torch.zeros((), device=backbone.device)
        for at, policy in zip(group, policies, strict=True):
            old = policy.detach() if batch.old is None else batch.old[at]
            drawn = batch.drawn(at, old)
            lengths = torch.tensor([len(reply) for reply in rows[at].replies], device=policy.device)
            advantages = batch.advantages(at, old, config).repeat_interleave(lengths)
            losses = policy_gradient.ppo_policy_loss(policy, old, advantages, config.clip_coef, config.clip_high)
            losses = losses * policy_gradient.importance_weights(old, drawn)
            if config.kl_in == "loss":
                # Times the ratio, its gradient is that of the KL (arXiv 2512.02556, section 3.1).
                losses = losses + config.beta * (policy - old).exp() * policy_gradient.k3(policy, batch.references[at])
            total = total + (weights[at].to(losses) * rows[at].summed(losses)).sum()
            with torch.no_grad():
                ratio = (policy - old).exp()
                clipped = (ratio < 1 - config.clip_coef) | (ratio > 1 + config.clip_high)
                sums["rollout_kl"] += float((old - batch.references[at]).sum()) / tokens  # k1: unbiased, as of draws
                sums["engine_gap"] += float((old - drawn).abs().sum()) / tokens
                sums["entropy"] -= float(old.sum()) / tokens  # nats a token; unbiased, as of draws
                sums["reward"] += float(batch.rewards(at, old, config).sum()) / replies
                sums["clip_fraction"] += float(clipped.sum()) / tokens
        total.backward()
        sums["loss"] += total.item()
    return sums


def build(trainer: type[RlooTrainer], context: PolicyContext, config: ReinforceConfig) -> RlooTrainer:
    """The trainer of a policy by the rewards of a config. Raises as `scored_by`, and `NothingFits` without a prompt."""
    prompts = prompts_in(context.examples)
    score, config = context.scored_by(config)
    return trainer(context.backbone, context.sampler, prompts, score, config, context.kl)


for facts, trainer, config in (
    (methods.RLOO, RlooTrainer, RlooConfig),
    (methods.REINFORCE, ReinforceTrainer, ReinforceConfig),
):
    register(Method(facts, LEARNED, config, partial(build, trainer), on_policy=True, needs=NEEDED, needs_contrast=True))
