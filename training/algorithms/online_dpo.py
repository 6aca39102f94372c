"""Online DPO: the policy writes, the rewards choose between its own replies, and DPO learns from that choice.

As OAIF (arXiv 2402.04792): the replies to a prompt with the highest and the lowest score are its pair, and a batch of
rollouts makes one step. The reference is the base; log-probs are at the sampling temperature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

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
from training.losses import preference
from training.model.packing import Row, together
from training.model.policy import Backbone
from training.rollouts.on_policy import PolicyConfig, PolicyTrainer, prompts_in, require_near, spread
from training.rollouts.sampler import Rollout, token_values


class OnlineDpoConfig(PolicyConfig):
    """The settings of online DPO."""

    replies: int = Field(2, ge=2, le=256, description="replies per prompt; the best and the worst are the pair")
    beta: float = Field(0.1, ge=1e-4, le=100, description="strength of the pull towards the reference")
    learning_rate: LearningRate = 3e-4


@dataclass(frozen=True)
class Choice:
    """The pair that one rollout gives: where its replies are in the row, and how far their scores are apart."""

    chosen: int
    rejected: int
    gap: float


def chosen_by(scores: Tensor, kept: Tensor) -> Choice | None:
    """The best and the worst of the kept (K,) replies by score (K,); None without two that differ."""
    at = kept.nonzero()[:, 0]
    if len(at) < 2 or not spread(scores[at]):
        return None
    best, worst = int(at[scores[at].argmax()]), int(at[scores[at].argmin()])
    return Choice(best, worst, float(scores[best] - scores[worst]))


class OnlineDpoTrainer(PolicyTrainer):
    """Takes one step of DPO for each batch of rollouts."""

    has_kl_penalty = False  # it is in the loss of every pair

    def new_state(self, config: OnlineDpoConfig) -> TrainState:
        return TrainState.over(self.backbone.parameters(), config.learning_rate)

    def learn(
        self, state: TrainState, rollouts: Sequence[Rollout], scores: list[Tensor], config: OnlineDpoConfig
    ) -> Metrics:
        # 1. the reference's log-probs, and the pair of each prompt
        rows = [each.row for each in rollouts]
        references = token_values(self.backbone, rows, config.temperature, reference=True)
        kept = self.learned_from(rollouts, config)
        choices = [chosen_by(of_row, which) for of_row, which in zip(scores, kept, strict=True)]

        # 2. one gradient and one step
        compute = partial(gradients, self.backbone, rollouts, choices, references, config)
        found = within_memory(state, compute)
        require_near(found["engine_gap"])
        rate = config.learning_rate * schedule(min(state.step, config.steps - 1), config.steps)
        gaps = [each.gap for each in choices if each]
        chosen = {"pairs": float(len(gaps)), "score_gap": sum(gaps) / max(1, len(gaps))}
        return found | chosen | {"grad_norm": apply_gradients(state, found["loss"], rate)}


def gradients(
    backbone: Backbone,
    rollouts: Sequence[Rollout],
    choices: Sequence[Choice | None],
    references: Sequence[Tensor],
    config: OnlineDpoConfig,
    tokens_at_once: int,
) -> dict[str, float]:
    """Accumulate the gradient of the mean loss over the chosen pairs, a pack of rows at a time; returns metrics."""
    rows: list[Row] = [each.row for each in rollouts]
    pairs, tokens = max(1, sum(each is not None for each in choices)), sum(row.reply_tokens for row in rows)
    names = ("loss", "rewards/margins", "rewards/accuracies", "rollout_kl", "engine_gap", "entropy")
    sums = dict.fromkeys(names, 0.0)
    for group in together(rows, tokens_at_once):
        policies = backbone.each_token_of([rows[at] for at in group], temperature=config.temperature)
        total = torch.zeros((), device=backbone.device)
        for at, policy in zip(group, policies, strict=True):
            old, drawn = policy.detach(), rollouts[at].drawn
            sums["rollout_kl"] += float((old - references[at]).sum()) / tokens
            sums["entropy"] -= float(old.sum()) / tokens  # nats a token; unbiased, as of draws
            if drawn is not None:
                sums["engine_gap"] += float((old - drawn.to(old)).abs().sum()) / tokens
            choice = choices[at]
            if choice is None:
                continue
            moved = rows[at].summed(policy - references[at])
            margin = config.beta * (moved[choice.chosen] - moved[choice.rejected])
            total = total + preference.dpo_loss(margin) / pairs
            sums["rewards/margins"] += margin.item() / pairs
            sums["rewards/accuracies"] += float(margin.item() > 0) / pairs
        if total.requires_grad:
            total.backward()
        sums["loss"] += total.item()
    return sums


def build(context: PolicyContext, config: OnlineDpoConfig) -> OnlineDpoTrainer:
    """The trainer of a policy by the rewards of a config. Raises as `scored_by`, and `NothingFits` without a prompt."""
    prompts = prompts_in(context.examples)
    score, config = context.scored_by(config)
    return OnlineDpoTrainer(context.backbone, context.sampler, prompts, score, config, context.kl)


register(Method(methods.ONLINE_DPO, LEARNED, OnlineDpoConfig, build, on_policy=True, needs=NEEDED, needs_contrast=True))
