"""Steps 4 to 10 of a night: from its examples to an announced adapter."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from assistant.chat.adapter_manager import proved
from assistant.engine.engine import Engine
from assistant.memory import give_back
from assistant.models import base_model
from assistant.models.adapter import AdapterCard, AdapterRefused, Agreement, Proof
from assistant.models.base_model import Base
from feedback.database.database import Database, now
from feedback.errors import Conflict
from feedback.example_types import Examples
from feedback.examples.build import still_standing
from feedback.examples.split import secret_of
from feedback.raters import account, evidence, reliability
from feedback.records import adapters, decisions, nights
from feedback.records.adapters import Adapter
from feedback.records.decisions import Side
from training.evaluation import gate, held_out
from training.evaluation.gate import Verdict
from training.evaluation.held_out import Gains, HeldOut, looked_at
from training.night import publish, tracking
from training.night.learning import (
    Lessons,
    Ready,
    Trained,
    Work,
    lessons,
    make_ready,
    only_reward_models,
    train_on_examples,
    train_policy,
)
from training.night.plan import planner
from training.night.plan.reasons import in_words
from training.night.plan.stages import in_stages
from training.night.signals import Cancellation


def run_pipeline(store: Database, base: Base, work: Work, cancellation: Cancellation) -> str:
    """Train, judge, write and announce an adapter; returns the outcome in words.

    Raises `NotFinite`, `NothingFits`, `Refused` or `Cancelled`; nothing is announced then.
    """
    # 4. load the base, with a fresh adapter on it
    ready = make_ready(store, base, work, cancellation)

    # 5. train on all that is not held out
    if not ready.method.makes_adapter:
        return only_reward_models(ready)
    divided = planner.parts(store, work.plan, work.examples)
    given = lessons(divided, ready)
    trained = train_policy(ready, given) if ready.method.on_policy else train_on_examples(ready, given)

    # 6. compare with the serving adapter on held-out feedback
    ready.enter("judging", eta_s=None)
    serving = adapters.serving(store)
    standing = still_standing(store, divided.held_out)
    found, sides = compared(ready, serving, standing) if work.gate != "off" else (None, [])

    # 7. compute the proof, in fp32 and without shortcuts
    ready.enter("proof")
    proof = publish.prove(ready.backbone, ready.encoder)

    # 8. write the complete directory under a temporary name
    ready.enter("saving")
    making, card = written(ready, given, trained, proof)

    # 9. ask the gate, with the engine that serves
    ready.enter("judging")
    del ready  # frees the backbone's memory for the engine
    give_back()
    verdict, agreed = judged(store, base, making, serving, found, trained)

    # 10. rename, announce and perhaps promote
    cancellation.too_late()
    publish.hand_over(making, work.adapter)
    stages, far = in_stages(work.plan), f"KL from the base {trained.kl.words}"
    taught = f"trained on {in_words(given.taught)}"
    learned = "; ".join(filter(None, (taught, work.plan.why, stages, far, trained.ended, trained.warning)))
    return announce(store, work, card, learned, verdict, agreed, serving, found, sides)


def closing_metrics(store: Database, night: int, trained: Trained) -> dict[str, float]:
    """The training's metrics for the card: means over its last eighth, the KL of the kept weights, and the steps."""
    steps = nights.night_steps(store, night)
    tail = steps[-max(1, len(steps) // 8) :]
    means = {
        name: fmean(step[name] for step in tail)
        for name in ("loss", "rewards/margins", "rewards/accuracies")
        if all(name in s for s in tail)
    }
    return means | trained.kl.metrics() | {"steps": trained.steps}


def written(ready: Ready, given: Lessons, trained: Trained, proof: list[Proof]) -> tuple[Path, AdapterCard]:
    """Write the adapter's complete directory under a temporary name; returns it and the card."""
    store, work, config = ready.store, ready.work, ready.config
    making, weights_sha256 = publish.write_weights(ready.backbone, store.data, work.adapter)
    tracking.write(nights.night_steps(store, work.night), making)
    card = AdapterCard(
        id=work.adapter,
        base_name=ready.base.name,
        base_sha256=ready.base.sha256,
        parent=config.start_from or None,
        method=work.plan.method,
        weights_sha256=weights_sha256,
        data_sha256=work.examples.sha256,
        counts=given.examples.counts(),
        settings=config.model_dump() | {"precision": work.plan.precision},
        seed=config.seed,
        metrics=closing_metrics(store, work.night, trained),
        proof=proof,
    )
    publish.complete(ready.backbone, making, card)
    return making, card


def compared(ready: Ready, serving: str | None, apart: Examples) -> tuple[HeldOut, list[Side]]:
    """Compare with the serving adapter on held-out feedback, if it is time for a look; and each vote in it.

    With the base if nothing serves, or if that cannot be read. Only what people said since that was promoted judges.
    """
    store, backbone, alpha = ready.store, ready.backbone, account.allowed(ready.store, evidence.LOOK)
    since = adapters.promoted_at(store)
    judging = held_out.judging(apart, since)
    count = held_out.conversations(judging)
    next_look = int(evidence.next_look(decisions.tested(store, serving, since), alpha)) if alpha else 0
    if not alpha or count < next_look:
        return HeldOut(count, next_look), []
    template = ready.encoder.template_sha256
    try:
        gains = Gains(backbone, adapters.directory(store, serving) if serving else None, store, template)
    except AdapterRefused as error:
        print(f"comparing with the base: {error}", flush=True)
        gains = Gains(backbone, None, store, template)
    sides = held_out.sides(judging, gains, ready.encoder)
    units: dict[int, list[float]] = {}
    for each in sides:
        units.setdefault(each.user, []).append(each.side)
    votes = evidence.votes_of(units, reliability.weights(store))
    following = int(evidence.next_look(count, alpha))
    return looked_at(votes, count, following, alpha), sides


def judged(
    store: Database,
    base: Base,
    making: Path,
    serving: str | None,
    found: HeldOut | None,
    trained: Trained,
) -> tuple[Verdict | None, Agreement | None]:
    """The gate's verdict on a finished directory (None: it was not asked), and its proof (None: it failed)."""
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
        return gate.judge(found, trained.kl, trained.kl_budget, checks, length), agreed
    except AdapterRefused as error:
        told = {"held_out": found.measurements()} if found else {}
        return Verdict(gate.REFUSED, str(error), {"verdict": gate.REFUSED} | told), None
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
    found: HeldOut | None = None,
    sides: Sequence[Side] = (),
) -> str:
    """Write the rows that register the adapter, end the night and, if allowed, promote the adapter.

    Returns the night's outcome in words.
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
        if verdict:
            decisions.record(
                store,
                decisions.Decision(
                    adapter=card.id,
                    against=instead_of,
                    night=work.night,
                    door=decisions.OFFLINE,
                    outcome=outcome or "",
                    risk=found.alpha if found and work.gate == "on" else 0.0,
                    reason=verdict.reason,
                    evidence=verdict.evidence,
                ),
                sides,
                secret_of(store),
            )
        nights.end_night(store, work.night, "done", reason, adapter=card.id, verdict=outcome)
    return reason
