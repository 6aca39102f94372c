"""Learning from demonstrations: replies that people wrote, or marked as good ones, are made likelier.

The first of the three stages of arXiv 2203.02155 (section 3.5). Every demonstration weighs as one, however long: its
loss is a mean over its tokens, the end of turn among them; a prompt's tokens teach nothing.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from training.data.tokenize import TokenizedExample
from training.loop import distributed
from training.loop.config import require_sensible
from training.loop.early_stopping import Progress, Watch
from training.loop.optim import Report, count_steps, take_step, within_memory
from training.loop.optim import batch as batch_of
from training.losses import preference
from training.model.packing import together
from training.model.policy import Backbone
from training.model.reference import References


@dataclass(frozen=True)
class Settings:
    """What a night of imitation may be told. Raises `Refused` on values that cannot be meant."""

    learning_rate: float = 2e-4
    epochs: int = 3  # at most: training ends when what is kept aside gains no more
    patience: int = 4  # looks without a gain before training ends
    min_steps: int = 12  # very few demonstrations are repeated
    batch_size: int = 8
    rank: int = 16
    alpha: int = 32
    kl_budget: float = 0.3  # nats per reply token away from the base; beyond it training stops
    evals_per_epoch: int = 4  # an epoch, at the distance from the base and at what is kept aside
    max_length: int = 1024  # tokens of a prompt and its reply
    checkpoint_every: int = 10  # steps
    seed: int = 0

    def __post_init__(self) -> None:
        require_sensible(self, may_be_zero=("seed",))


def train(
    backbone: Backbone,
    examples: Sequence[TokenizedExample],
    settings: Settings,
    progress: Progress,
    validation: Sequence[TokenizedExample] = (),
    references: References | None = None,
) -> Iterator[Report]:
    """Train the backbone's adapter, going on from `progress`, a step per item. Raises `NotFinite`.

    It ends, and goes back, when the KL budget is spent or those for `validation` gain no more.
    """
    steps = count_steps(len(examples), settings)
    full_weight = max(example.weight for example in examples)
    look_every = max(1, math.ceil(len(examples) / settings.batch_size / settings.evals_per_epoch))
    watch = Watch(backbone, examples, validation, settings, references or References(backbone))
    began, done_before = time.monotonic(), progress.step
    for step in range(progress.step, steps):
        if progress.ended:
            return
        step_began = time.monotonic()

        # 1. the batch, by epoch in an order that the seed alone decides
        batch = [examples[at] for at in batch_of(len(examples), settings.batch_size, step, settings.seed)]

        # 2. losses and gradients, a pack of rows at a time
        loss = within_memory(progress, partial(gradients, backbone, batch, full_weight=full_weight))

        # 3. one step: gradient norm at most 1, learning rate up over the first tenth and then down to 0
        norm = take_step(progress, loss, settings.learning_rate, steps)

        # 4. a look at how far from the base it is by now, and at what is kept aside
        looked = progress.step % look_every == 0 or progress.step == steps
        if looked:
            watch.look(backbone, progress, last=progress.step == steps)

        # 5. the report
        tokens = sum(example.own_row().tokens for example in batch)
        metrics = {
            "loss": loss,
            "kl": progress.kl,
            "grad_norm": norm,
            "tokens_per_s": tokens / (time.monotonic() - step_began),
        }
        if looked and validation:
            metrics["validation_gain"] = progress.validation_gain
        per_step = (time.monotonic() - began) / (progress.step - done_before)
        yield Report(progress.step, steps, metrics, per_step * (steps - progress.step))


def gradients(
    backbone: Backbone, examples: Sequence[TokenizedExample], tokens_at_once: int, full_weight: float | None = None
) -> float:
    """Add up the gradients of a batch, the weighted mean over its examples; the loss, in nats a token.

    Where examples of several batches are to count by their weights, `full_weight` is that of one that counts fully: in
    a mean of its own a batch of examples that weigh little would move the model as far as any other.
    """
    weight = full_weight * len(examples) if full_weight else sum(example.weight for example in examples)
    examples = distributed.own(examples)
    rows = [example.own_row() for example in examples]
    total = 0.0
    for group in together(rows, tokens_at_once):
        found = torch.cat(backbone.log_probs_of([rows[at] for at in group]))
        lengths = torch.tensor([rows[at].reply_tokens for at in group], device=found.device)
        weights = torch.tensor([examples[at].weight for at in group], device=found.device)
        loss = (weights * preference.nll_loss(found, lengths)).sum() / weight
        loss.backward()
        total += loss.item()
    distributed.add_up(backbone.parameters().values())
    return distributed.total(total)
