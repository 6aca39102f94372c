"""Learning from preferences: comparisons, rankings and corrections by DPO, thumbs by KTO, in one objective.

The reference is the base with the adapter off; its log-probs are computed once per lesson and kept. One row is one
forward pass, and gradients add up over a batch. The same lessons, settings and machine give the same adapter, also
when the run is interrupted and goes on from its checkpoint.
Left out on purpose: where lessons come from (`batches`), files and rows (`night`, `night_folder`).
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from feedback.store import Refused
from training import losses
from training.backbone import CHUNK, Backbone
from training.batches import Lesson


@dataclass(frozen=True)
class Settings:
    """What a night of preference learning may be told. Raises `Refused` on values that cannot be meant."""

    comparison_weight: float = 1.0
    ranking_weight: float = 1.0
    correction_weight: float = 1.0
    thumb_weight: float = 1.0
    beta: float = 0.1
    label_smoothing: float = 0.0  # the share of choices thought to be mistakes (conservative DPO)
    learning_rate: float = 1e-4
    epochs: int = 2
    least_steps: int = 12  # very few examples are repeated until they have taught something
    batch_size: int = 8
    rank: int = 16
    alpha: int = 32
    kl_budget: float = 0.5  # nats per reply token away from the base; beyond it training stops
    kl_every: int = 5  # steps
    longest: int = 1024  # tokens of a prompt and one reply
    checkpoint_every: int = 10  # steps
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("beta", "learning_rate", "epochs", "least_steps", "batch_size", "rank", "alpha", "kl_budget")
        for each in fields(self):
            value = getattr(self, each.name)
            lowest_is_open = each.name in (*positive, "kl_every", "longest", "checkpoint_every")
            if not math.isfinite(value) or value < 0 or (lowest_is_open and value == 0):
                raise Refused(f"{each.name} must be {'above' if lowest_is_open else 'at least'} 0, not {value}")
        if self.label_smoothing >= 0.5:
            raise Refused(f"label_smoothing must be below 0.5, not {self.label_smoothing}")


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts as checked settings. Raises `Refused` on an unknown name or a value of another kind."""
    kinds: dict[str, Any] = {each.name: type(each.default) for each in fields(Settings)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or name not in kinds:
            raise Refused(f"there is no setting {name!r}; settings are {', '.join(kinds)}")
        try:
            values[name] = kinds[name](text)
        except ValueError as error:
            wanted = "a whole number" if kinds[name] is int else "a number"
            raise Refused(f"{name} is {wanted}, not {text!r}") from error
    Settings(**values)
    return values


class NotFinite(Exception):
    """Training left the numbers: a loss or gradient is not finite. Nothing of it can be used."""


@dataclass
class Progress:
    """All that changes while a night trains, beside the adapter's weights."""

    optimizer: torch.optim.Optimizer
    references: Tensor  # (lessons, 2) the reference's log-probs of each lesson's replies; NaN where not computed yet
    step: int = 0  # optimiser steps done
    kl_per_token: float = 0.0


@dataclass(frozen=True)
class Report:
    """One step that was taken."""

    step: int
    steps: int
    metrics: dict[str, float]
    eta_s: float
    over_budget: bool = False  # the KL budget is spent; this was the last step


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

    def means(self) -> dict[str, float]:
        return {name: self.sums[name] / self.counts[name] for name in self.sums}


def begin(backbone: Backbone, lessons: Sequence[Lesson], settings: Settings) -> Progress:
    """The state before the first step."""
    optimizer = torch.optim.AdamW(
        backbone.parameters().values(), lr=settings.learning_rate, weight_decay=0.0, foreach=False
    )
    return Progress(optimizer, torch.full((len(lessons), 2), math.nan))


def count_steps(lessons: int, settings: Settings) -> int:
    """Optimiser steps of a night: whole epochs, and more of them where the examples are very few."""
    per_epoch = math.ceil(lessons / settings.batch_size)
    return per_epoch * max(settings.epochs, math.ceil(settings.least_steps / per_epoch))


def train(backbone: Backbone, lessons: Sequence[Lesson], settings: Settings, progress: Progress) -> Iterator[Report]:
    """Train the backbone's adapter, going on from `progress`, a step per item. Raises `NotFinite`."""
    steps = count_steps(len(lessons), settings)
    parameters = list(backbone.parameters().values())
    weights = losses.kto_weights(
        sum(lesson.kind == "thumb" and lesson.wanted for lesson in lessons),
        sum(lesson.kind == "thumb" and not lesson.wanted for lesson in lessons),
    )
    probe = _Probe(backbone, lessons)
    began, done_before = time.monotonic(), progress.step
    for step in range(progress.step, steps):
        step_began = time.monotonic()

        # 1. the batch, by epoch in an order that the seed alone decides
        chosen = _batch(len(lessons), step, settings)

        # 2. the reference's log-probs, where they are not known yet
        for each in chosen:
            if progress.references[each, 0].isnan():
                progress.references[each] = _reference(backbone, lessons[each])

        # 3. KTO's baseline, from the batch's thumbs with mismatched replies
        baseline = _baseline(backbone, lessons, chosen, progress.references)

        # 4. losses and gradients, one row at a time
        tally = Tally(len(chosen))
        for each in chosen:
            reference = progress.references[each].to(backbone.device)
            if lessons[each].kind == "thumb":
                loss = _thumb_loss(backbone, lessons[each], reference, baseline, weights, settings, tally)
            else:
                loss = _pair_loss(backbone, lessons[each], reference, settings, tally)
            if not loss.isfinite():
                raise NotFinite(f"the loss is {loss.item()} at step {step + 1}; try a lower learning_rate")
            (loss / len(chosen)).backward()

        # 5. one step: gradient norm at most 1, learning rate up over the first tenth and then down to 0
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if not norm.isfinite():
            raise NotFinite(f"the gradient is {norm.item()} at step {step + 1}; try a lower learning_rate")
        for group in progress.optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, steps)
        progress.optimizer.step()
        progress.optimizer.zero_grad()
        progress.step = step + 1

        # 6. how far from the base it is by now
        if progress.step % settings.kl_every == 0 or progress.step == steps:
            progress.kl_per_token = probe.kl_per_token(backbone)
            if not math.isfinite(progress.kl_per_token):
                raise NotFinite(f"the KL from the base is {progress.kl_per_token} at step {step + 1}")
        over = progress.kl_per_token > settings.kl_budget

        # 7. the report
        metrics = tally.means() | {
            "kl_per_token": progress.kl_per_token,
            "gradient_norm": float(norm),
            "tokens_per_s": tally.tokens / (time.monotonic() - step_began),
        }
        per_step = (time.monotonic() - began) / (progress.step - done_before)
        yield Report(progress.step, steps, metrics, per_step * (steps - progress.step), over)
        if over:
            return


def _reference(backbone: Backbone, lesson: Lesson) -> Tensor:
    """(2,) log-probs of a lesson's replies, in the same rows as the policy's, so that both round alike."""
    rows = [lesson.row(0), lesson.row(1)] if lesson.kind == "thumb" and len(lesson.replies) == 2 else [lesson.row()]
    values = torch.cat([backbone.log_probs(row, reference=True) for row in rows]).cpu()
    return torch.cat([values, values.new_full((2 - len(values),), math.nan)])


def _batch(lessons: int, step: int, settings: Settings) -> list[int]:
    """The numbers of a step's lessons."""
    per_epoch = math.ceil(lessons / settings.batch_size)
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(lessons, generator=torch.Generator().manual_seed(settings.seed * 100_003 + epoch))
    return order[position * settings.batch_size : (position + 1) * settings.batch_size].tolist()


def _schedule(step: int, steps: int) -> float:
    """The share of the learning rate at a step counted from 0: linear warm-up over 10 %, then linear to 0."""
    warm_up = max(1, round(0.1 * steps))
    return (step + 1) / warm_up if step < warm_up else (steps - step) / (steps - warm_up)


def _baseline(backbone: Backbone, lessons: Sequence[Lesson], chosen: Sequence[int], references: Tensor) -> Tensor:
    """z0 of this batch; 0 where it has no thumb with a mismatched reply."""
    thumbs = [each for each in chosen if lessons[each].kind == "thumb" and len(lessons[each].replies) == 2]
    with torch.no_grad():
        policy = [backbone.log_probs(lessons[each].row(1)) for each in thumbs]
    return losses.kto_baseline(
        torch.cat(policy) if policy else torch.zeros(0), references[thumbs, 1].to(backbone.device)
    ).to(backbone.device)


def _pair_loss(backbone: Backbone, lesson: Lesson, reference: Tensor, settings: Settings, tally: Tally) -> Tensor:
    row = lesson.row()
    policy = backbone.log_probs(row)
    margin = losses.dpo_margin(policy[0], policy[1], reference[0], reference[1], settings.beta)
    loss = losses.dpo_loss(margin, settings.label_smoothing)
    weighted = loss * lesson.weight * getattr(settings, f"{lesson.kind}_weight")
    tally.tokens += len(row.ids)
    tally.add(loss=weighted.item(), margin=margin.item(), accuracy=float(margin.item() > 0))
    tally.add(chosen_logprob=policy[0].item(), rejected_logprob=policy[1].item())
    return weighted


def _thumb_loss(
    backbone: Backbone,
    lesson: Lesson,
    reference: Tensor,
    baseline: Tensor,
    weights: tuple[float, float],
    settings: Settings,
    tally: Tally,
) -> Tensor:
    row = lesson.row(0)
    policy = backbone.log_probs(row)
    wanted = torch.tensor([lesson.wanted], device=policy.device)
    margin = losses.kto_margin(policy, reference[:1], baseline, wanted, settings.beta)
    loss = losses.kto_loss(margin, wanted, *weights)[0]
    weighted = loss * lesson.weight * settings.thumb_weight
    tally.tokens += len(row.ids)
    tally.add(loss=weighted.item(), margin=margin.item(), accuracy=float(margin.item() > 0))
    tally.add(**{"chosen_logprob" if lesson.wanted else "rejected_logprob": policy.item()})
    return weighted


class _Probe:
    """A few lessons, fixed for the night, on which the KL from the base is measured exactly."""

    def __init__(self, backbone: Backbone, lessons: Sequence[Lesson], most: int = 4) -> None:
        spread = [lessons[number * len(lessons) // most] for number in range(most)]
        self.rows = [lesson.row(0) for lesson in {id(each): each for each in spread}.values()]
        with torch.no_grad(), backbone.as_reference():
            self.reference = [backbone.hidden(row) for row in self.rows]

    @torch.no_grad()
    def kl_per_token(self, backbone: Backbone) -> float:
        """Mean KL(policy || base) in nats at the probe's reply positions."""
        parts = []
        for row, reference in zip(self.rows, self.reference, strict=True):
            policy = backbone.hidden(row)
            for at in range(0, len(policy), CHUNK):
                ours, theirs = policy[at : at + CHUNK], reference[at : at + CHUNK]
                parts.append(losses.kl_per_position(backbone.logits(ours), backbone.logits(theirs)))
        return float(torch.cat(parts).mean())
