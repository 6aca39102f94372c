"""From a night's examples to an announced adapter: steps 4 to 10 of a night."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import SafetensorError

from assistant.chat.adapter_manager import proved
from assistant.engine.engine import Engine
from assistant.models import base_model, chat_template
from assistant.models.adapter import AdapterCard, AdapterRefused, Agreement
from assistant.models.base_model import Base
from feedback.database.database import Database, now
from feedback.errors import Conflict, Refused
from feedback.example_types import Examples
from feedback.examples import caps
from feedback.examples.build import still_standing
from feedback.records import adapters, nights
from feedback.records.adapters import Adapter
from training.algorithms import dpo_kto, reward_model, sft
from training.algorithms.methods import SAMPLING, SETTINGS
from training.data.tokenize import Encoder, TokenizedExample, tokenize
from training.evaluation import gate
from training.evaluation.gate import Gains, HeldOut, Verdict
from training.loop import distributed
from training.loop.early_stopping import Progress
from training.loop.optim import NotFinite, Report, count_steps, memory_gib
from training.model.policy import Backbone
from training.model.reference import References
from training.night import planner, policy_night, publish, reward_night, run_dir, tracking
from training.night.planner import in_words
from training.night.reward_night import NothingFits
from training.night.run_dir import Plan
from training.night.signals import Cancellation
from training.night.tracking import Log

FEWEST_FOR_VALIDATION = 10  # examples: fewer say nothing about when to stop, and are learned from instead


@dataclass(frozen=True)
class Work:
    """A night that has something to do; `gate` is "on", "advise" or "off" (`feedback.records.settings.SETTINGS`)."""

    night: int
    plan: Plan
    examples: Examples
    gate: str = "on"
    log: str = ""  # one of `tracking.LOGS`

    @property
    def adapter(self) -> str:
        """The id of the adapter it will make."""
        return f"night-{self.night:04d}"


def run_pipeline(store: Database, base: Base, work: Work, cancellation: Cancellation) -> str:
    """Train, judge, write and announce an adapter; what came of it, in words.

    Raises `NotFinite`, `NothingFits`, `Refused` or `Cancelled`; nothing is announced then.
    """
    # 4. one base, with the adapter on it
    settings = SETTINGS[work.plan.method](**work.plan.settings)
    log = tracking.open_log(work.log, store.data / "logs", work.adapter)
    torch.set_num_threads(threads_of(work.plan))
    device = base_model.pick_device()
    dtype = getattr(torch, work.plan.precision)
    backbone = Backbone(base, dtype, device, settings.rank, settings.alpha, settings.seed)
    encoder = make_encoder(base, backbone, settings)

    # 5. training, on all that is not kept for judging
    if work.plan.method == "reward":
        return only_reward_models(store, base, work, backbone, encoder, settings, cancellation, log)
    divided = planner.parts(store, work.plan, work.examples)
    tokenized, unfit = tokenized_of(divided.training, encoder, work.plan.method)
    validation, unfit_validation = tokenized_of(divided.stopping, encoder, work.plan.method)
    if len(validation) < FEWEST_FOR_VALIDATION:
        tokenized, validation = [*tokenized, *validation], []
    examples = replace(work.examples, left_out=added(work.examples.left_out, added(unfit, unfit_validation)))
    if not tokenized:
        raise NothingFits(f"no example fits into {encoder.max_length} tokens ({in_words(examples)})")
    several = f"{distributed.count()} processes, " if distributed.count() > 1 else ""
    threads = f"{several}{threads_of(work.plan)} threads"
    print(f"night {work.night}: {dtype} on {device}, {threads}, {len(tokenized)} examples", flush=True)
    if work.plan.method in SAMPLING:
        with reward_night.training_context(
            store, work.night, work.plan, base, backbone, encoder, cancellation, log
        ) as context:
            progress = policy_night.train(context, work.examples, settings)
    else:
        with cancellation.held():
            steps = count_steps(len(tokenized), settings)
            nights.update_night(store, work.night, phase="training", steps=steps, counts=examples.counts())
        references = References(backbone, encoder.template_sha256)
        progress = train(store, work, backbone, tokenized, validation, settings, references, cancellation, log)

    # 6. what people said and it has not seen: does it side with them?
    with cancellation.held():
        nights.update_night(store, work.night, phase="judging", eta_s=None)
    serving = adapters.serving(store)
    standing = still_standing(store, divided.held_out)
    found = compared(store, serving, backbone, encoder, standing, work) if work.gate != "off" else None

    # 7. the proof, in fp32 and without shortcuts
    with cancellation.held():
        nights.update_night(store, work.night, phase="proof")
    proof = publish.prove(backbone, encoder)

    # 8. the directory, complete before it has its name
    with cancellation.held():
        nights.update_night(store, work.night, phase="saving")
    making, weights_sha256 = publish.write_weights(backbone, store.data, work.adapter)
    tracking.write(nights.night_steps(store, work.night), making)
    card = AdapterCard(
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
        metrics=closing_metrics(store, work.night, progress),
        proof=proof,
    )
    publish.complete(backbone, making, card)
    del backbone  # the server's engine takes its place

    # 9. the gate, through the server's own way of writing
    with cancellation.held():
        nights.update_night(store, work.night, phase="judging")
    verdict, agreed = judged(store, base, making, serving, found, progress, settings)

    # 10. its name, its announcement, and its promotion
    cancellation.too_late()
    publish.hand_over(making, work.adapter)
    learned = f"trained on {in_words(divided.training)}" + (f"; {progress.ended}" if progress.ended else "")
    return announce(store, work, card, learned, verdict, agreed, serving)


def only_reward_models(
    store: Database,
    base: Base,
    work: Work,
    backbone: Backbone,
    encoder: Encoder,
    settings: reward_model.Settings,
    cancellation: Cancellation,
    log: Log,
) -> str:
    """A night that makes reward models and no adapter; what came of it, in words."""
    with reward_night.training_context(
        store, work.night, work.plan, base, backbone, encoder, cancellation, log
    ) as context:
        reward_night.make_models(context, work.examples, settings)
    cancellation.too_late()
    with store.transaction():
        if nights.forgotten_people(store, work.night):
            reason = "no reward models are kept, as somebody they learned from was forgotten meanwhile; train again"
        else:
            reason = f"{settings.ensemble_size} reward models: {reward_night.in_words(store, work.night)}"
        nights.end_night(store, work.night, "done", reason)
    return reason


def make_encoder(base: Base, backbone: Backbone, settings: Any) -> Encoder:
    """How this base turns text into token ids, as serving does it."""
    tokenizer = base_model.load_tokenizer(base)
    ends = chat_template.end_ids(tokenizer, backbone.causal)
    if not ends:
        raise Refused(f"the model {base.name!r} has no token that ends a turn")
    window = getattr(backbone.causal.config, "max_position_embeddings", None) or settings.max_length
    return Encoder(tokenizer, ends, chat_template.template_sha256(tokenizer), min(settings.max_length, window))


def tokenized_of(part: Examples, encoder: Encoder, method: str) -> tuple[list[TokenizedExample], dict[str, int]]:
    """As `tokenize`; imitation learns from demonstrations alone, and is judged by corrections."""
    tokenized, unfit = tokenize(part, encoder)
    return [each for each in tokenized if method != "sft" or each.kind == "demonstration"], unfit


def added(counts: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    """Two counts by reason as one."""
    return {reason: counts.get(reason, 0) + more.get(reason, 0) for reason in {**counts, **more}}


def train(
    store: Database,
    work: Work,
    backbone: Backbone,
    tokenized: list[TokenizedExample],
    validation: list[TokenizedExample],
    settings: Any,
    references: References,
    cancellation: Cancellation,
    log: Log,
) -> Progress:
    """Train step by step, each one written down; where it ended."""
    distributed.tell((work.night, work.plan, tokenized, validation))
    where = run_dir.folder(store.data, work.night)
    progress = started(where, backbone, settings)
    references.recall(store, [each.row() for each in [*tokenized, *validation]])
    for report in loop_of(work.plan)(backbone, tokenized, settings, progress, validation, references):
        with cancellation.held():
            references.keep(store)
            metrics = report.metrics | {"memory_gib": memory_gib()}
            nights.add_step(
                store, work.night, report.step, metrics, steps=report.steps, eta_s=report.eta_s, phase="training"
            )
        log(report.step, metrics)
        print(line(report), flush=True)
        if report.step % settings.checkpoint_every == 0 or progress.ended:
            run_dir.save_checkpoint(where, backbone.parameters(), progress)
    return progress


def loop_of(plan: Plan) -> Any:
    """The loop of a method that learns from what people said."""
    return sft.train if plan.method == "sft" else dpo_kto.train


def share(data: Path) -> bool:
    """Compute this process's share of the night that the first process does, if there is one; whether that ended well.

    Where it did not, the first process writes down why.
    """
    told = distributed.hear()
    if told is None:
        return True
    night, plan, tokenized, validation = told
    settings = SETTINGS[plan.method](**plan.settings)
    torch.set_num_threads(threads_of(plan))
    device, dtype = base_model.pick_device(), getattr(torch, plan.precision)
    backbone = Backbone(base_model.find_base(plan.model), dtype, device, settings.rank, settings.alpha, settings.seed)
    progress = started(run_dir.folder(data, night), backbone, settings)
    try:
        for _ in loop_of(plan)(backbone, tokenized, settings, progress, validation, References(backbone)):
            pass
    except (NotFinite, RuntimeError) as error:
        print(f"a share of night {night} ended early: {base_model.one_line(error)}", flush=True)
        return False
    return True


def threads_of(plan: Plan) -> int:
    """How many threads each process computes with."""
    return max(1, plan.threads // distributed.count())


def started(where: Path, backbone: Backbone, settings: Any) -> Progress:
    """Where training begins: at the night's checkpoint, or at the start if it has none that can be used."""
    progress = dpo_kto.begin(backbone, settings)
    try:
        run_dir.load_checkpoint(where, backbone.parameters(), progress)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        print(f"the checkpoint cannot be used, so training begins anew: {error}", flush=True)
    if progress.step:
        print(f"going on after step {progress.step}", flush=True)
    return progress


def line(report: Report) -> str:
    """A step, for a terminal."""
    shown = {"loss": ".4f", "rewards/margins": "+.4f", "rewards/accuracies": ".2f", "kl": ".4f", "tokens_per_s": ".0f"}
    said = "  ".join(f"{name} {report.metrics[name]:{how}}" for name, how in shown.items() if name in report.metrics)
    minutes, seconds = divmod(round(report.eta_s), 60)
    return f"step {report.step}/{report.steps}  {said}  ETA {minutes}:{seconds:02d}"


def closing_metrics(store: Database, night: int, progress: Progress) -> dict[str, float]:
    """What the card says of the training: means over its last eighth, and the KL of the weights that were kept."""
    steps = nights.night_steps(store, night)
    tail = steps[-max(1, len(steps) // 8) :]
    means = {
        name: fmean(step[name] for step in tail)
        for name in ("loss", "rewards/margins", "rewards/accuracies")
        if all(name in s for s in tail)
    }
    return means | {"kl": kept_kl(progress), "steps": progress.step}


def kept_kl(progress: Progress) -> float:
    """How far from the base the adapter is, in nats a token: where it was best, or where it ended."""
    return progress.kept_kl if progress.kept is not None else progress.kl


def compared(
    store: Database, serving: str | None, backbone: Backbone, encoder: Encoder, held_out: Examples, work: Work
) -> HeldOut:
    """The new adapter beside what serves, on held-out feedback; beside the base where what serves cannot be read."""
    directory = adapters.directory(store, serving) if serving else None
    try:
        gains = Gains(backbone, directory)
    except AdapterRefused as error:
        print(f"comparing with the base: {error}", flush=True)
        gains = Gains(backbone, None)
    shares_of, _ = caps.of_raters(store, {each.user for each in work.examples})
    return gate.held_out(held_out, gains, encoder, shares_of)


def judged(
    store: Database,
    base: Base,
    making: Path,
    serving: str | None,
    found: HeldOut | None,
    progress: Progress,
    settings: Any,
) -> tuple[Verdict | None, Agreement | None]:
    """What the gate says of a finished directory (None: it was not asked), and its proof (None: it failed)."""
    device = base_model.pick_device()
    tokenizer = base_model.load_tokenizer(base)
    engine = Engine(base, base_model.exact_format(device), device, tokenizer, driven=True)
    try:
        candidate, agreed = proved(engine, making)
        if found is None:
            return None, agreed
        try:
            current = proved(engine, adapters.directory(store, serving))[0] if serving else None
        except AdapterRefused:
            current = None
        checks, length = gate.canaries(engine, tokenizer, candidate, current)
        return gate.judge(found, kept_kl(progress), settings.kl_budget, checks, length), agreed
    except AdapterRefused as error:
        return Verdict(gate.REFUSED, str(error), {"verdict": gate.REFUSED}), None
    finally:
        engine.close()


def announce(
    store: Database,
    work: Work,
    card: AdapterCard,
    learned: str,
    verdict: Verdict | None,
    agreed: Agreement | None,
    instead_of: str | None,
) -> str:
    """The rows that make a directory an adapter, the night a finished one, and perhaps the adapter what serves.

    What came of the night, in words.
    """
    wanted = verdict.verdict == gate.PROMOTED and work.gate == "on" if verdict else agreed is not None
    said = f"{verdict.verdict}: {verdict.reason}" if verdict else "not judged"
    adapter = Adapter(
        id=card.id,
        parent=card.parent,
        night=work.night,
        method=card.method,
        base_sha256=card.base_sha256,
        weights_sha256=card.weights_sha256,
        verdict=gate.REFUSED if verdict and verdict.verdict == gate.REFUSED else gate.CANDIDATE,
        reason=f"{said}; {learned}",
        created_at=now(),
        evidence=verdict.evidence if verdict else {},
    )
    with store.transaction():
        adapters.add_adapter(store, adapter)
        outcome = verdict.verdict if verdict else None
        if outcome != gate.REFUSED and nights.forgotten_people(store, work.night):
            outcome, said = gate.CANDIDATE, "kept as a candidate, as somebody it learned from was forgotten meanwhile"
        elif wanted and agreed is not None:
            why = f"the gate: {verdict.reason}" if verdict else "the gate is off"
            try:
                adapters.promote(store, card.id, None, why, asdict(agreed), instead_of=instead_of)
            except Conflict as error:
                outcome, said = gate.CANDIDATE, f"kept as a candidate, for {error}"
        elif outcome == gate.PROMOTED:
            outcome, said = (
                gate.CANDIDATE,
                f"kept as a candidate, as the gate only advises: {verdict.reason if verdict else ''}",
            )
        reason = f"{said}; {learned}"
        nights.end_night(store, work.night, "done", reason, adapter=card.id, verdict=outcome)
    return reason
