"""REINFORCE and RLOO: the policy writes, is scored, and makes likelier what did better than the rest.

Each batch of rollouts teaches one step, so the policy that learns is the one that wrote (arXiv 2402.14740). All replies
to a prompt share a row, and the gradient needs one pass. The KL from the reference is taken off the reward.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from feedback.errors import Refused
from training.loop.config import require_sensible
from training.loop.optim import Report, Run, apply_gradients, schedule, within_memory
from training.losses import policy_gradient
from training.model.packing import together
from training.model.policy import Backbone
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

RLOO, REINFORCE = "rloo", "reinforce"
FORGETTING = 0.9  # of REINFORCE's baseline: the share of it that a step leaves as it was


@dataclass(frozen=True)
class Settings:
    """What a night of REINFORCE or RLOO may be told. Raises `Refused` on values that cannot be meant."""

    steps: int = 40
    prompts: int = 8  # a step
    replies: int = 4  # to each of them
    max_completion_length: int = 64
    temperature: float = 0.7  # of the draws, and of every log-prob: that of the chats
    beta: float = 0.05  # how much of the KL, in nats a reply, is taken off the score
    require_eos: int = 1  # a reply that did not end by itself has its score replaced; 0: it keeps it
    missing_eos_penalty: float = 1.0  # by minus this
    uncertainty_penalty: float = 1.0  # standard deviations of the reward models taken off their mean
    ensemble_size: int = 3  # reward models
    learning_rate: float = 3e-4
    rank: int = 16
    alpha: int = 32
    kl_budget: float = 0.3  # nats a token away from the base; beyond it training stops
    max_length: int = 1024
    checkpoint_every: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        require_sensible(
            self,
            may_be_zero=("beta", "uncertainty_penalty", "require_eos", "seed"),
            may_be_negative=("missing_eos_penalty",),
        )
        if self.replies < 2:
            raise Refused(f"replies must be at least 2, to compare them, not {self.replies}")


def begin(backbone: Backbone, settings: Settings) -> Run:
    """The state before the first step."""
    return Run.over(backbone.parameters(), settings.learning_rate)


def train(
    backbone: Backbone,
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    score: Score,
    settings: Settings,
    run: Run,
    method: str = RLOO,
) -> Iterator[Report]:
    """Train the policy, going on from `run`, a step per item. Raises `NotFinite`, `SignFlipped` or `Collapsed`.

    It ends, and goes back to the weights before, when the policy that writes is further from the base than budgeted.
    """
    if run.step == 0:
        trial = replace(settings, learning_rate=RATE)
        learn_once = partial(learn, backbone, settings=trial, method=method)
        require_right_sign(backbone, lambda: begin(backbone, trial), learn_once)
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

        # 3. one gradient, one step
        metrics = learn(backbone, run, rollouts, scores, settings=settings, method=method)

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
            "ended": sum(sum(each.ended) for each in rollouts) / (len(rollouts) * settings.replies),
            "sampled_tokens": tokens / (len(rollouts) * settings.replies),
            "rollout_s": rolled_out - began,
            "tokens_per_s": tokens / (time.monotonic() - began),
        }
        yield run.report(settings.steps, metrics, began)
    sampler.forget()


def learn(
    backbone: Backbone, run: Run, rollouts: Sequence[Rollout], scores: list[Tensor], settings: Settings, method: str
) -> dict[str, float]:
    """One optimiser step on rollouts of the present policy; what was seen on the way."""
    references = token_values(backbone, [each.row for each in rollouts], settings.temperature, reference=True)
    baseline = None if method == RLOO else run.numbers.setdefault("baseline", float(torch.cat(scores).mean()))
    compute = partial(gradients, backbone, rollouts, scores, references, baseline, settings)
    found = within_memory(run, compute)
    kl = found["kl"]
    run.numbers["kl"] = kl
    if kl <= settings.kl_budget:
        run.keep()  # of the policy that wrote, before it moves
        run.numbers["kept_kl"] = kl
    if baseline is not None:
        run.numbers["baseline"] = FORGETTING * baseline + (1 - FORGETTING) * found["reward"]
    rate = settings.learning_rate * schedule(min(run.step, settings.steps - 1), settings.steps)
    norm = apply_gradients(run, found["loss"], rate)
    run.step += 1
    return found | {"grad_norm": norm}


def gradients(
    backbone: Backbone,
    rollouts: Sequence[Rollout],
    scores: list[Tensor],
    references: list[Tensor],
    baseline: float | None,
    settings: Settings,
    tokens_at_once: int,
) -> dict[str, float]:
    """Add up the gradient of all replies, the mean over them; what was seen. Without a baseline, RLOO's advantages."""
    rows = [each.row for each in rollouts]
    replies, tokens = sum(len(row.replies) for row in rows), sum(row.reply_tokens for row in rows)
    total = kl = gap = rewarded = surprise = 0.0
    for group in together(rows, tokens_at_once):
        policies = backbone.each_token_of([rows[at] for at in group], temperature=settings.temperature)
        loss = torch.zeros((), device=backbone.device)
        for at, policy in zip(group, policies, strict=True):
            apart = policy.detach() - references[at]
            rewards = scores[at].to(policy.device) - settings.beta * rows[at].summed(apart)
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
