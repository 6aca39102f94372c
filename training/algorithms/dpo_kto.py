"""Learning from preferences: comparisons, rankings and corrections by DPO, thumbs by KTO, in one objective.

The reference is the base with the adapter off; its log-probs are computed once per lesson and kept. A few rows of like
length are one forward pass, and gradients add up over a batch. The same lessons, settings and machine give the same
adapter, also when the run is interrupted and goes on from its checkpoint.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from feedback.database.database import Refused
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
    least_steps: int = 12  # very few examples are repeated until they have taught something
    batch_size: int = 8
    rank: int = 16
    alpha: int = 32
    kl_budget: float = 0.3  # nats per reply token away from the base; beyond it training stops
    looks: int = 4  # an epoch, at the distance from the base and at what is kept aside
    longest: int = 1024  # tokens of a prompt and one reply
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
    """What a batch adds up, in the end divided by its lessons."""

    lessons: int
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    tokens: int = 0

    def add(self, **values: float) -> None:
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
    lessons: Sequence[TokenizedExample],
    settings: Settings,
    progress: Progress,
    aside: Sequence[TokenizedExample] = (),
    references: References | None = None,
) -> Iterator[Report]:
    """Train the backbone's adapter, going on from `progress`, a step per item. Raises `NotFinite`.

    Training looks up a few times an epoch. With lessons kept `aside` it ends when they have not gained for
    `patience` looks, and goes back to where they had; it also ends, and goes back, when the KL budget is spent.
    """
    steps = count_steps(len(lessons), settings)
    look_every = max(1, math.ceil(len(lessons) / settings.batch_size / settings.looks))
    weights = preference.kto_weights(
        sum(lesson.weight for lesson in lessons if lesson.kind == "thumb" and lesson.wanted),
        sum(lesson.weight for lesson in lessons if lesson.kind == "thumb" and not lesson.wanted),
    )
    references = references or References(backbone)
    watch = Watch(backbone, lessons, aside, settings, references)
    began, done_before = time.monotonic(), progress.step
    for step in range(progress.step, steps):
        if progress.ended:
            return
        step_began = time.monotonic()

        # 1. the batch, by epoch in an order that the seed alone decides
        chosen = batch_of(len(lessons), settings.batch_size, step, settings.seed)

        # 2. the reference's log-probs, where they are not known yet
        reference = references_of(references, [lessons[each] for each in chosen]).to(backbone.device)

        # 3. KTO's baseline, from the batch's thumbs with mismatched replies
        baseline = _baseline(backbone, [lessons[each] for each in chosen], reference)

        # 4. losses and gradients, a few rows at a time
        batch = [lessons[each] for each in chosen]
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
            "kl_per_token": progress.kl_per_token,
            "gradient_norm": norm,
            "tokens_per_s": tally.tokens / (time.monotonic() - step_began),
        }
        if looked and aside:
            metrics["aside_gain"] = progress.aside_gain
        per_step = (time.monotonic() - began) / (progress.step - done_before)
        yield Report(progress.step, steps, metrics, per_step * (steps - progress.step))


def gradients(
    backbone: Backbone,
    lessons: Sequence[TokenizedExample],
    reference: Tensor,
    baseline: Tensor,
    weights: tuple[float, float],
    settings: Settings,
    tokens_at_once: int,
) -> Tally:
    """Add up the gradients of a batch, the mean over its lessons; what was seen."""
    tally = Tally(len(lessons))
    mine = distributed.own(range(len(lessons)))
    for found in groups([lessons[at] for at in mine], tokens_at_once):
        group = [mine[at] for at in found]
        policies = backbone.log_probs_of([lessons[at].own_row() for at in group])
        loss = torch.zeros((), device=backbone.device)
        for at, policy in zip(group, policies, strict=True):
            loss = loss + _loss(policy, lessons[at], reference[at], baseline, weights, settings, tally)
        (loss / len(lessons)).backward()
    distributed.add_up(backbone.parameters().values())
    whole = Tally(len(lessons))
    for each in distributed.every(tally):
        whole.join(each)
    return whole


def _baseline(backbone: Backbone, lessons: Sequence[TokenizedExample], references: Tensor) -> Tensor:
    """z0 of a batch, whose references are (B, 2); 0 where it has no thumb with a mismatched reply."""
    thumbs = [at for at, each in enumerate(lessons) if each.kind == "thumb" and len(each.replies) == 2]
    with torch.no_grad():
        rows = [lessons[each].row(1) for each in thumbs]
        found = torch.zeros(len(rows), device=backbone.device)
        for group in together(rows, TOKENS_AT_ONCE):
            found[group] = torch.cat(backbone.log_probs_of([rows[at] for at in group]))
    return preference.kto_baseline(found, references[thumbs, 1])


def _loss(
    policy: Tensor,
    lesson: TokenizedExample,
    reference: Tensor,
    baseline: Tensor,
    weights: tuple[float, float],
    settings: Settings,
    tally: Tally,
) -> Tensor:
    """One lesson's weighted loss; arguments as of `margin_of`."""
    margin = margin_of(policy, lesson, reference, baseline, settings.beta)
    lengths = [len(reply) for reply in lesson.replies]
    if settings.per_token and lesson.kind != "thumb":
        moved = policy - reference
        tokens = torch.tensor(lengths, device=policy.device)
        margin = preference.normalised_margin(moved[0], moved[1], tokens[0], tokens[1], settings.beta)
    if lesson.kind == "thumb":
        loss = preference.kto_loss(margin[None], torch.tensor([lesson.wanted], device=policy.device), *weights)[0]
        tally.add(**{"chosen_logprob" if lesson.wanted else "rejected_logprob": policy[0].item()})
    else:
        loss = LOSSES[settings.loss](margin, settings)
        loss = loss + settings.sft_weight * preference.nll_loss(policy[0], torch.tensor(lengths[0]))
        tally.add(chosen_logprob=policy[0].item(), rejected_logprob=policy[1].item())
    weighted = loss * lesson.weight * getattr(settings, f"{lesson.kind}_weight")
    tally.tokens += len(lesson.prompt_ids) + sum(map(len, lesson.replies[: len(policy)]))
    tally.add(loss=weighted.item(), margin=margin.item(), accuracy=float(margin.item() > 0))
    return weighted
