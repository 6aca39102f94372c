"""Learning from preferences: comparisons, rankings and corrections by DPO, thumbs by KTO, in one objective.

The reference is the base with the adapter off; its log-probs are computed once per example and kept. A few rows of like
length are one forward pass, and gradients add up over a batch. The same examples, settings and machine give the same
adapter, also when the run is interrupted and goes on from its checkpoint.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from feedback.errors import Refused
from training.data.scoring import groups, margin_of, references_of
from training.data.tokenize import TokenizedExample
from training.loop import distributed
from training.loop.config import require_sensible
from training.loop.early_stopping import Progress, Watch
from training.loop.optim import Report, count_steps, take_step, within_memory
from training.loop.optim import batch as batch_of
from training.losses import preference
from training.model.packing import TOKENS_AT_ONCE, together
from training.model.policy import Backbone
from training.model.reference import References


@dataclass(frozen=True)
class Settings:
    """What a night of preference learning may be told. Raises `Refused` on values that cannot be meant."""

    comparison_weight: float = 1.0
    ranking_weight: float = 1.0
    correction_weight: float = 1.0
    thumb_weight: float = 1.0
    beta: float = 0.02  # low: a pair that is settled teaches no more, and few pairs must teach a lot
    loss: str = "sigmoid"  # of a pair's margin, one of `LOSSES`
    label_smoothing: float = 0.0  # the share of choices thought to be mistakes (conservative or robust DPO)
    per_token: int = 0  # 1: margins are those of a token, so that length alone moves nothing
    sft_weight: float = 0.0  # of the preferred reply's own loss, in nats a token, beside its pair's
    learning_rate: float = 5e-4
    epochs: int = 3  # at most: training ends when what is kept aside (`feedback/examples/split`) gains no more
    patience: int = 4  # looks without a gain before training ends
    min_steps: int = 12  # very few examples are repeated until they have taught something
    batch_size: int = 8
    rank: int = 16
    alpha: int = 32
    kl_budget: float = 0.3  # nats per reply token away from the base; beyond it training stops
    evals_per_epoch: int = 4  # an epoch, at the distance from the base and at what is kept aside
    max_length: int = 1024  # tokens of a prompt and one reply
    checkpoint_every: int = 10  # steps
    seed: int = 0

    def __post_init__(self) -> None:
        weights = ("comparison_weight", "ranking_weight", "correction_weight", "thumb_weight", "sft_weight")
        require_sensible(self, may_be_zero=(*weights, "label_smoothing", "per_token", "seed"))
        if self.loss not in LOSSES:
            raise Refused(f"loss is one of {', '.join(LOSSES)}, not {self.loss!r}")
        if self.label_smoothing >= 0.5:
            raise Refused(f"label_smoothing must be below 0.5, not {self.label_smoothing}")


LOSSES: dict[str, Callable[[Tensor, Settings], Tensor]] = {
    "sigmoid": lambda margin, settings: preference.dpo_loss(margin, settings.label_smoothing),
    "robust": lambda margin, settings: preference.robust_dpo_loss(margin, settings.label_smoothing),
    "hinge": lambda margin, settings: preference.hinge_loss(margin),
    "ipo": lambda margin, settings: preference.ipo_loss(margin / settings.beta, settings.beta),
}


@dataclass
class Tally:
    """What a batch adds up, in the end divided by its examples."""

    examples: int
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    tokens: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def join(self, other: "Tally") -> None:
        """Add what another process has seen of the same batch."""
        for name in other.sums:
            self.sums[name] = self.sums.get(name, 0.0) + other.sums[name]
            self.counts[name] = self.counts.get(name, 0) + other.counts[name]
        self.tokens += other.tokens

    def means(self) -> dict[str, float]:
        return {name: self.sums[name] / self.counts[name] for name in self.sums}


def begin(backbone: Backbone, settings: Settings) -> Progress:
    """The state before the first step."""
    optimizer = torch.optim.AdamW(
        backbone.parameters().values(), lr=settings.learning_rate, weight_decay=0.0, foreach=False
    )
    return Progress(optimizer)


def train(
    backbone: Backbone,
    examples: Sequence[TokenizedExample],
    settings: Settings,
    progress: Progress,
    validation: Sequence[TokenizedExample] = (),
    references: References | None = None,
) -> Iterator[Report]:
    """Train the backbone's adapter, going on from `progress`, a step per item. Raises `NotFinite`.

    Training looks up a few times an epoch. With `validation` examples it ends when they have not gained for
    `patience` looks, and goes back to where they had; it also ends, and goes back, when the KL budget is spent.
    """
    steps = count_steps(len(examples), settings)
    look_every = max(1, math.ceil(len(examples) / settings.batch_size / settings.evals_per_epoch))
    weights = preference.kto_weights(
        sum(example.weight for example in examples if example.kind == "thumb" and example.wanted),
        sum(example.weight for example in examples if example.kind == "thumb" and not example.wanted),
    )
    references = references or References(backbone)
    watch = Watch(backbone, examples, validation, settings, references)
    began, done_before = time.monotonic(), progress.step
    for step in range(progress.step, steps):
        if progress.ended:
            return
        step_began = time.monotonic()

        # 1. the batch, by epoch in an order that the seed alone decides
        chosen = batch_of(len(examples), settings.batch_size, step, settings.seed)

        # 2. the reference's log-probs, where they are not known yet
        reference = references_of(references, [examples[each] for each in chosen]).to(backbone.device)

        # 3. KTO's baseline, from the batch's thumbs with mismatched replies
        baseline = _baseline(backbone, [examples[each] for each in chosen], reference)

        # 4. losses and gradients, a few rows at a time
        batch = [examples[each] for each in chosen]
        compute = partial(gradients, backbone, batch, reference, baseline, weights, settings)
        tally = within_memory(progress, compute)

        # 5. one step: gradient norm at most 1, learning rate up over the first tenth and then down to 0
        norm = take_step(progress, tally.sums["loss"], settings.learning_rate, steps)

        # 6. a look at how far from the base it is by now, and at what is kept aside
        looked = progress.step % look_every == 0 or progress.step == steps
        if looked:
            watch.look(backbone, progress, last=progress.step == steps)

        # 7. the report
        metrics = tally.means() | {
            "kl": progress.kl,
            "grad_norm": norm,
            "tokens_per_s": tally.tokens / (time.monotonic() - step_began),
        }
        if looked and validation:
            metrics["validation_gain"] = progress.validation_gain
        per_step = (time.monotonic() - began) / (progress.step - done_before)
        yield Report(progress.step, steps, metrics, per_step * (steps - progress.step))


def gradients(
    backbone: Backbone,
    examples: Sequence[TokenizedExample],
    reference: Tensor,
    baseline: Tensor,
    weights: tuple[float, float],
    settings: Settings,
    tokens_at_once: int,
) -> Tally:
    """Add up the gradients of a batch, the mean over its examples; what was seen."""
    tally = Tally(len(examples))
    mine = distributed.own(range(len(examples)))
    for found in groups([examples[at] for at in mine], tokens_at_once):
        group = [mine[at] for at in found]
        policies = backbone.log_probs_of([examples[at].own_row() for at in group])
        loss = torch.zeros((), device=backbone.device)
        for at, policy in zip(group, policies, strict=True):
            loss = loss + _loss(policy, examples[at], reference[at], baseline, weights, settings, tally)
        (loss / len(examples)).backward()
    distributed.add_up(backbone.parameters().values())
    whole = Tally(len(examples))
    for each in distributed.every(tally):
        whole.join(each)
    return whole


def _baseline(backbone: Backbone, examples: Sequence[TokenizedExample], references: Tensor) -> Tensor:
    """z0 of a batch, whose references are (B, 2); 0 where it has no thumb with a mismatched reply."""
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
    settings: Settings,
    tally: Tally,
) -> Tensor:
    """One example's weighted loss; arguments as of `margin_of`."""
    margin = margin_of(policy, example, reference, baseline, settings.beta)
    lengths = [len(reply) for reply in example.replies]
    if settings.per_token and example.kind != "thumb":
        moved = policy - reference
        tokens = torch.tensor(lengths, device=policy.device)
        margin = preference.normalised_margin(moved[0], moved[1], tokens[0], tokens[1], settings.beta)
    if example.kind == "thumb":
        loss = preference.kto_loss(margin[None], torch.tensor([example.wanted], device=policy.device), *weights)[0]
        tally.add({f"logps/{'chosen' if example.wanted else 'rejected'}": policy[0].item()})
    else:
        loss = LOSSES[settings.loss](margin, settings)
        loss = loss + settings.sft_weight * preference.nll_loss(policy[0], torch.tensor(lengths[0]))
        tally.add({"logps/chosen": policy[0].item(), "logps/rejected": policy[1].item()})
    weighted = loss * example.weight * getattr(settings, f"{example.kind}_weight")
    tally.tokens += len(example.prompt_ids) + sum(map(len, example.replies[: len(policy)]))
    right = float(margin.item() > 0)
    tally.add({"loss": weighted.item(), "rewards/margins": margin.item(), "rewards/accuracies": right})
    return weighted
