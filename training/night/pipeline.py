"""From a night's examples to an announced adapter: steps 4 to 10 of a night."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from assistant.chat.adapter_manager import proved
from assistant.engine.engine import Engine
from assistant.models import base_model, chat_template
from assistant.models.adapter import AdapterCard, AdapterRefused, Agreement
from assistant.models.base_model import Base
from feedback.database.database import Database, now
from feedback.errors import Conflict, Refused
from feedback.examples import caps
from feedback.examples.build import Examples, still_standing
from feedback.examples.split import Split
from feedback.records import adapters, nights
from feedback.records.adapters import Adapter
from training.algorithms import registry, reward_model
from training.algorithms.base import Config, Method, PolicyContext, TrainingContext
from training.data.tokenize import Encoder, NothingFits, TokenizedExample, tokenize
from training.evaluation import gate
from training.evaluation.gate import Gains, HeldOut, Verdict
from training.loop import distributed
from training.loop.loop import train
from training.loop.optim import NotFinite
from training.model.policy import Backbone
from training.model.reference import References
from training.model.reward_heads import RewardModels
from training.night import planner, publish, reward_night, run_dir, tracking
from training.night.planner import in_words
from training.night.recorder import Recorder, Stage, resumed
from training.night.run_dir import Plan
from training.night.signals import Cancellation
from training.rollouts.on_policy import PolicyConfig

FEWEST_FOR_VALIDATION = 10  # examples: fewer say nothing about when to stop, and are learned from instead
TRAINING = Stage("training", "checkpoint.safetensors")


@dataclass(frozen=True)
class Work:
    """A night that has something to do; `gate` is "on", "advise" or "off" (`feedback.records.nights.SETTINGS`)."""

    night: int
    plan: Plan
    examples: Examples
    gate: str = "on"
    log: str = ""  # one of `tracking.LOGS`

    @property
    def adapter(self) -> str:
        """The id of the adapter it will make."""
        return f"night-{self.night:04d}"


@dataclass(frozen=True)
class Lessons:
    """What a night's examples are in token ids."""

    training: list[TokenizedExample]
    validation: list[TokenizedExample]
    prompting: list[TokenizedExample]  # to whose prompts a policy writes
    unfit: dict[str, int]  # reason -> how many are none


@dataclass(frozen=True)
class Trained:
    """Where a training ended."""

    kl: float  # of the adapter from the base, in nats a token
    kl_budget: float
    steps: int
    ended: str  # why before its time, in words


def run_pipeline(store: Database, base: Base, work: Work, cancellation: Cancellation) -> str:
    """Train, judge, write and announce an adapter; what came of it, in words.

    Raises `NotFinite`, `NothingFits`, `Refused` or `Cancelled`; nothing is announced then.
    """
    # 4. one base, with the adapter on it
    method = registry.find(work.plan.method)
    config = method.config(**work.plan.settings)
    recorder = Recorder(store, work.night, cancellation, tracking.open_log(work.log, store.data / "logs", work.adapter))
    torch.set_num_threads(threads_of(work.plan))
    backbone = open_backbone(base, work.plan, config)
    encoder = make_encoder(base, backbone, config)

    # 5. training, on all that is not kept for judging
    if not method.makes_adapter:
        return only_reward_models(recorder, base, work, backbone, encoder, method, config)
    divided = planner.parts(store, work.plan, work.examples)
    given = lessons(divided, encoder, method)
    examples = replace(work.examples, left_out=added(work.examples.left_out, given.unfit))
    if not given.training:
        raise NothingFits(f"no example fits into {encoder.max_length} tokens ({in_words(examples)})")
    several = f"{distributed.count()} processes, " if distributed.count() > 1 else ""
    where = f"{backbone.head.dtype} on {backbone.device}, {several}{threads_of(work.plan)} threads"
    print(f"night {work.night}: {where}, {len(given.training)} examples", flush=True)
    with cancellation.held():
        nights.update_night(store, work.night, phase="training", counts=examples.counts())
    teach = train_policy if method.on_policy else train_on_examples
    trained = teach(recorder, base, work, backbone, encoder, given, method, config)

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
        settings=config.model_dump() | {"precision": work.plan.precision},
        seed=config.seed,
        metrics=closing_metrics(store, work.night, trained),
        proof=proof,
    )
    publish.complete(backbone, making, card)
    del backbone  # the server's engine takes its place

    # 9. the gate, through the server's own way of writing
    with cancellation.held():
        nights.update_night(store, work.night, phase="judging")
    verdict, agreed = judged(store, base, making, serving, found, trained)

    # 10. its name, its announcement, and its promotion
    cancellation.too_late()
    publish.hand_over(making, work.adapter)
    learned = f"trained on {in_words(divided.training)}" + (f"; {trained.ended}" if trained.ended else "")
    return announce(store, work, card, learned, verdict, agreed, serving)


def open_backbone(base: Base, plan: Plan, config: Config) -> Backbone:
    """The base as a plan computes with it, a fresh adapter on it."""
    dtype, device = getattr(torch, plan.precision), base_model.pick_device()
    return Backbone(base, dtype, device, config.rank, config.alpha, config.seed)


def only_reward_models(
    recorder: Recorder, base: Base, work: Work, backbone: Backbone, encoder: Encoder, method: Method, config: Any
) -> str:
    """A night that makes reward models and no adapter; what came of it, in words."""
    store = recorder.store
    with reward_night.with_sampler(recorder, work.plan, base, backbone, encoder) as night:
        models = reward_night.make_models(night, work.examples, config, method.build)
    recorder.cancellation.too_late()
    with store.transaction():
        if nights.forgotten_people(store, work.night):
            reason = "no reward models are kept, as somebody they learned from was forgotten meanwhile; train again"
        else:
            reason = f"{len(models.heads)} reward models: {reward_night.in_words(store, work.night)}"
        nights.end_night(store, work.night, "done", reason)
    return reason


def make_encoder(base: Base, backbone: Backbone, config: Config) -> Encoder:
    """How this base turns text into token ids, as serving does it."""
    tokenizer = base_model.load_tokenizer(base)
    ends = chat_template.end_ids(tokenizer, backbone.causal)
    if not ends:
        raise Refused(f"the model {base.name!r} has no token that ends a turn")
    window = getattr(backbone.causal.config, "max_position_embeddings", None) or config.max_length
    return Encoder(tokenizer, ends, chat_template.template_sha256(tokenizer), min(config.max_length, window))


def lessons(divided: Split, encoder: Encoder, method: Method) -> Lessons:
    """What a method learns from, and what says when it is enough; the latter is learned from, too, where it is little.

    What is there for the gate alone to judge by is left out.
    """
    (training, unfit), (stopping, also_unfit) = (
        tokenize(part, encoder) for part in (divided.training, divided.stopping)
    )
    training, stopping = ([each for each in part if each.field in method.learns_from] for part in (training, stopping))
    prompting = training  # a policy learns from what it writes, so nothing says when to stop
    if len(stopping) < FEWEST_FOR_VALIDATION:
        training, stopping = [*training, *stopping], []
    return Lessons(training, stopping, prompting, added(unfit, also_unfit))


def added(counts: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    """Two counts by reason as one."""
    return {reason: counts.get(reason, 0) + more.get(reason, 0) for reason in {**counts, **more}}


def train_on_examples(
    recorder: Recorder,
    base: Base,
    work: Work,
    backbone: Backbone,
    encoder: Encoder,
    given: Lessons,
    method: Method,
    config: Any,
) -> Trained:
    """Train on what people said, step by step; where it ended."""
    if method.distributed:
        distributed.tell((work.night, work.plan, given.training, given.validation))
    references = References(backbone, encoder.template_sha256)
    references.recall(recorder.store, [each.row() for each in [*given.training, *given.validation]])
    trainer = method.build(TrainingContext(backbone, given.training, given.validation, references), config)
    state = recorder.follow(trainer, config, TRAINING, references)
    return Trained(trainer.final_kl(state), trainer.kl_budget, state.step, state.ended)


def train_policy(
    recorder: Recorder,
    base: Base,
    work: Work,
    backbone: Backbone,
    encoder: Encoder,
    given: Lessons,
    method: Method,
    config: Any,
) -> Trained:
    """Train reward models, and a policy on what it writes; where it ended."""
    before = reward_model.ensemble_steps(reward_model.group_by_prompt(given.prompting), reward_night.asked_by(config))
    with reward_night.with_sampler(recorder, work.plan, base, backbone, encoder) as night:

        def models(asked: PolicyConfig) -> RewardModels:
            return reward_night.make_models(night, work.examples, reward_night.asked_by(asked), more_steps=asked.steps)

        references = References(backbone, encoder.template_sha256)
        context = PolicyContext(backbone, given.prompting, [], references, night.sampler, models)
        trainer = method.build(context, config)
        state = recorder.follow(trainer, config, Stage("the policy", "policy.safetensors", before=before))
        return Trained(trainer.final_kl(state), trainer.kl_budget, before + state.step, state.ended)


def share(data: Path) -> bool:
    """Compute this process's share of the night that the first process does, if there is one; whether that ended well.

    Where it did not, the first process writes down why.
    """
    told = distributed.hear()
    if told is None:
        return True
    night, plan, training, validation = told
    method = registry.find(plan.method)
    config = method.config(**plan.settings)
    torch.set_num_threads(threads_of(plan))
    backbone = open_backbone(base_model.find_base(plan.model), plan, config)
    trainer = method.build(TrainingContext(backbone, training, validation, References(backbone)), config)
    state = resumed(trainer, run_dir.folder(data, night) / TRAINING.file, TRAINING.what)
    try:
        for _ in train(trainer, state):
            pass
    except (NotFinite, RuntimeError) as error:
        print(f"a share of night {night} ended early: {base_model.one_line(error)}", flush=True)
        return False
    return True


def threads_of(plan: Plan) -> int:
    """How many threads each process computes with."""
    return max(1, plan.threads // distributed.count())


def closing_metrics(store: Database, night: int, trained: Trained) -> dict[str, float]:
    """What the card says of the training: means over its last eighth, and the KL of the weights that were kept."""
    steps = nights.night_steps(store, night)
    tail = steps[-max(1, len(steps) // 8) :]
    means = {
        name: fmean(step[name] for step in tail)
        for name in ("loss", "rewards/margins", "rewards/accuracies")
        if all(name in s for s in tail)
    }
    return means | {"kl": trained.kl, "steps": trained.steps}


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
    trained: Trained,
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
        return gate.judge(found, trained.kl, trained.kl_budget, checks, length), agreed
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
