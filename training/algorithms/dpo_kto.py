"""Preference learning: comparisons, rankings and corrections by DPO, thumbs by KTO, in one objective.

The reference model is the base with the adapter off; its log-probs are computed once per example and kept. A few rows
share a forward pass, and gradients accumulate over a batch. The same examples, config and machine give the same
adapter, even if the run is interrupted and resumes from its checkpoint.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from feedback.records import methods
from training.algorithms.base import Method, Metrics, TrainingContext
from training.algorithms.registry import register
from training.data.kl import KlFromBase
from training.data.scoring import groups, margins_of, references_of, sides_of
from training.data.tokenize import TokenizedExample
from training.loop import distributed
from training.loop.config import STRENGTH_MARGIN, LearningRate, StrengthMargin, Switch, WatchedConfig, Weight
from training.loop.loop import ExamplesTrainer
from training.loop.optim import apply_gradients, within_memory
from training.loop.state import TrainState
from training.losses import preference
from training.model.packing import TOKENS_AT_ONCE, together
from training.model.policy import Backbone
from training.model.reference import References

# A training on thumbs of one kind alone: steps between its evaluations, and its share of the learning rate. With
# less of either, the first evaluation would find it beyond its budget, and nothing would be left to keep.
LOOK_EVERY, GENTLY = 4, 0.1
Loss = Literal["sigmoid", "robust", "hinge", "ipo"]


class PreferenceConfig(WatchedConfig):
    """The settings of preference learning."""

    comparison_weight: Weight = Field(1.0, description="weight of comparisons in the objective")
    ranking_weight: Weight = Field(1.0, description="weight of a ranking's pairs in the objective")
    correction_weight: Weight = Field(1.0, description="weight of corrections in the objective")
    thumb_weight: Weight = Field(1.0, description="weight of thumbs in the objective")
    # Low, as a settled pair teaches nothing more and few pairs must teach a lot.
    beta: float = Field(0.02, ge=1e-4, le=100, description="strength of the pull towards the reference")
    loss: Loss = Field("sigmoid", description="loss on a pair's margin")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="assumed share of wrong choices (conservative or robust DPO)"
    )
    per_token: Switch = Field(0, description="1: margins are per token, so that length alone moves nothing")
    strength_margin: StrengthMargin = STRENGTH_MARGIN
    sft_weight: Weight = Field(0.0, description="weight of the preferred reply's own loss, in nats per token")
    one_sided_kl_budget: float = Field(
        0.05, gt=0, le=1000, description="kl_budget, if smaller, where all there is are thumbs of one kind"
    )
    learning_rate: LearningRate = 5e-4


LOSSES: dict[Loss, Callable[[Tensor, Tensor, PreferenceConfig], Tensor]] = {  # of margins and offsets (P,)
    "sigmoid": lambda margin, offset, config: preference.dpo_loss(margin, config.label_smoothing, offset),
    "robust": lambda margin, offset, config: preference.robust_dpo_loss(margin, config.label_smoothing, offset),
    "hinge": lambda margin, offset, config: preference.hinge_loss(margin, offset),
    "ipo": lambda margin, offset, config: preference.ipo_loss(margin / config.beta, config.beta),  # has its own target
}


@dataclass
class Tally:
    """The sums of a batch's metrics; `means` divides each by how often it was added."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    tokens: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def join(self, other: "Tally") -> None:
        """Add another process's tally of the same batch."""
        for name in other.sums:
            self.sums[name] = self.sums.get(name, 0.0) + other.sums[name]
            self.counts[name] = self.counts.get(name, 0) + other.counts[name]
        self.tokens += other.tokens

    def means(self) -> dict[str, float]:
        return {name: self.sums[name] / self.counts[name] for name in self.sums}


class PreferenceTrainer(ExamplesTrainer):
    """Makes preferred replies likelier than the others, and wanted ones likelier than under the reference model."""

    def __init__(
        self,
        backbone: Backbone,
        examples: Sequence[TokenizedExample],
        config: PreferenceConfig,
        validation: Sequence[TokenizedExample] = (),
        references: References | None = None,
        kl: KlFromBase | None = None,
    ) -> None:
        if kind := one_sided(examples):
            config = gently(config, len(examples))
            self.warning = without_contrast(kind, len(examples), config.kl_budget)
        super().__init__(backbone, examples, config, validation, references, kl)
        self.config = config
        self.weights = preference.kto_weights(
            sum(example.weight for example in examples if example.kind == "thumb" and example.wanted),
            sum(example.weight for example in examples if example.kind == "thumb" and not example.wanted),
        )

    def begin(self) -> TrainState:
        """The initial state; without contrast, going back to the base is better than to go beyond the budget."""
        state = super().begin()
        if self.warning:
            state.keep()
        return state

    def step(self, state: TrainState) -> Metrics:
        # 1. the batch
        batch = self.batch(state.step)

        # 2. the reference's log-probs, where they are not known yet
        reference = references_of(self.references, batch).to(self.backbone.device)

        # 3. KTO's baseline, from the batch's thumbs with mismatched replies
        baseline = _baseline(self.backbone, batch, reference)

        # 4. losses and gradients, a few rows at a time
        compute = partial(gradients, self.backbone, batch, reference, baseline, self.weights, self.config)
        tally = within_memory(state, compute)

        # 5. one step
        norm = apply_gradients(state, tally.sums["loss"], self.rate(state.step))
        return tally.means() | {"grad_norm": norm, "tokens": tally.tokens}


def one_sided(examples: Sequence[TokenizedExample]) -> str:
    """ "up" or "down" if these are thumbs of that kind alone, which nothing tells from the rest; else empty."""
    kinds = {(example.kind, example.wanted) for example in examples}
    return {frozenset({("thumb", True)}): "up", frozenset({("thumb", False)}): "down"}.get(frozenset(kinds), "")


def gently(config: PreferenceConfig, examples: int) -> PreferenceConfig:
    """The settings of a training without contrast: a small KL budget, approached slowly and looked at often."""
    often = max(config.evals_per_epoch, math.ceil(examples / config.batch_size / LOOK_EVERY))
    budget, rate = min(config.kl_budget, config.one_sided_kl_budget), config.learning_rate * GENTLY
    return config.model_copy(update={"kl_budget": budget, "evals_per_epoch": often, "learning_rate": rate})


def without_contrast(kind: str, count: int, budget: float) -> str:
    """What people should know of a training on thumbs of one kind alone."""
    missing, more = {"up": ("worse", "bad"), "down": ("better", "good")}[kind]
    thumbs = f"all {count:,} thumbs are" if count > 1 else "the only thumb is"
    return (
        f"{thumbs} {kind} and nothing says what is {missing}: without contrast a model drifts, so it learns gently "
        f"and stays within {budget:g} nats per token of the base; rate what is {more}, too, or choose between replies"
    )


def gradients(
    backbone: Backbone,
    examples: Sequence[TokenizedExample],
    reference: Tensor,
    baseline: Tensor,
    weights: tuple[float, float],
    config: PreferenceConfig,
    tokens_at_once: int,
) -> Tally:
    """Accumulate the gradients of a batch's mean loss; returns its tally, over all processes."""
    tally = Tally()
    mine = distributed.own(range(len(examples)))
    for found in groups([examples[at] for at in mine], tokens_at_once):
        group = [mine[at] for at in found]
        policies = backbone.log_probs_of([examples[at].own_row() for at in group])
        loss = torch.zeros((), device=backbone.device)
        for at, policy in zip(group, policies, strict=True):
            loss = loss + _loss(policy, examples[at], reference[at], baseline, weights, config, tally)
        (loss / len(examples)).backward()
    distributed.add_up(backbone.parameters().values())
    whole = Tally()
    for each in distributed.every(tally):
        whole.join(each)
    return whole


def _baseline(backbone: Backbone, examples: Sequence[TokenizedExample], references: Tensor) -> Tensor:
    """KTO's baseline z0 for a batch with references (B, R); 0 if it has no thumb with a mismatched reply."""
    thumbs = [at for at, each in enumerate(examples) if each.kind == "thumb" and len(each.replies) == 2]
    with torch.no_grad():
        rows = [examples[each].row(1) for each in thumbs]
        found = torch.zeros(len(rows), device=backbone.device)
        for group in together(rows, TOKENS_AT_ONCE):
            found[group] = torch.cat(backbone.log_probs_of([rows[at] for at in group]))
    return preference.kto_baseline(found, references[thumbs, 1])


def _loss(
    policy: Tensor,
    example: TokenizedExample,
    reference: Tensor,
    baseline: Tensor,
    weights: tuple[float, float],
    config: PreferenceConfig,
    tally: Tally,
) -> Tensor:
    """One example's loss, the weighted sum over its preferences; arguments as in `margins_of`."""
    margins = margins_of(policy, example, reference, baseline, config.beta)
    tally.tokens += len(example.prompt_ids) + sum(map(len, example.replies[: len(policy)]))
    if example.kind == "thumb":
        losses = preference.kto_loss(margins, torch.tensor([example.wanted], device=policy.device), *weights)
        weighted = losses[0] * example.weight * config.thumb_weight
        tally.add({f"logps/{'chosen' if example.wanted else 'rejected'}": policy[0].item()})
    else:
        chosen, rejected = sides_of(example)
        tokens = torch.tensor([len(reply) for reply in example.replies], device=policy.device)
        if config.per_token:
            moved = policy - reference[: len(policy)]
            margins = preference.normalised_margin(
                moved[chosen], moved[rejected], tokens[chosen], tokens[rejected], config.beta
            )
        strength = torch.tensor([each.strength for each in example.preferences], device=policy.device)
        losses = LOSSES[config.loss](margins, config.strength_margin * strength, config)
        losses = losses + config.sft_weight * preference.nll_loss(policy[chosen], tokens[chosen])
        of_each = torch.tensor([each.weight for each in example.preferences], device=policy.device)
        weighted = of_each @ losses * getattr(config, f"{example.kind}_weight")
        for side, replies in (("chosen", chosen), ("rejected", rejected)):
            for value in policy[replies].tolist():
                tally.add({f"logps/{side}": value})
    tally.add({"loss": weighted.item()})
    for margin in margins.tolist():
        tally.add({"rewards/margins": margin, "rewards/accuracies": float(margin > 0)})
    return weighted


def build(context: TrainingContext, config: PreferenceConfig) -> PreferenceTrainer:
    """The trainer of a night."""
    return PreferenceTrainer(
        context.backbone, context.examples, config, context.validation, context.references, context.kl
    )


for facts, learns_from in (
    (methods.AUTO, ("pairs", "thumbs")),
    (methods.DPO, ("pairs",)),
    (methods.KTO, ("thumbs",)),
):
    register(Method(facts, learns_from, PreferenceConfig, build, distributed=True))
