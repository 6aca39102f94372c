"""What on-policy methods share: rollouts, their scores, and the KL budget."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from feedback.errors import Refused
from training.data.tokenize import NothingFits, TokenizedExample
from training.loop.config import MOST_MODELS, CheckpointEvery, Config, KlBudget, Switch, Weight
from training.loop.early_stopping import KlFromBase
from training.loop.loop import Metrics, Trainer
from training.loop.state import TrainState
from training.model.policy import Backbone
from training.model.reward_heads import RewardModels
from training.rollouts.sampler import Rollout, Sampler, Score, prompts_of, require_life, sampling_of, scored
from training.rollouts.sign_check import RATE, require_right_sign

MOST_AT_ONCE, MOST_SAMPLED = 1_000_000, 100_000_000  # tokens


class PolicyConfig(Config):
    """The settings of on-policy methods, which learn from their own replies by reward models."""

    steps: int = Field(40, ge=1, le=10_000, description="batches of rollouts")
    prompts: int = Field(8, ge=1, le=2048, description="prompts per step")
    replies: int = Field(2, ge=1, le=256, description="replies per prompt")
    max_completion_length: int = Field(64, ge=1, le=8192, description="most tokens of a sampled reply")
    temperature: float = Field(
        0.7, ge=0.05, le=2, description="sampling temperature, as in chats; log-probs are taken at it, too"
    )
    beta: Weight = Field(0.05, description="weight of the KL penalty against the reference")
    require_eos: Switch = Field(1, description="1: the score of a reply without an end is replaced")
    missing_eos_penalty: float = Field(1.0, ge=-1000, le=1000, description="the score of such a reply is minus this")
    uncertainty_penalty: Weight = Field(1.0, description="ensemble deviations subtracted from the mean score")
    ensemble_size: int = Field(3, ge=1, le=MOST_MODELS, description="reward models in the ensemble")
    kl_budget: KlBudget = 0.3
    checkpoint_every: CheckpointEvery = 5

    @model_validator(mode="after")
    def _require_room(self) -> Self:
        """Raise `Refused` if a step, or all of them, might sample more tokens than memory or a lifetime holds."""
        of_step = self.prompts * self.replies * self.max_completion_length
        for most, tokens, what in (
            (MOST_AT_ONCE, of_step, "a step, prompts x replies x max_completion_length,"),
            (MOST_SAMPLED, of_step * self.steps, "all steps"),
        ):
            if tokens > most:
                raise Refused(f"{what} may take {most:,} sampled tokens at most, and these settings make {tokens:,}")
        return self


class PolicyTrainer(Trainer):
    """The base of trainers of a policy on its own replies; `learn` is what a method does with them."""

    def __init__(
        self,
        backbone: Backbone,
        sampler: Sampler,
        prompts: Sequence[Sequence[int]],
        score: Score,
        config: Any,
        examples: Sequence[TokenizedExample] = (),
    ) -> None:
        self.backbone, self.sampler, self.prompts, self.score, self.config = backbone, sampler, prompts, score, config
        self.examples = examples  # on whose replies `final_kl` is measured
        self.steps, self.kl_budget = config.steps, config.kl_budget
        self.trial = config.model_copy(update={"learning_rate": RATE})  # the config of the sign check

    def begin(self) -> TrainState:
        """The initial state of the policy and of what is trained with it."""
        return self.new_state(self.config)

    def new_state(self, config: Any) -> TrainState:
        """The initial state by this config, which is the trainer's own or the trial's."""
        raise NotImplementedError

    def learn(self, state: TrainState, rollouts: Sequence[Rollout], scores: list[Tensor], config: Any) -> Metrics:
        """Learn from a batch of rollouts of the current policy; an implementation must call `measured`."""
        raise NotImplementedError

    def prepare(self, state: TrainState) -> None:
        """Run the sign canary. Raises `SignFlipped` if the method would move away from what is rewarded."""
        require_right_sign(self.backbone, self.new_state(self.trial), partial(self.learn, config=self.trial))

    def step(self, state: TrainState) -> Metrics:
        """Sample, score and learn from one batch of rollouts. Raises `NotFinite` or `Collapsed`."""
        config, began = self.config, time.monotonic()

        # 1. replies of the current policy to the prompts of this step
        self.sampler.follow(self.backbone)
        chosen = prompts_of(state.step, self.prompts, config.prompts, config.seed)
        sampling = sampling_of(config.temperature, config.max_completion_length)
        rollouts = self.sampler.write(chosen, config.replies, sampling, config.seed * 100_003 + state.step)
        rollout_s = time.monotonic() - began

        # 2. their scores
        scores = scored(self.score, rollouts, config.missing_eos_penalty if config.require_eos else None)
        require_life(state, rollouts, scores)

        # 3. the method learns from them
        metrics = self.learn(state, rollouts, scores, config)

        # 4. metrics
        tokens, replies = sum(each.row.reply_tokens for each in rollouts), len(rollouts) * config.replies
        return metrics | {
            "score": float(torch.cat(scores).mean()),
            "ended": sum(sum(each.ended) for each in rollouts) / replies,
            "sampled_tokens": tokens / replies,
            "rollout_s": rollout_s,
            "tokens": tokens,
        }

    def final_kl(self, state: TrainState) -> float:
        """Measure the KL on examples; if it is beyond the budget, roll back to the kept weights and measure again."""
        kl = KlFromBase(self.backbone, self.examples)
        found = kl.measure()
        if found > self.kl_budget and state.kept is not None and not state.ended:
            state.go_back()
            state.ended = f"went back a step, having been {found:.3f} nats per token from the base"
            found = kl.measure()
        return found


def measured(state: TrainState, kl: float, config: PolicyConfig) -> None:
    """Record the KL from the base of the policy that wrote, and keep its weights if that is within the budget."""
    state.kl = kl
    if kl <= config.kl_budget:
        state.keep()


def prompts_in(examples: Sequence[TokenizedExample]) -> list[list[int]]:
    """The prompts of examples, each once. Raises `NothingFits` if there are none."""
    found = [list(each) for each in dict.fromkeys(tuple(each.prompt_ids) for each in examples)]
    if not found:
        raise NothingFits("there is no prompt to write to yet")
    return found


def by_reward_models(ensemble: RewardModels, uncertainty_penalty: float) -> Score:
    """Score replies by the ensemble's mean score minus `uncertainty_penalty` times its disagreement."""

    def score(rollouts: Sequence[Rollout]) -> list[Tensor]:
        with torch.no_grad():
            return ensemble.pessimistic([each.row for each in rollouts], uncertainty_penalty)

    return score
