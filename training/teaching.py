"""From a night's examples to an announced adapter: steps 4 to 8 of a night.

Left out on purpose: how a night begins and how it fails (`night`), and the training loop itself (`preference`).
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from safetensors import SafetensorError

from assistant import models, prompt
from assistant.adapters import Card
from assistant.models import Base
from feedback import adapters, nights
from feedback.adapters import Adapter
from feedback.examples import Examples
from feedback.store import Refused, Store, now
from training import handover, night_folder, preference
from training.backbone import Backbone
from training.batches import Encoder, Lesson, make_lessons
from training.night_folder import Plan
from training.planner import in_words
from training.preference import Progress, Report, Settings
from training.signals import Cancellation


@dataclass(frozen=True)
class Work:
    """A night that has something to do."""

    night: int
    plan: Plan
    examples: Examples

    @property
    def adapter(self) -> str:
        """The id of the adapter it will make."""
        return f"night-{self.night:04d}"


class NothingFits(Exception):
    """Every example is longer than a night takes."""


def teach(store: Store, base: Base, work: Work, cancellation: Cancellation) -> str:
    """Train, prove, write and announce an adapter; what came of it, in words.

    Raises `NotFinite`, `NothingFits`, `Refused` or `Cancelled`; nothing is announced then.
    """
    # 4. one base, with the adapter on it
    settings = Settings(**work.plan.settings)
    torch.set_num_threads(work.plan.threads)
    device = models.pick_device()
    dtype = getattr(torch, work.plan.precision)
    backbone = Backbone(base, dtype, device, settings.rank, settings.alpha, settings.seed)
    encoder = make_encoder(base, backbone, settings)

    # 5. training
    lessons, unfit = make_lessons(work.examples, encoder)
    examples = replace(work.examples, left_out=added(work.examples.left_out, unfit))
    if not lessons:
        raise NothingFits(f"no example fits into {encoder.longest} tokens ({in_words(examples)})")
    print(f"night {work.night}: {dtype} on {device}, {work.plan.threads} threads, {len(lessons)} lessons", flush=True)
    with cancellation.held():
        steps = preference.count_steps(len(lessons), settings)
        nights.update_night(store, work.night, phase="training", steps=steps, counts=examples.counts())
    last = train(store, work, backbone, lessons, settings, cancellation)

    # 6. the proof, in fp32 and without shortcuts
    with cancellation.held():
        nights.update_night(store, work.night, phase="proof", eta_s=None)
    proof = handover.prove(backbone, encoder)

    # 7. the directory, complete before it has its name
    with cancellation.held():
        nights.update_night(store, work.night, phase="saving")
    making, weights_sha256 = handover.write_weights(backbone, store.data, work.adapter)
    card = Card(
        id=work.adapter,
        base_name=base.name,
        base_sha256=base.sha256,
        parent=None,
        method=work.plan.method,
        weights_sha256=weights_sha256,
        data_sha256=work.examples.sha256,
        counts=examples.counts(),
        settings=asdict(settings) | {"precision": work.plan.precision},
        seed=settings.seed,
        metrics=closing_metrics(store, work.night, last),
        proof=proof,
    )
    cancellation.too_late()
    handover.hand_over(backbone, making, card)

    # 8. its announcement, last
    reason = f"trained on {in_words(examples)}"
    if last and last.over_budget:
        spent = f"{last.metrics['kl_per_token']:.3f} nats per token from the base, where {settings.kl_budget:g} may be"
        reason += f"; stopped early, at step {last.step} of {last.steps}, being {spent}"
    announce(store, work, card, reason)
    return reason


def make_encoder(base: Base, backbone: Backbone, settings: Settings) -> Encoder:
    """How this base turns text into token ids, as serving does it."""
    tokenizer = models.load_tokenizer(base)
    ends = prompt.end_ids(tokenizer, backbone.causal)
    if not ends:
        raise Refused(f"the model {base.name!r} has no token that ends a turn")
    window = getattr(backbone.causal.config, "max_position_embeddings", None) or settings.longest
    return Encoder(tokenizer, ends, prompt.template_sha256(tokenizer), min(settings.longest, window))


def added(counts: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    """Two counts by reason as one."""
    return {reason: counts.get(reason, 0) + more.get(reason, 0) for reason in {**counts, **more}}


def train(
    store: Store,
    work: Work,
    backbone: Backbone,
    lessons: list[Lesson],
    settings: Settings,
    cancellation: Cancellation,
) -> Report | None:
    """Train step by step, each one written down; the last report (None: an interrupted night had finished)."""
    where = night_folder.folder(store.data, work.night)
    progress = started(where, backbone, lessons, settings)
    report = None
    for report in preference.train(backbone, lessons, settings, progress):
        with cancellation.held():
            nights.add_step(
                store, work.night, report.step, report.metrics, steps=report.steps, eta_s=report.eta_s, phase="training"
            )
        print(line(report), flush=True)
        if report.step % settings.checkpoint_every == 0:
            night_folder.save_checkpoint(where, backbone.parameters(), progress)
    return report


def started(where: Path, backbone: Backbone, lessons: list[Lesson], settings: Settings) -> Progress:
    """Where training begins: at the night's checkpoint, or at the start if it has none that can be used."""
    progress = preference.begin(backbone, lessons, settings)
    try:
        night_folder.load_checkpoint(where, backbone.parameters(), progress)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        print(f"the checkpoint cannot be used, so training begins anew: {error}", flush=True)
    if progress.step:
        print(f"going on after step {progress.step}", flush=True)
    return progress


def line(report: Report) -> str:
    """A step, for a terminal."""
    of = report.metrics
    minutes, seconds = divmod(round(report.eta_s), 60)
    return (
        f"step {report.step}/{report.steps}  loss {of['loss']:.4f}  margin {of['margin']:+.4f}  "
        f"accuracy {of['accuracy']:.2f}  KL/token {of['kl_per_token']:.4f}  "
        f"{of['tokens_per_s']:.0f} tokens/s  ETA {minutes}:{seconds:02d}"
    )


def closing_metrics(store: Store, night: int, last: Report | None) -> dict[str, float]:
    """What the card says of the training: means over its last eighth, and the KL as it ended."""
    steps = nights.night_steps(store, night)
    tail = steps[-max(1, len(steps) // 8) :]
    means = {
        name: fmean(step[name] for step in tail)
        for name in ("loss", "margin", "accuracy")
        if all(name in s for s in tail)
    }
    return means | {"kl_per_token": steps[-1]["kl_per_token"], "steps": len(steps)}


def announce(store: Store, work: Work, card: Card, reason: str) -> None:
    """The rows that make an adapter directory a candidate, and the night a finished one."""
    adapter = Adapter(
        id=card.id,
        parent=card.parent,
        night=work.night,
        method=card.method,
        base_sha256=card.base_sha256,
        weights_sha256=card.weights_sha256,
        verdict="candidate",
        reason=reason,
        created_at=now(),
    )
    with store.write():
        adapters.add_adapter(store, adapter)
        nights.end_night(store, work.night, "done", reason, adapter=card.id)
