"""Preference learning: comparisons, rankings and corrections by DPO, thumbs by KTO, in one objective.

The reference model is the base with the adapter off; its log-probs are computed once per example and kept. A few rows
share a forward pass, and gradients accumulate over a batch. The same examples, config and machine give the same
adapter, even if the run is interrupted and resumes from its checkpoint.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from feedback.errors import Refused
from feedback.records import methods
from training.algorithms.base import Method, Metrics, TrainingContext
from training.algorithms.registry import register
from training.data.kl import KlFromBase
from training.data.scoring import groups, margins_of, references_of, sides_of
from training.data.tokenize import TokenizedExample
from training.loop import distributed
from training.loop.config import STRENGTH_MARGIN, LearningRate, StrengthMargin, Switch, WatchedConfig, Weight
from training.loop.loop import ExamplesTrainer
from training.loop.optim import apply_gradients, stratified_batch, within_memory
from training.loop.state import TrainState
from training.losses import preference
from training.model.packing import TOKENS_AT_ONCE, together
from training.model.policy import Backbone
from training.model.reference import References

# A training on thumbs of one kind alone: steps between its evaluations, and its share of the learning rate. With
# less of either, the first evaluation would find it beyond its budget, and nothing would be left to keep.
LOOK_EVERY, GENTLY = 4, 0.1
Loss = Literal["sigmoid", "robust", "hinge", "ipo"]
LEAST_BETA = 1e-4
TOGETHER = 4  # thumbs in a batch that has any, where there are so many: z0 of fewer is mostly noise
NOT_ROBUST = (
    "loss=robust with label_smoothing=0 is the same as loss=sigmoid: set label_smoothing to the share of choices that "
    "may be wrong"
)


class PreferenceConfig(WatchedConfig):
    """The settings of preference learning."""

    comparison_weight: Weight = Field(1.0, description="weight of comparisons in the objective")
    ranking_weight: Weight = Field(1.0, description="weight of a ranking's pairs in the objective")
    correction_weight: Weight = Field(1.0, description="weight of corrections in the objective")
    thumb_weight: Weight = Field(1.0, description="weight of thumbs in the objective")
    # Low, as a settled pair teaches nothing more and few pairs must teach a lot.
    beta: float = Field(
        0.0,
        ge=0,
        le=100,
        description="strength of the pull towards the reference, for pairs; 0: by loss, " + preference.betas_in_words(),
    )
    thumb_beta: float = Field(0.1, ge=1e-4, le=100, description="the same for thumbs (KTO)")
    loss: Loss = Field("sigmoid", description="loss on a pair's margin; ipo is per token only")
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

    @model_validator(mode="after")
    def _decide_beta(self) -> Self:
        """Put the beta of the loss in the place of 0. Raises `Refused` on settings that mean nothing together."""
        own = preference.BETAS.get((self.loss, bool(self.per_token)))
        if own is None:
            raise Refused(f"loss={self.loss} takes per_token=1, as its target is a gap per token")
        if self.label_smoothing and self.loss not in preference.SMOOTHED:
            allowed = " and ".join(preference.SMOOTHED)
            raise Refused(f"label_smoothing is for the losses {allowed}, and has no meaning for {self.loss}")
        if 0 < self.beta < LEAST_BETA:
            raise Refused(f"beta is 0, for that of the loss, or at least {LEAST_BETA:g}, not {self.beta:g}")
        object.__setattr__(self, "beta", self.beta or own)
        return self


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
        warnings = [NOT_ROBUST] if config.loss == "robust" and not config.label_smoothing else []
        self.without_contrast = one_sided(examples)
        if self.without_contrast:
            config = gently(config, len(examples))
            warnings.append(without_contrast(self.without_contrast, len(examples), config.kl_budget))
        self.warning = "; ".join(warnings)
        super().__init__(backbone, examples, config, validation, references, kl)
        self.config = config
        self.weights = preference.kto_weights(
            sum(example.weight for example in examples if example.kind == "thumb" and example.wanted),
            sum(example.weight for example in examples if example.kind == "thumb" and not example.wanted),
        )

    def begin(self) -> TrainState:
        """The initial state; without contrast, going back to the base is better than to go beyond the budget."""
        state = super().begin()
        if self.without_contrast:
            state.keep()
        return state

    def batch(self, step: int) -> list[TokenizedExample]:
        """The examples of a step; with thumbs among them, `TOGETHER` or more at a time where there are so many."""
        thumbs = [each.kind == "thumb" for each in self.examples]
        if not any(thumbs):
            return super().batch(step)
        return [self.examples[at] for at in stratified_batch(thumbs, self.batch_size, step, self.seed, TOGETHER)]

    def step(self, state: TrainState) -> Metrics:
        # 1. the batch
        batch = self.batch(state.step)

        # 2. the reference's log-probs, where they are not known yet
        reference = references_of(self.references, batch).to(self.backbone.device)

        # 3. KTO's baseline, from this and earlier batches' thumbs with mismatched replies
        baseline = running_baseline(self.backbone, batch, reference, state.numbers)

        # 4. losses and gradients, a few rows at a time
        compute = partial(gradients, self.backbone, batch, reference, baseline, self.weights, self.config)
        tally = within_memory(state, compute)

        # 5. one step
        norm = apply_gradients(state, tally.sums["loss"], self.rate(state.step))
        z0 = {"z0": float(baseline)} if any(each.kind == "thumb" for each in batch) else {}
        return tally.means() | z0 | {"grad_norm": norm, "tokens": tally.tokens}


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


def running_baseline(
    backbone: Backbone, examples: Sequence[TokenizedExample], references: Tensor, numbers: dict[str, float]
) -> Tensor:
    """KTO's baseline z0 after a batch with references (B, R); 0 before any thumb with a mismatched reply.

    `numbers` are the training's, in which the sum and number of log-ratios are kept from batch to batch.
    """
    thumbs = [at for at, each in enumerate(examples) if each.kind == "thumb" and len(each.replies) == 2]
    if thumbs:
        rows = [examples[each].row(1) for each in thumbs]
        found = torch.zeros(len(rows), device=backbone.device)
        with torch.no_grad():
            for group in together(rows, TOKENS_AT_ONCE):
                found[group] = torch.cat(backbone.log_probs_of([rows[at] for at in group]))
        before = numbers.get("z0_sum", 0.0), numbers.get("z0_count", 0.0)
        total, count = preference.running_kto_baseline(found, references[thumbs, 1], *before)
        numbers |= {"z0_sum": total, "z0_count": count}
    mean = numbers.get("z0_sum", 0.0) / max(numbers.get("z0_count", 0.0), 1.0)
    return torch.tensor(max(0.0, mean), device=backbone.device)


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
    beta = config.thumb_beta if example.kind == "thumb" else config.beta
    margins = margins_of(policy, example, reference, baseline, beta)
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
