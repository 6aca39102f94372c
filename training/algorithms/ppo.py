"""PPO, each detail as in arXiv 1909.08593 and 2403.17031: a clipped policy, a value model, a penalty for every token.

The value model is an adapter and a head on the same base. Rollouts are replies to prompts; a row holds all replies to
one of them, and a minibatch whole rows. Details by name, where they are not in `policy_gradient`:
- the value of a token is read where the token is predicted, after prompt and reply so far; its head begins at zero
- the temperature of the draws divides the logits of every log-prob
- Adam's epsilon is 1e-5, and the learning rate falls linearly to 0
- before the first update the policy is the one that wrote: ratios are 1, or the run stops
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from training.loop.config import require_sensible
from training.loop.optim import NotFinite, Report, Run, apply_gradients, within_memory
from training.losses import policy_gradient as ppo
from training.losses import preference
from training.model.packing import TOKENS_AT_ONCE, Row, pack, together
from training.model.policy import Backbone
from training.model.reward_heads import RewardModels
from training.rollouts.sampler import (
    Rollout,
    Sampler,
    Score,
    prompts_of,
    require_life,
    sampling_of,
    scored,
    token_values,
)
from training.rollouts.sign_check import RATE, require_right_sign

VALUE = "value"  # its adapter
EPSILON = 1e-5
# How far log-ratios may be from 0 where nothing has moved yet. In bf16 one token of thousands is off by half a nat, for
# its row stands in another pack by then; a mistake moves their mean.
APART = {torch.float32: ("largest_log_ratio", 1e-3), torch.bfloat16: ("mean_log_ratio", 0.1)}


@dataclass(frozen=True)
class Settings:
    """What a night of PPO may be told. Raises `Refused` on values that cannot be meant."""

    steps: int = 40  # batches of rollouts
    prompts: int = 8
    replies: int = 2
    max_completion_length: int = 64
    epochs: int = 4  # over a batch
    num_minibatches: int = 2
    temperature: float = 0.7
    clip_coef: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    gae_lambda: float = 0.95
    beta: float = 0.05  # of the penalty for every token's KL, at first
    adaptive_kl_target: float = 0.1  # nats a token; 0: beta stays
    kl_horizon: int = 10_000  # replies
    target_kl: float = 0.05  # approximate, of one batch's updates: beyond it its epochs end
    whiten_rewards: int = 0  # 1: their spread, not their mean
    value_from_reward: int = 0  # 1: the value model begins as the first reward model, not at zero
    ptx_coef: float = 0.0  # weight of the language-model loss on demonstrations (arXiv 2203.02155, eq. 2)
    require_eos: int = 1  # a reply that did not end by itself has its score replaced; 0: it keeps it
    missing_eos_penalty: float = 1.0  # by minus this
    uncertainty_penalty: float = 1.0
    ensemble_size: int = 3  # reward models
    learning_rate: float = 2e-4
    rank: int = 16
    alpha: int = 32
    kl_budget: float = 0.3
    max_length: int = 1024
    checkpoint_every: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        switches = ("whiten_rewards", "require_eos", "value_from_reward")
        weights = ("beta", "adaptive_kl_target", "ptx_coef", "uncertainty_penalty", "gamma", "gae_lambda", "vf_coef")
        require_sensible(self, (*switches, *weights, "seed"), may_be_negative=("missing_eos_penalty",))


class ValueHead(nn.Module):
    """A linear map from a hidden state to the value of going on from it, in fp32; zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, states: Tensor) -> Tensor:
        """(N,) values of hidden states (N, d)."""
        return states.float() @ self.weight + self.bias


@dataclass(frozen=True)
class Experience:
    """A batch of replies, R of at most T tokens, as they were when they were written; the mask is true at tokens."""

    rows: list[Row]
    mask: Tensor  # (R, T)
    log_probs: Tensor  # (R, T), as all that follow
    references: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def of(self, row: int) -> slice:
        """Which of the R replies are a row's."""
        start = sum(len(each.replies) for each in self.rows[:row])
        return slice(start, start + len(self.rows[row].replies))


def begin(backbone: Backbone, settings: Settings) -> tuple[ValueHead, Run]:
    """The value model at zero, its adapter on the backbone, and the state before the first step."""
    backbone.add(VALUE, settings.rank, settings.alpha, settings.seed + 1)
    head = ValueHead(backbone.head.shape[1]).to(backbone.device)
    return head, new_run(backbone, head, settings)


def begin_as_reward_model(backbone: Backbone, head: ValueHead, models: RewardModels) -> None:
    """Let the value model begin as the first reward model does, normalised: detail 22 of arXiv 2403.17031."""
    name, reward_head = next(iter(models.heads.items()))
    own = backbone.parameters(VALUE)
    with torch.no_grad():
        for key, each in backbone.parameters(name).items():
            own[key.replace(f".{name}.", f".{VALUE}.")].copy_(each)
        head.weight.copy_(reward_head.gain * reward_head.weight)
        head.bias.copy_(reward_head.gain * reward_head.bias + reward_head.shift)


def new_run(backbone: Backbone, head: ValueHead, settings: Settings) -> Run:
    """Policy and value model together, before a first step."""
    parameters = backbone.parameters() | backbone.parameters(VALUE)
    parameters |= {f"head.{name}": each for name, each in head.named_parameters()}
    return Run.over(parameters, settings.learning_rate, eps=EPSILON)


def train(
    backbone: Backbone,
    head: ValueHead,
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    score: Score,
    settings: Settings,
    run: Run,
    demonstrations: Sequence[Row] = (),
) -> Iterator[Report]:
    """Train policy and value model, going on from `run`, a batch of rollouts per item.

    Raises `NotFinite`, `SignFlipped` or `Collapsed`. It ends, and goes back, when the KL budget is spent.
    """
    if run.step == 0:
        trial = replace(settings, learning_rate=RATE)
        learn_once = partial(learn, backbone, head, settings=trial)
        require_right_sign(backbone, lambda: new_run(backbone, head, trial), learn_once)
    sampling = sampling_of(settings.temperature, settings.max_completion_length)
    for step in range(run.step, settings.steps):
        if run.ended:
            return
        began = time.monotonic()

        # 1. replies of the policy as it is, to the prompts of this step
        sampler.follow(backbone)
        chosen = prompts_of(step, prompts, settings.prompts, settings.seed)
        rollouts = sampler.write(chosen, settings.replies, sampling, settings.seed * 100_003 + step)
        rolled_out = time.monotonic()

        # 2. what they are worth
        scores = scored(score, rollouts, settings.missing_eos_penalty if settings.require_eos else None)
        require_life(run, rollouts, scores)

        # 3. some epochs over them
        metrics = learn(backbone, head, run, rollouts, scores, settings, demonstrations)

        # 4. a look at how far from the base the policy was that wrote them
        kl = metrics["kl"]
        if kl > settings.kl_budget:
            run.go_back()
            spent = f"{kl:.3f} nats per token from the base, where {settings.kl_budget:g} may be"
            run.ended = f"ended at step {run.step}, being {spent}"

        # 5. the report
        tokens = sum(each.row.reply_tokens for each in rollouts)
        metrics |= {
            "score": float(torch.cat(scores).mean()),
            "ended": sum(sum(each.ended) for each in rollouts) / sum(len(each.ended) for each in rollouts),
            "sampled_tokens": tokens / sum(len(each.ended) for each in rollouts),
            "rollout_s": rolled_out - began,
            "tokens_per_s": tokens / (time.monotonic() - began),
        }
        yield run.report(settings.steps, metrics, began)
    sampler.forget()


def learn(
    backbone: Backbone,
    head: ValueHead,
    run: Run,
    rollouts: Sequence[Rollout],
    scores: list[Tensor],
    settings: Settings,
    demonstrations: Sequence[Row] = (),
) -> dict[str, float]:
    """All epochs over one batch of rollouts; what was seen on the way."""
    beta = run.numbers.setdefault("beta", settings.beta)
    batch = experience(backbone, head, rollouts, scores, beta, settings)
    kl = float(ppo.masked_mean(batch.log_probs - batch.references, batch.mask))
    if kl <= settings.kl_budget:
        run.keep()
        run.numbers["kept_kl"] = kl
    rate = settings.learning_rate * (1 - min(run.step, settings.steps - 1) / settings.steps)
    order = torch.Generator().manual_seed(settings.seed * 100_003 + run.step)
    size = -(-len(batch.rows) // settings.num_minibatches)
    seen: list[dict[str, float]] = []
    for epoch in range(settings.epochs):
        shuffled = torch.randperm(len(batch.rows), generator=order).tolist()
        for start in range(0, len(shuffled), size):
            compute = partial(gradients, backbone, head, batch, shuffled[start : start + size], settings)
            found = within_memory(run, compute)
            if not seen:
                require_same_policy(found, backbone.head.dtype)
            if demonstrations and settings.ptx_coef:
                found["ptx_loss"] = imitate(backbone, demonstrations, size, run.step + epoch, settings.ptx_coef)
            found["grad_norm"] = apply_gradients(run, found["loss"], rate)
            seen.append(found)
        if seen[-1]["approx_kl"] > settings.target_kl:
            break
    run.step += 1
    run.numbers["kl"] = kl
    if settings.adaptive_kl_target:
        replies = len(batch.mask)
        run.numbers["beta"] = ppo.next_kl_coefficient(
            beta, kl, settings.adaptive_kl_target, replies, settings.kl_horizon
        )
    drawn = torch.cat([each.drawn for each in rollouts])
    means = {name: sum(each[name] for each in seen) / len(seen) for name in seen[0]}
    return means | {
        "kl": kl,
        "beta": beta,
        "updates": float(len(seen)),
        "explained_variance": float(ppo.explained_variance(batch.values, batch.returns, batch.mask)),
        "entropy": -float(ppo.masked_mean(batch.log_probs, batch.mask)),  # nats a token; of draws, so without bias
        "engine_gap": float((batch.log_probs[batch.mask].cpu() - drawn).abs().mean()),
    }


def experience(
    backbone: Backbone,
    head: ValueHead,
    rollouts: Sequence[Rollout],
    scores: list[Tensor],
    beta: float,
    settings: Settings,
) -> Experience:
    """Log-probs, values, advantages and returns of rollouts, by the policy and value model as they are."""
    rows = [each.row for each in rollouts]
    policy = token_values(backbone, rows, settings.temperature)
    reference = token_values(backbone, rows, settings.temperature, reference=True)
    with torch.no_grad():
        values = values_of(backbone, head, rows)
    mask = padded(rows, [torch.ones_like(each, dtype=torch.bool) for each in policy])
    log_probs, references, old_values = (padded(rows, each) for each in (policy, reference, values))
    rewards = ppo.token_rewards(torch.cat(scores).to(mask.device), log_probs, references, mask, beta)
    if settings.whiten_rewards:
        rewards = ppo.whiten(rewards, mask, shift_mean=False)
    advantages, returns = ppo.gae(rewards, old_values, mask, settings.gamma, settings.gae_lambda)
    return Experience(rows, mask, log_probs, references, old_values, ppo.whiten(advantages, mask), returns)


def gradients(
    backbone: Backbone,
    head: ValueHead,
    batch: Experience,
    rows: Sequence[int],
    settings: Settings,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> dict[str, float]:
    """Add up the gradient of a minibatch, the mean over its tokens; what was seen. A pack of rows at a time."""
    chosen = [batch.rows[at] for at in rows]
    tokens = sum(row.reply_tokens for row in chosen)
    names = ("loss", "policy_loss", "value_loss", "approx_kl", "clip_fraction", "mean_log_ratio")
    sums = dict.fromkeys(names, 0.0)
    largest = 0.0
    for group in together(chosen, tokens_at_once):
        own = [chosen[at] for at in group]
        replies = [number for at in group for number in _range(batch.of(rows[at]))]
        mask = batch.mask[replies]
        policy = padded(own, backbone.each_token_of(own, temperature=settings.temperature), mask.shape[1])
        values = padded(own, values_of(backbone, head, own), mask.shape[1])
        old = batch.log_probs[replies]
        policy_loss = ppo.ppo_policy_loss(policy, old, batch.advantages[replies], settings.clip_coef)[mask].sum()
        value_loss = ppo.ppo_value_loss(values, batch.values[replies], batch.returns[replies], settings.cliprange_value)
        value_loss = value_loss[mask].sum()
        loss = (policy_loss + settings.vf_coef * value_loss) / tokens
        loss.backward()
        with torch.no_grad():
            share = float(mask.sum()) / tokens
            sums["loss"] += loss.item()
            sums["policy_loss"] += policy_loss.item() / tokens
            sums["value_loss"] += value_loss.item() / tokens
            sums["approx_kl"] += share * ppo.approx_kl(policy, old, mask).item()
            sums["clip_fraction"] += share * ppo.clip_fraction(policy, old, mask, settings.clip_coef).item()
            apart = (policy - old)[mask].abs()
            sums["mean_log_ratio"] += apart.sum().item() / tokens
            largest = max(largest, float(apart.max()))
    return sums | {"largest_log_ratio": largest}


def require_same_policy(found: dict[str, float], dtype: torch.dtype) -> None:
    """Raise `NotFinite` unless the ratios of a first minibatch are 1, as far as the number format can tell."""
    name, most = APART[dtype]
    if not found[name] <= most:
        told = f"before the first update the {name.replace('_', ' ')} is {found[name]:.2g}, not 0"
        raise NotFinite(f"the policy is not the one that wrote: {told}")


def imitate(backbone: Backbone, demonstrations: Sequence[Row], count: int, step: int, weight: float) -> float:
    """Add up the gradient of the language-model loss on a few demonstrations (PPO-ptx); the loss."""
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
    """The value of every reply token's place, before it is written: (N,) for each row, a pack at a time."""
    found: list[Tensor] = [torch.zeros(0)] * len(rows)
    for group in together(rows, TOKENS_AT_ONCE):
        packed = pack([rows[at] for at in group]).to(backbone.device)
        with backbone.using(VALUE):
            states = backbone.states(packed).index_select(0, packed.predicted_at)
        for at, each in zip(group, head(states).split(packed.sizes), strict=True):
            found[at] = each
    return found


def padded(rows: Sequence[Row], values: Sequence[Tensor], width: int = 0) -> Tensor:
    """(N,) values of each row as (R, T) of all their replies, at least `width` wide; 0 behind a reply's end."""
    parts = [part for row, each in zip(rows, values, strict=True) for part in row.by_reply(each)]
    made = pad_sequence(parts, batch_first=True)
    return nn.functional.pad(made, (0, max(0, width - made.shape[1])))


def _range(of: slice) -> range:
    return range(of.start, of.stop)
