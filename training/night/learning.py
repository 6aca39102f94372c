"""Step 5 of a night: train an adapter, or reward models, on the night's examples."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from assistant.memory import give_back
from assistant.models import base_model, chat_template
from assistant.models.base_model import Base
from assistant.models.remarks import remarks
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.example_types import Examples
from feedback.examples.sampled import sampled
from feedback.examples.split import Split
from feedback.records import adapters, nights
from training.algorithms import registry, reward_model
from training.algorithms.base import Config, Method, PolicyContext, TrainingContext
from training.data.kl import AT_THE_END, Kl, KlFromBase
from training.data.tokenize import Encoder, NothingFits, TokenizedExample, tokenize
from training.loop import distributed
from training.loop.loop import train
from training.loop.optim import NotFinite, out_of_memory
from training.model.packing import Row
from training.model.policy import REFERENCE, Backbone
from training.model.reference import References
from training.night import reward_night, run_dir, tracking
from training.night.plan import planner
from training.night.plan.reasons import added, only, why_unfit
from training.night.recorder import Recorder, Stage, resumed
from training.night.reward_night import RewardNight, Rewards
from training.night.run_dir import Plan
from training.night.signals import Cancellation
from training.rollouts.own_samples import own_samples
from training.rollouts.sampler import Sampler

FEWEST_FOR_VALIDATION = 10  # examples; fewer say nothing about when to stop, and are trained on instead
TRAINING = Stage("training", "checkpoint.safetensors")
POLICY = Stage("the policy", "policy.safetensors")


@dataclass(frozen=True)
class Work:
    """A night with something to train on; `gate` is "on", "advise" or "off" (`feedback.records.settings.SETTINGS`)."""

    night: int
    plan: Plan
    examples: Examples
    gate: str = "on"
    log: str = ""  # one of `tracking.LOGS`

    @property
    def adapter(self) -> str:
        """The id of the adapter that this night makes."""
        return f"night-{self.night:04d}"


@dataclass(frozen=True)
class Ready:
    """A night's work with all that is loaded to train it."""

    recorder: Recorder
    base: Base
    work: Work
    method: Method
    config: Any  # of the method's own `Config` class
    backbone: Backbone
    encoder: Encoder

    @property
    def store(self) -> Database:
        return self.recorder.store

    def enter(self, phase: str, **changes: Any) -> None:
        """Record the phase that the night enters, with other changes to its row."""
        with self.recorder.cancellation.held():
            nights.update_night(self.store, self.work.night, phase=phase, **changes)


@dataclass(frozen=True)
class Lessons:
    """A night's tokenized examples."""

    training: list[TokenizedExample]
    validation: list[TokenizedExample]
    prompting: list[TokenizedExample]  # whose prompts an on-policy method samples replies to
    examples: Examples  # that they come from, with counts of what has been left out so far
    taught: Examples  # those of them that are trained on, with these counts
    recorded: Examples  # replies of models that a KL may be measured on


@dataclass(frozen=True)
class Trained:
    """The outcome of a training."""

    kl: Kl  # of the adapter from the base
    kl_budget: float
    steps: int
    ended: str  # why it ended early, in words; empty if it did not
    warning: str = ""  # of the trainer


def make_ready(store: Database, base: Base, work: Work, cancellation: Cancellation) -> Ready:
    """Load the base on this machine with a fresh adapter on it."""
    method = registry.find(work.plan.method)
    config = method.config(**work.plan.settings)
    recorder = Recorder(store, work.night, cancellation, tracking.open_log(work.log, store.data / "logs", work.adapter))
    torch.set_num_threads(threads_of(work.plan))
    backbone = open_backbone(base, work.plan, config, store.data)
    encoder = make_encoder(base, backbone, config)
    for sentence in remarks(base, encoder.tokenizer):
        print(f"night {work.night}: {sentence}", flush=True)
    return Ready(recorder, base, work, method, config, backbone, encoder)


def open_backbone(base: Base, plan: Plan, config: Config, data: Path) -> Backbone:
    """Load the base in a plan's precision with the adapter on it that training begins from, and the reference."""
    dtype, device = getattr(torch, plan.precision), base_model.pick_device()
    backbone = Backbone(base, dtype, device, config.rank, config.alpha, config.seed)
    if config.start_from:
        backbone.start_as(adapters.directory_in(data, config.start_from))
    if config.reference:
        backbone.hold(adapters.directory_in(data, config.reference), REFERENCE)
    return backbone


def make_encoder(base: Base, backbone: Backbone, config: Config) -> Encoder:
    """The encoder from text to this base's token ids, as in serving. Raises `Refused` if no token ends a turn."""
    tokenizer = base_model.load_tokenizer(base)
    base_model.require_room(base, tokenizer)
    ends = chat_template.end_ids(tokenizer, backbone.causal)
    if not ends:
        raise Refused(f"the model {base.name!r} has no token that ends a turn")
    window = getattr(backbone.causal.config, "max_position_embeddings", None) or config.max_length
    return Encoder(tokenizer, ends, chat_template.template_sha256(tokenizer), min(config.max_length, window))


def lessons(divided: Split, ready: Ready) -> Lessons:
    """The tokenized training and validation sets; the latter is trained on if it is too small, or most of all there is.

    Examples that are there only for the gate to judge by are left out, and what is held out stays so. Raises
    `NothingFits`.
    """
    work, encoder, kinds = ready.work, ready.encoder, ready.method.learns_from
    (training, unfit), (stopping, unfit_too) = (
        tokenize(part, encoder) for part in (divided.training, divided.stopping)
    )
    training, stopping = ([each for each in part if each.field in kinds] for part in (training, stopping))
    unfit, taught = added(unfit, unfit_too), divided.training
    prompting = training
    gives_way = len(stopping) < FEWEST_FOR_VALIDATION or len(stopping) > len(training)
    if gives_way or not ready.method.can_learn(training, ready.config):
        training, stopping, taught = [*training, *stopping], [], divided.training.with_others(divided.stopping)
        prompting = prompting or training
    examples = replace(work.examples, left_out=added(work.examples.left_out, unfit))
    if not ready.method.can_learn(training, ready.config):
        raise NothingFits(why_unfit(unfit, encoder.max_length, examples))
    several = f"{distributed.count()} processes, " if distributed.count() > 1 else ""
    where = f"{ready.backbone.head.dtype} on {ready.backbone.device}, {several}{threads_of(work.plan)} threads"
    print(f"night {work.night}: {where}, {len(training)} examples", flush=True)
    ready.enter("training", counts=examples.counts())
    taught = replace(only(taught, kinds), left_out=examples.left_out)
    return Lessons(training, stopping, prompting, examples, taught, recorded(ready))


def recorded(ready: Ready) -> Examples:
    """Replies that this base or an adapter on it wrote before the night began, a few times as many as a KL takes."""
    work, store = ready.work, ready.store
    where, before = planner.places_of(store, work.plan), nights.night(store, work.night).started_at
    return sampled(store, ready.base.sha256, ready.encoder.template_sha256, before, where, 4 * AT_THE_END)


def train_on_examples(ready: Ready, given: Lessons) -> Trained:
    """Train on people's feedback, and return the outcome."""
    work, backbone = ready.work, ready.backbone
    own = own_of(ready, given, lambda: sampler_of(ready))
    if ready.method.distributed:
        distributed.tell((work.night, work.plan, given.training, given.validation, own))
    kl = KlFromBase(backbone, own, given.training)
    references = References(backbone, ready.encoder.template_sha256)
    references.recall(ready.store, [each.row() for each in [*given.training, *given.validation]])
    context = TrainingContext(backbone, given.training, given.validation, references, kl=kl)
    trainer = ready.method.build(context, ready.config)
    state = ready.recorder.follow(trainer, ready.config, TRAINING, references)
    return Trained(kl.measure(), trainer.kl_budget, state.step, state.ended, trainer.warning)


def train_policy(ready: Ready, given: Lessons) -> Trained:
    """Train a policy on its own replies by what rewards them, reward models first if it is these; the outcome."""
    config, before = ready.config, 0
    with with_sampler(ready) as night:
        sources = Rewards(night, ready.work.examples)
        own = own_of(ready, given, lambda: nullcontext(night.sampler))
        kl = KlFromBase(ready.backbone, own, given.prompting)
        context = PolicyContext(
            ready.backbone,
            given.prompting,
            validation=[],
            references=References(ready.backbone, ready.encoder.template_sha256),
            sampler=night.sampler,
            rewards=sources.context,
            reference_ends=partial(sources.reference_ends, given.prompting),
            decode=partial(chat_template.decode, ready.encoder.tokenizer),
            kl=kl,
        )
        trainer = ready.method.build(context, config)
        if sources.models is not None:
            groups = reward_model.group_by_prompt(given.prompting)
            before = reward_model.ensemble_steps(groups, reward_night.asked_by(config))
        state = ready.recorder.follow(trainer, config, replace(POLICY, before=before))
    return Trained(kl.measure(), trainer.kl_budget, before + state.step, state.ended)


def own_of(ready: Ready, given: Lessons, open_sampler: Callable[[], AbstractContextManager[Sampler]]) -> list[Row]:
    """Samples of the models' own that this night's KL is measured on; the same in a night that resumes."""
    try:
        found = own_samples(given.recorded, given.prompting, ready.encoder, open_sampler)
        give_back()
        return found
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print(f"night {ready.work.night}: no memory for samples of its own; its KL is of people's replies", flush=True)
        return []


@contextmanager
def sampler_of(ready: Ready) -> Iterator[Sampler]:
    """A sampler for a training that else needs none."""
    sampler = Sampler(ready.base, ready.work.plan.precision, base_model.pick_device(), ready.encoder.tokenizer)
    try:
        yield sampler
    finally:
        sampler.close()


def with_sampler(ready: Ready) -> AbstractContextManager[RewardNight]:
    """Open the sampler, and with it all that making reward models needs."""
    return reward_night.with_sampler(ready.recorder, ready.work.plan, ready.base, ready.backbone, ready.encoder)


def only_reward_models(ready: Ready) -> str:
    """Run a night that makes reward models and no adapter; returns the outcome in words."""
    store, work = ready.store, ready.work
    with with_sampler(ready) as night:
        models = reward_night.make_models(night, work.examples, ready.config, ready.method.build)
    ready.recorder.cancellation.too_late()
    with store.transaction():
        if nights.forgotten_people(store, work.night):
            reason = "no reward models are kept, as somebody they learned from was forgotten meanwhile; train again"
        else:
            told = f"{len(models.heads)} reward models: {reward_night.in_words(store, work.night)}"
            reason = "; ".join(filter(None, (told, work.plan.why)))
        nights.end_night(store, work.night, "done", reason)
    return reason


def share(data: Path) -> bool:
    """Compute this process's share of the first process's night, if there is one; returns whether that ended well.

    If it did not, the first process records why.
    """
    told = distributed.hear()
    if told is None:
        return True
    night, plan, training, validation, own = told
    method = registry.find(plan.method)
    config = method.config(**plan.settings)
    torch.set_num_threads(threads_of(plan))
    backbone = open_backbone(base_model.find_base(plan.model), plan, config, data)
    try:
        kl = KlFromBase(backbone, own, training)
        context = TrainingContext(backbone, training, validation, References(backbone), kl=kl)
        trainer = method.build(context, config)
        state = resumed(trainer, run_dir.folder(data, night) / TRAINING.file, TRAINING.what)
        for _ in train(trainer, state):
            pass
    except (NotFinite, RuntimeError) as error:
        print(f"a share of night {night} ended early: {base_model.one_line(error)}", flush=True)
        return False
    return True


def threads_of(plan: Plan) -> int:
    """The number of threads that each process computes with."""
    return max(1, plan.threads // distributed.count())
