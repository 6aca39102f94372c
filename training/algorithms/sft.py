"""Supervised fine-tuning: replies that people wrote, or marked as good ones, are made likelier.

The first of the three stages of arXiv 2203.02155 (section 3.5). A demonstration's length does not change its weight:
its loss is a mean over its tokens, end of turn included. Prompt tokens are not trained on.
"""

from collections.abc import Sequence
from functools import cached_property, partial

import torch

from feedback.records import methods
from training.algorithms.base import Method, Metrics, TrainingContext
from training.algorithms.registry import register
from training.data.tokenize import TokenizedExample
from training.loop import distributed
from training.loop.config import WatchedConfig
from training.loop.loop import ExamplesTrainer
from training.loop.optim import apply_gradients, within_memory
from training.loop.state import TrainState
from training.losses import preference
from training.model.packing import together
from training.model.policy import Backbone


class SftConfig(WatchedConfig):
    """The settings of supervised fine-tuning."""


class SftTrainer(ExamplesTrainer):
    """Makes demonstrations likelier."""

    @cached_property
    def full_weight(self) -> float:
        """The weight of a demonstration that counts fully."""
        return max(example.weight for example in self.examples)

    def step(self, state: TrainState) -> Metrics:
        # 1. the batch
        batch = self.batch(state.step)

        # 2. losses and gradients, a pack of rows at a time
        loss = within_memory(state, partial(gradients, self.backbone, batch, full_weight=self.full_weight))

        # 3. one step
        norm = apply_gradients(state, loss, self.rate(state.step))
        return {"loss": loss, "grad_norm": norm, "tokens": sum(example.own_row().tokens for example in batch)}


def gradients(
    backbone: Backbone, examples: Sequence[TokenizedExample], tokens_at_once: int, full_weight: float | None = None
) -> float:
    """Accumulate the gradients of a batch's weighted mean loss; returns the loss, in nats a token.

    If weights are to hold across batches, `full_weight` is that of an example that counts fully: divided by its own
    weights alone, a batch of low-weight examples would move the model as far as any other.
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


def build(context: TrainingContext, config: SftConfig) -> SftTrainer:
    """The trainer of a night."""
    return SftTrainer(context.backbone, context.examples, config, context.validation, context.references, context.kl)


register(Method(methods.SFT, ("demonstrations",), SftConfig, build, distributed=True))
