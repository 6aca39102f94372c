"""What on-policy methods share: rollouts, their scores, and the settings of both."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from feedback.errors import Refused
from training.data.kl import KlFromBase
from training.data.tokenize import NothingFits, TokenizedExample
from training.loop.config import MOST_MODELS, SERVES, CheckpointEvery, Config, KlBudget, Weight
from training.loop.early_stopping import Watch
from training.loop.loop import Metrics, Trainer
from training.loop.optim import NotFinite
from training.loop.state import TrainState
from training.model.policy import Backbone
from training.rewards import mixing, registry
from training.rollouts.sampler import Rollout, Sampler, Score, prompts_of, require_life, sampling_of, scored
from training.rollouts.sign_check import RATE, require_kl_sign, require_right_sign

MOST_AT_ONCE, MOST_SAMPLED = 1_000_000, 100_000_000  # tokens
REDRAWN = 50_021  # between the seeds of one attempt and the next
LONGEST = 256  # tokens of a sampled reply, where the ledger's median decides
SHORTEST = 16
ENDS = 0.8  # the share of its replies that the reference must end by itself, for a missing end to be a fault
MOST_APART = 0.1  # nats a token, mean, between the engine's and the trainer's log-probs of what the engine drew


class PolicyConfig(Config):
    """The settings of on-policy methods, which learn from their own replies by reward models."""

    # PPO starts from SFT in arXiv 2203.02155, and each week's from the last week's in 2204.05862, section 6.
    start_from: str = Field(
        SERVES,
        max_length=200,
        description="adapter that training begins from; serving: what serves, if its KL leaves room; empty: none",
    )
    steps: int = Field(40, ge=1, le=10_000, description="batches of rollouts")
    prompts: int = Field(8, ge=1, le=512, description="prompts per step")
    replies: int = Field(2, ge=1, le=256, description="replies per prompt")
    max_completion_length: int = Field(
        0, ge=0, le=8192, description=f"most tokens of a sampled reply; 0: the ledger's median reply, at most {LONGEST}"
    )
    temperature: float = Field(
        0.7, ge=0.05, le=2, description="sampling temperature, as in chats; log-probs are taken at it, too"
    )
    beta: Weight = Field(0.05, description="weight of the KL penalty against the reference")
    truncated: Literal["auto", "mask", "replace", "keep"] = Field(
        "auto",
        description="replies cut at the most tokens are not learned from (mask), or their score is replaced, or kept; "
        f"auto: replaced where the reference ends {ENDS:.0%} of its replies by itself, else masked",
    )
    missing_eos_penalty: float = Field(
        1.0, ge=-1000, le=1000, description="where it is replaced, the score is minus this"
    )
    rewards: str = Field(
        registry.MODELS,
        max_length=500,
        description="sources of reward, NAME or NAME:ARGUMENT, several by commas and weighted as NAME=WEIGHT; "
        "docs/methods.md lists them",
    )
    uncertainty_penalty: Weight = Field(1.0, description="ensemble deviations subtracted from the mean score")
    least_reward_accuracy: float = Field(
        0.5,
        ge=0,
        le=1,
        description="a policy learns by reward models whose held-out accuracy is surely (95 %) above this; 0: by any",
    )
    ensemble_size: int = Field(3, ge=1, le=MOST_MODELS, description="reward models in the ensemble")
    kl_budget: KlBudget = 0.3
    checkpoint_every: CheckpointEvery = 5

    @property
    def trains_models(self) -> bool:
        return registry.trains_models(self.rewards)

    def require_usable(self, folder: Path) -> None:
        mixing.require_usable(registry.asked(self.rewards), folder)

    @model_validator(mode="after")
    def _require_sources(self) -> Self:
        """Raise `Refused` if no reward can be made of `rewards`."""
        registry.asked(self.rewards)
        return self

    @model_validator(mode="after")
    def _require_room(self) -> Self:
        """Raise `Refused` if a step, or all of them, might sample more tokens than memory or a lifetime holds."""
        of_step = self.prompts * self.replies * (self.max_completion_length or LONGEST)
        for most, tokens, what in (
            (MOST_AT_ONCE, of_step, "a step, prompts x replies x max_completion_length,"),
            (MOST_SAMPLED, of_step * self.steps, "all steps"),
        ):
            if tokens > most:
                raise Refused(f"{what} may take {most:,} sampled tokens at most, and these settings make {tokens:,}")
        return self


SomePolicy = TypeVar("SomePolicy", bound=PolicyConfig)


class PolicyTrainer(Trainer):
    """The base of trainers of a policy on its own replies; `learn` is what a method does with them."""

    has_kl_penalty = True  # whether `beta` weighs one against rewards

    def __init__(
        self,
        backbone: Backbone,
        sampler: Sampler,
        prompts: Sequence[Sequence[int]],
        score: Score,
        config: Any,
        kl: KlFromBase | None = None,
    ) -> None:
        self.backbone, self.sampler, self.prompts, self.score, self.config = backbone, sampler, prompts, score, config
        self.steps, self.kl_budget = config.steps, config.kl_budget
        # Beside the rollouts of a step, an evaluation takes no time.
        self.watch = Watch(backbone, kl, self.kl_budget, every=1) if kl else None
        self.trial = config.model_copy(update={"learning_rate": RATE})  # the config of the sign check

    def begin(self) -> TrainState:
        """The initial state of the policy and of what is trained with it, kept in case no step is within the budget."""
        state = self.new_state(self.config)
        state.keep()
        return state

    def new_state(self, config: Any) -> TrainState:
        """The initial state by this config, which is the trainer's own or the trial's."""
        raise NotImplementedError

    def learn(self, state: TrainState, rollouts: Sequence[Rollout], scores: list[Tensor], config: Any) -> Metrics:
        """Learn from a batch of rollouts of the current policy."""
        raise NotImplementedError

    def prepare(self, state: TrainState) -> None:
        """Run the sign canary. Raises `SignFlipped` if the method would move away from what is rewarded.

        Or, where it has a KL penalty, from its reference.
        """
        require_right_sign(self.backbone, self.new_state(self.trial), partial(self.learn, config=self.trial))
        if self.has_kl_penalty and self.trial.beta > 0:
            strict = self.trial.model_copy(update={"beta": 1.0})
            require_kl_sign(self.backbone, self.new_state(strict), partial(self.learn, config=strict))

    def step(self, state: TrainState) -> Metrics:
        """Sample, score and learn from one batch of rollouts. Raises `NotFinite` or `Collapsed`."""
        config, began = self.config, time.monotonic()

        # 1. replies of the current policy to the prompts of this step, and their scores
        self.sampler.follow(self.backbone)
        chosen = prompts_of(state.step, self.prompts, config.prompts, config.seed)
        seed = config.seed * 100_003 + state.step
        rollouts, scores = self.drawn(chosen, seed)
        redrawn = self.redraw(rollouts, scores, seed)
        rollout_s = time.monotonic() - began
        require_life(state, rollouts, scores)

        # 2. the method learns from them
        metrics = self.learn(state, rollouts, scores, config)

        # 3. metrics
        tokens, replies = sum(each.row.reply_tokens for each in rollouts), len(rollouts) * config.replies
        return metrics | {
            "score": float(torch.cat(scores).mean()),
            "ended": sum(sum(each.ended) for each in rollouts) / replies,
            "learned_from": float(torch.cat(self.learned_from(rollouts, config)).float().mean()),
            "no_spread": sum(not spread(each) for each in scores) / len(scores),
            "redrawn": float(redrawn),
            "sampled_tokens": tokens / replies,
            "rollout_s": rollout_s,
            "tokens": tokens,
        }

    def drawn(self, prompts: Sequence[Sequence[int]], seed: int) -> tuple[list[Rollout], list[Tensor]]:
        """Replies of the current policy to some prompts, and their scores."""
        config = self.config
        sampling = sampling_of(config.temperature, config.max_completion_length)
        rollouts = self.sampler.write(prompts, config.replies, sampling, seed)
        return rollouts, scored(
            self.score, rollouts, config.missing_eos_penalty if config.truncated == "replace" else None
        )

    def redraw(self, rollouts: list[Rollout], scores: list[Tensor], seed: int) -> int:
        """Draw the replies of prompts anew where all score the same, in place, as often as configured.

        Returns the number of prompts drawn anew: section 3.2 of arXiv 2503.14476.
        """
        count = 0
        for attempt in range(1, getattr(self.config, "redraws", 0) + 1):
            flat = [at for at, each in enumerate(scores) if not spread(each)]
            if not flat:
                break
            again = self.drawn([rollouts[at].row.prompt_ids for at in flat], seed + attempt * REDRAWN)
            for at, rollout, score in zip(flat, *again, strict=True):
                rollouts[at], scores[at] = rollout, score
            count += len(flat)
        return count

    def learned_from(self, rollouts: Sequence[Rollout], config: Any) -> list[Tensor]:
        """Whether each reply is learned from: (K,) for each rollout."""
        ended = [torch.tensor(each.ended) for each in rollouts]
        return ended if config.truncated == "mask" else [torch.ones_like(each) for each in ended]


def settled(config: SomePolicy, examples: Sequence[TokenizedExample]) -> SomePolicy:
    """The config with the most tokens of a reply decided: the median of the replies that people judged."""
    return config.model_copy(update={"max_completion_length": config.max_completion_length or usual_length(examples)})


def usual_length(examples: Sequence[TokenizedExample]) -> int:
    """The median number of tokens of the replies that people judged, within bounds."""
    lengths = [len(reply) for example in examples for reply in example.own_row().replies]
    return min(max(round(median(lengths)) if lengths else 0, SHORTEST), LONGEST)


def with_ends(config: SomePolicy, ends: float) -> SomePolicy:
    """The config with the treatment of truncated replies decided; `ends`: the share that the reference ends itself."""
    if config.truncated != "auto":
        return config
    return config.model_copy(update={"truncated": "replace" if ends >= ENDS else "mask"})


def spread(scores: Tensor) -> bool:
    """Whether the scores (K,) of a prompt's replies differ, so that it teaches anything."""
    return bool(scores.max() - scores.min() > 1e-6)


def require_near(gap: float) -> None:
    """Raise `NotFinite` if engine and trainer compute too different log-probs for the same tokens."""
    if gap > MOST_APART:
        way_out = "train with --set precision=float32"
        raise NotFinite(
            f"the engine and the trainer are {gap:.2f} nats a token apart, where {MOST_APART} may be; {way_out}"
        )


def prompts_in(examples: Sequence[TokenizedExample]) -> list[list[int]]:
    """The prompts of examples, each once. Raises `NothingFits` if there are none."""
    found = [list(each) for each in dict.fromkeys(tuple(each.prompt_ids) for each in examples)]
    if not found:
        raise NothingFits("there is no prompt to write to yet")
    return found
