"""PPO, each detail as in arXiv 1909.08593 and 2403.17031: a clipped policy, a value model, a KL penalty on every token.

The value model is an adapter and a head on the same base. A row holds all replies to one prompt, and a minibatch
consists of whole rows. Details that are not in `policy_gradient`:
- the value of a token is read where the token is predicted, after prompt and reply so far; its head begins at zero
- the sampling temperature divides the logits of every log-prob
- Adam's epsilon is 1e-5, and the learning rate falls linearly to 0
- policy and value model share one learning rate and one clip of the gradient norm
- before the first update the policy must be the one that wrote: ratios are 1, or the run stops
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from feedback.errors import Refused
from feedback.records import methods
from training.algorithms.base import Method, Metrics, PolicyContext
from training.algorithms.registry import register
from training.algorithms.reward_model import LEARNED, NEEDED
from training.loop.config import Switch, Weight
from training.loop.optim import NotFinite, apply_gradients, within_memory
from training.loop.state import TrainState
from training.losses import policy_gradient as ppo
from training.losses import preference
from training.model.packing import TOKENS_AT_ONCE, Row, pack, together
from training.model.policy import TRAINED, Backbone
from training.model.reward_heads import RewardModels
from training.rollouts.on_policy import (
    PolicyConfig,
    PolicyTrainer,
    prompts_in,
    require_near,
)
from training.rollouts.sampler import Rollout, token_values

VALUE = "value"  # the value model's adapter
EPSILON = 1e-5
# Steps of the beta controller's horizon: beta moves by at most 2 % a step, and so by more than twice in 40. The 10,000
# replies of arXiv 1909.08593 are for runs of a million; a night of some hundreds would leave beta where it is.
HORIZON = 10
# How far log-ratios may be from 0 before the first update. In bf16 one token in thousands is off by half a nat, as its
# row is in another pack by then; a mistake would move their mean.
APART = {torch.float32: ("largest_log_ratio", 1e-3), torch.bfloat16: ("mean_log_ratio", 0.1)}


class PpoConfig(PolicyConfig):
    """The settings of PPO."""

    epochs: int = Field(4, ge=1, le=1000, description="passes over each batch of rollouts")
    num_minibatches: int = Field(2, ge=1, le=1000, description="optimiser steps per epoch")
    clip_coef: float = Field(0.2, gt=0, le=1e9, description="clip range of the probability ratio around 1")
    cliprange_value: float = Field(
        0.2, gt=0, le=1000, description="clip range of a value around its value at the rollout"
    )
    vf_coef: Weight = Field(0.1, description="weight of the value loss")
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    adaptive_kl_target: float = Field(
        0.1, ge=0, le=1000, description="rollout_kl that beta is steered to, in nats per token; 0: beta stays"
    )
    kl_horizon: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description=f"horizon of the beta controller, in replies; 0: those of {HORIZON} steps",
    )
    target_kl: float = Field(
        0.05, gt=0, le=1000, description="approximate KL at which the passes over a batch stop early"
    )
    whiten_rewards: Switch = Field(
        0, description="1: rewards are divided by their standard deviation, keeping their mean"
    )
    value_from_reward: Switch = Field(0, description="1: the value model starts as the first reward model, not at 0")
    ptx_coef: Weight = Field(0.0, description="weight of the loss on demonstrations (arXiv 2203.02155, eq. 2)")

    @model_validator(mode="after")
    def _decide_horizon(self) -> Self:
        """Put the horizon of a night in the place of 0. Raises `Refused` on one so short that beta might jump."""
        of_step = self.prompts * self.replies
        if 0 < self.kl_horizon < of_step and self.adaptive_kl_target:
            raise Refused(f"kl_horizon is 0 or at least the {of_step:,} replies of a step, not {self.kl_horizon:,}")
        object.__setattr__(self, "kl_horizon", self.kl_horizon or HORIZON * of_step)
        return self


class ValueHead(nn.Module):
    """A linear map from a hidden state to its value, in fp32; initialised to zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, states: Tensor) -> Tensor:
        """(N,) values of hidden states (N, d)."""
        return states.float() @ self.weight + self.bias


@dataclass(frozen=True)
class Experience:
    """A batch of R replies of at most T tokens, as of when they were sampled; the mask is true at tokens."""

    rows: list[Row]
    mask: Tensor  # (R, T)
    learned: Tensor  # (R, T) the mask without the replies that are not learned from
    log_probs: Tensor  # (R, T), as all that follow
    references: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def of(self, row: int) -> slice:
        """The slice of the R replies that are a row's."""
        start = sum(len(each.replies) for each in self.rows[:row])
        return slice(start, start + len(self.rows[row].replies))


class PpoTrainer(PolicyTrainer):
    """Trains policy and value model together, for some epochs over each batch of rollouts."""

    def __init__(self, *given: Any, demonstrations: Sequence[Row] = (), value_like: str = TRAINED) -> None:
        """`value_like` names the adapter whose rank and alpha the value model's has."""
        super().__init__(*given)
        self.demonstrations = demonstrations
        self.trial = self.trial.model_copy(update={"ptx_coef": 0.0})  # checks the sign of scores alone
        self.backbone.add(VALUE, *self.backbone.rank_and_alpha(value_like), self.config.seed + 1)
        self.head = ValueHead(self.backbone.head.shape[1]).to(self.backbone.device)

    def new_state(self, config: PpoConfig) -> TrainState:
        parameters = self.backbone.parameters() | self.backbone.parameters(VALUE)
        parameters |= {f"head.{name}": each for name, each in self.head.named_parameters()}
        return TrainState.over(parameters, config.learning_rate, eps=EPSILON)

    def learn(self, state: TrainState, rollouts: Sequence[Rollout], scores: list[Tensor], config: PpoConfig) -> Metrics:
        # 1. advantages, and k1 on the rollouts: the policy that wrote from the base, at the sampling temperature
        beta = state.numbers.setdefault("beta", config.beta)
        batch = experience(
            self.backbone, self.head, rollouts, scores, beta, config, self.learned_from(rollouts, config)
        )
        about = seen_of(batch, rollouts)
        require_near(about["engine_gap"])
        kl = float(ppo.masked_mean(batch.log_probs - batch.references, batch.mask))

        # 2. epochs over minibatches, as long as the policy stays near the one that wrote
        seen: list[Metrics] = []
        order = torch.Generator().manual_seed(config.seed * 100_003 + state.step)
        for epoch in range(config.epochs):
            for rows in minibatches(len(batch.rows), config.num_minibatches, order):
                seen.append(self.update(state, batch, rows, epoch, config, first=not seen))
            if seen[-1]["approx_kl"] > config.target_kl:
                break

        # 3. the KL coefficient of the next batch
        if config.adaptive_kl_target:
            replies, target = len(batch.mask), config.adaptive_kl_target
            state.numbers["beta"] = ppo.next_kl_coefficient(beta, kl, target, replies, config.kl_horizon)
        means = {name: sum(each[name] for each in seen) / len(seen) for name in seen[0]}
        return means | about | {"rollout_kl": kl, "beta": beta, "updates": float(len(seen))}

    def update(
        self, state: TrainState, batch: Experience, rows: Sequence[int], epoch: int, config: PpoConfig, first: bool
    ) -> Metrics:
        """One optimiser step on a minibatch; `first`: the weights have not changed since the rollouts."""
        found = within_memory(state, partial(gradients, self.backbone, self.head, batch, rows, config))
        if first:
            require_same_policy(found, self.backbone.head.dtype)
        if self.demonstrations and config.ptx_coef:
            size = minibatch_size(len(batch.rows), config.num_minibatches)
            found["ptx_loss"] = imitate(self.backbone, self.demonstrations, size, state.step + epoch, config.ptx_coef)
        rate = config.learning_rate * (1 - min(state.step, config.steps - 1) / config.steps)
        return found | {"grad_norm": apply_gradients(state, found["loss"], rate)}


def minibatch_size(rows: int, minibatches: int) -> int:
    """The number of rows of every minibatch but the last."""
    return -(-rows // minibatches)


def minibatches(rows: int, count: int, order: torch.Generator) -> list[list[int]]:
    """The indices of all rows, shuffled and divided into minibatches."""
    shuffled, size = torch.randperm(rows, generator=order).tolist(), minibatch_size(rows, count)
    return [shuffled[start : start + size] for start in range(0, rows, size)]


def seen_of(batch: Experience, rollouts: Sequence[Rollout]) -> Metrics:
    """Metrics of policy, value model and engine on a batch of rollouts."""
    drawn = [each.drawn for each in rollouts if each.drawn is not None]
    gap = float((batch.log_probs[batch.mask].cpu() - torch.cat(drawn)).abs().mean()) if drawn else 0.0
    return {
        "explained_variance": float(ppo.explained_variance(batch.values, batch.returns, batch.learned)),
        "entropy": -float(ppo.masked_mean(batch.log_probs, batch.mask)),  # nats a token; unbiased, as of draws
        "engine_gap": gap,
    }


def begin_as_reward_model(backbone: Backbone, head: ValueHead, models: RewardModels) -> None:
    """Initialise the value model from the first reward model, normalised: detail 22 of arXiv 2403.17031.

    Both have one rank and alpha. A score is of the mean state of a reply's tokens and a value of a single state, so the
    value at the end of a reply is not its score, as it is in the paper.
    """
    name, reward_head = next(iter(models.heads.items()))
    own = backbone.parameters(VALUE)
    with torch.no_grad():
        for key, each in backbone.parameters(name).items():
            own[key.replace(f".{name}.", f".{VALUE}.")].copy_(each)
        head.weight.copy_(reward_head.gain * reward_head.weight)
        head.bias.copy_(reward_head.gain * reward_head.bias + reward_head.shift)


def experience(
    backbone: Backbone,
    head: ValueHead,
    rollouts: Sequence[Rollout],
    scores: list[Tensor],
    beta: float,
    config: PpoConfig,
    kept: Sequence[Tensor] | None = None,
) -> Experience:
    """Log-probs, values, advantages and returns of rollouts, under the current policy and value model.

    Learned from are the replies that are true in `kept`, (K,) for each rollout; None: all are.
    """
    rows = [each.row for each in rollouts]
    policy = token_values(backbone, rows, config.temperature)
    reference = token_values(backbone, rows, config.temperature, reference=True)
    with torch.no_grad():
        values = values_of(backbone, head, rows)
    mask = padded(rows, [torch.ones_like(each, dtype=torch.bool) for each in policy])
    log_probs, references, old_values = (padded(rows, each) for each in (policy, reference, values))
    rewards = ppo.token_rewards(torch.cat(scores).to(mask.device), log_probs, references, mask, beta)
    if config.whiten_rewards:
        rewards = ppo.whiten(rewards, mask, shift_mean=False)
    advantages, returns = ppo.gae(rewards, old_values, mask, config.gamma, config.gae_lambda)
    learned = mask if kept is None else mask & torch.cat(list(kept)).to(mask.device)[:, None]
    whitened = ppo.whiten(advantages, learned)
    return Experience(rows, mask, learned, log_probs, references, old_values, whitened, returns)


def gradients(
    backbone: Backbone,
    head: ValueHead,
    batch: Experience,
    rows: Sequence[int],
    config: PpoConfig,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> dict[str, float]:
    """Accumulate the gradient of a minibatch's mean loss over tokens, a pack of rows at a time; returns metrics."""
    chosen = [batch.rows[at] for at in rows]
    tokens = max(1, sum(int(batch.learned[batch.of(at)].sum()) for at in rows))
    names = ("loss", "policy_loss", "value_loss", "approx_kl", "clip_fraction", "mean_log_ratio")
    sums = dict.fromkeys(names, 0.0)
    largest = 0.0
    for group in together(chosen, tokens_at_once):
        own = [chosen[at] for at in group]
        replies = [number for at in group for number in _range(batch.of(rows[at]))]
        mask = batch.learned[replies]
        policy = padded(own, backbone.each_token_of(own, temperature=config.temperature), mask.shape[1])
        values = padded(own, values_of(backbone, head, own), mask.shape[1])
        old = batch.log_probs[replies]
        policy_loss = ppo.ppo_policy_loss(policy, old, batch.advantages[replies], config.clip_coef)[mask].sum()
        value_loss = ppo.ppo_value_loss(values, batch.values[replies], batch.returns[replies], config.cliprange_value)
        value_loss = value_loss[mask].sum()
        loss = (policy_loss + config.vf_coef * value_loss) / tokens
        loss.backward()
        with torch.no_grad():
            share = float(mask.sum()) / tokens
            sums["loss"] += loss.item()
            sums["policy_loss"] += policy_loss.item() / tokens
            sums["value_loss"] += value_loss.item() / tokens
            sums["approx_kl"] += share * ppo.approx_kl(policy, old, mask).item()
            sums["clip_fraction"] += share * ppo.clip_fraction(policy, old, mask, config.clip_coef).item()
            apart = (policy - old)[mask].abs()
            sums["mean_log_ratio"] += apart.sum().item() / tokens
            largest = max(largest, float(apart.max()) if len(apart) else 0.0)
    return sums | {"largest_log_ratio": largest}


def require_same_policy(found: dict[str, float], dtype: torch.dtype) -> None:
    """Raise `NotFinite` unless the ratios of a first minibatch are 1, as far as the number format can tell."""
    name, most = APART[dtype]
    if not found[name] <= most:
        told = f"before the first update the {name.replace('_', ' ')} is {found[name]:.2g}, not 0"
        raise NotFinite(f"the policy is not the one that wrote: {told}")


def imitate(backbone: Backbone, demonstrations: Sequence[Row], count: int, step: int, weight: float) -> float:
    """Accumulate the gradient of the language-model loss on a few demonstrations (PPO-ptx); returns the loss."""
    first = step * count
    rows = [demonstrations[at % len(demonstrations)] for at in range(first, first + count)]
    total = 0.0
    for group in together(rows, TOKENS_AT_ONCE):
        own = [rows[at] for at in group]
        found = torch.cat(backbone.log_probs_of(own))
        lengths = torch.tensor([len(reply) for row in own for reply in row.replies], device=found.device)
        loss = preference.nll_loss(found, lengths).sum() / len(rows)
        (weight * loss).backward()
        total += loss.item()
    return total


def values_of(backbone: Backbone, head: ValueHead, rows: Sequence[Row]) -> list[Tensor]:
    """The value at every reply token, before it is written: (N,) for each row, a pack at a time."""
    found: list[Tensor] = [torch.zeros(0)] * len(rows)
    for group in together(rows, TOKENS_AT_ONCE):
        packed = pack([rows[at] for at in group]).to(backbone.device)
        with backbone.using(VALUE):
            states = backbone.states(packed).index_select(0, packed.predicted_at)
        for at, each in zip(group, head(states).split(packed.sizes), strict=True):
            found[at] = each
    return found


def padded(rows: Sequence[Row], values: Sequence[Tensor], width: int = 0) -> Tensor:
    """Pad (N,) values of each row to (R, T) over all their replies, at least `width` wide; 0 after a reply's end."""
    parts = [part for row, each in zip(rows, values, strict=True) for part in row.by_reply(each)]
    made = pad_sequence(parts, batch_first=True)
    return nn.functional.pad(made, (0, max(0, width - made.shape[1])))


def _range(of: slice) -> range:
    return range(of.start, of.stop)


def build(context: PolicyContext, config: PpoConfig) -> PpoTrainer:
    """The trainer of a policy by the rewards of a config. Raises as `scored_by`, and `NothingFits` without a prompt."""
    prompts = prompts_in(context.examples)
    score, config = context.scored_by(config)
    shown = [each.row(0) for each in context.examples if each.kind == "demonstration"]
    given = (context.backbone, context.sampler, prompts, score, config, context.kl)
    if not config.value_from_reward:
        return PpoTrainer(*given, demonstrations=shown)
    ensemble = context.rewards(config).models()
    trainer = PpoTrainer(*given, demonstrations=shown, value_like=next(iter(ensemble.heads)))
    begin_as_reward_model(context.backbone, trainer.head, ensemble)
    return trainer


register(
    Method(
        methods.PPO, (*LEARNED, "demonstrations"), PpoConfig, build, on_policy=True, needs=NEEDED, needs_contrast=True
    )
)
