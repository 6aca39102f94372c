"""The training loop of all methods: steps, evaluations on the way, and early stopping.

What methods share is here; what differs is their `Trainer.step`.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from training.data.kl import KlFromBase
from training.data.tokenize import TokenizedExample
from training.loop.config import WatchedConfig
from training.loop.early_stopping import Watch, steps_between
from training.loop.optim import batch, schedule
from training.loop.state import TrainState
from training.model.policy import Backbone
from training.model.reference import References

Metrics = dict[str, float]


@dataclass(frozen=True)
class Report:
    """A step that was taken, of at most `steps`."""

    step: int
    steps: int
    metrics: Metrics
    eta_s: float


class Trainer(Protocol):
    """What a method gives to the loop. Subclasses inherit the defaults."""

    steps: int  # at most
    watch: Watch | None = None  # evaluates the KL from the base and the validation set; None: nothing does
    kl_budget: float = math.inf  # nats a token; beyond it training rolls back to the kept weights and ends
    warning: str = ""  # what people should know of the examples, in words

    def begin(self) -> TrainState:
        """The state before the first step."""
        raise NotImplementedError

    def prepare(self, state: TrainState) -> None:
        """Prepare the first step; not called again when training resumes from a checkpoint."""
        return

    def step(self, state: TrainState) -> Metrics:
        """Take one step and return its metrics; "tokens", if among them, becomes `tokens_per_s`.

        Raises `NotFinite`, and what the method raises.
        """
        raise NotImplementedError


def train(trainer: Trainer, state: TrainState) -> Iterator[Report]:
    """Train from `state` on, yielding a report per step. Raises what `Trainer.prepare` and `Trainer.step` raise."""
    if state.step == 0:
        trainer.prepare(state)
    while state.step < trainer.steps and not state.ended:
        began = time.monotonic()

        # 1. one step of the method
        metrics = trainer.step(state)
        state.step += 1

        # 2. the KL from the base and the validation gain
        last = state.step == trainer.steps
        if trainer.watch is not None:
            metrics |= trainer.watch.step_done(state, last)

        # 3. early stopping, back to the best weights
        state.ended = why_enough(trainer, state)
        if state.ended or (last and trainer.watch is not None):
            state.go_back()

        # 4. the report
        tokens, took_s = metrics.pop("tokens", None), time.monotonic() - began
        if tokens is not None:
            metrics["tokens_per_s"] = tokens / took_s
        state.took_s.append(took_s)
        left = trainer.steps - state.step
        yield Report(state.step, trainer.steps, metrics, sum(state.took_s) / len(state.took_s) * left)


def why_enough(trainer: Trainer, state: TrainState) -> str:
    """The reason why training ends at this step, in words; empty if it goes on."""
    if state.kl > trainer.kl_budget:
        spent = f"{state.kl:.3f} nats per token from the base, where {trainer.kl_budget:g} may be"
        return f"ended at step {state.step}, being {spent}"
    if trainer.watch is not None and state.evals_without_gain >= trainer.watch.patience:
        return f"ended at step {state.step}, as what was kept aside gained no more"
    return ""


class ExamplesTrainer(Trainer):
    """The base of trainers that go over examples by epochs: all but the step. Without `kl`, examples measure it."""

    def __init__(
        self,
        backbone: Backbone,
        examples: Sequence[TokenizedExample],
        config: WatchedConfig,
        validation: Sequence[TokenizedExample] = (),
        references: References | None = None,
        kl: KlFromBase | None = None,
    ) -> None:
        self.backbone, self.examples = backbone, examples
        self.learning_rate, self.batch_size, self.seed = config.learning_rate, config.batch_size, config.seed
        self.references = references or References(backbone)
        self.steps, self.kl_budget = config.count_steps(len(examples)), config.kl_budget
        self.watch = Watch(
            backbone,
            kl or KlFromBase(backbone, [], examples),
            self.kl_budget,
            steps_between(len(examples), config),
            config.patience,
            validation,
            self.references,
        )

    def begin(self) -> TrainState:
        """The initial state: the adapter as it is."""
        return TrainState.over(self.backbone.parameters(), self.learning_rate)

    def batch(self, step: int) -> list[TokenizedExample]:
        """The examples of a step: by epoch, in an order that the seed alone decides."""
        return [self.examples[at] for at in batch(len(self.examples), self.batch_size, step, self.seed)]

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then linearly down to 0 (`schedule`)."""
        return self.learning_rate * schedule(step, self.steps)
