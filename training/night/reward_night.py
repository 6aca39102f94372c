"""Reward models from the ledger: trained, normalised, calibrated, judged on what they have not seen, and kept.

A night by itself (`--method reward`), and the first half of one that learns by them (`policy_night`). They lie in
`<data>/reward_models/<night>`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import chain

import torch
from safetensors import SafetensorError
from torch import Tensor

from assistant.models import base_model, chat_template
from assistant.models.adapter import PROOF_TEXTS
from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.example_types import Examples
from feedback.examples.build import answer_of
from feedback.kinds import current
from feedback.messages import Message
from feedback.raters import questions
from feedback.records import nights
from training.algorithms import reward_model
from training.algorithms.reward_model import RewardExample, Settings
from training.data.tokenize import Encoder, TooLong, tokenize
from training.evaluation import calibration
from training.evaluation.calibration import Believed
from training.loop.optim import Report, count_steps, memory_gib
from training.model import reward_heads
from training.model.packing import Row
from training.model.policy import Backbone
from training.model.reward_heads import RewardCard, RewardModels, disagreement
from training.night import planner, run_dir
from training.night.run_dir import Plan
from training.night.signals import Cancellation
from training.night.tracking import Log
from training.rollouts.sampler import Sampler, sampling_of

ASKED = 200  # messages whose replies are scored for the next questions
RELIABILITY = "reliability.png"
TEMPERATURE = 0.7  # of the reference's replies that scores are normalised on: that of the chats


class NothingFits(Exception):
    """There is nothing that this night could learn from."""


@dataclass(frozen=True)
class TrainingContext:
    """What every half of such a night needs."""

    store: Database
    night: int
    plan: Plan
    base: Base
    backbone: Backbone
    encoder: Encoder
    sampler: Sampler
    cancellation: Cancellation
    log: Log

    def write_down(self, report: Report, before: int, steps: int, prefix: str = "") -> None:
        """A step, `before` of the night's `steps` having been other things."""
        metrics = {prefix + name: value for name, value in report.metrics.items()} | {"memory_gib": memory_gib()}
        step = before + report.step
        with self.cancellation.held():
            nights.add_step(self.store, self.night, step, metrics, steps=steps, eta_s=report.eta_s, phase="training")
        self.log(step, metrics)
        shown = ("loss", "accuracy", "reward", "score", "kl", "tokens_per_s")
        said = "  ".join(f"{prefix}{name} {report.metrics[name]:.4g}" for name in shown if name in report.metrics)
        print(f"step {step}/{steps}  {said}", flush=True)


@contextmanager
def training_context(
    store: Database,
    night: int,
    plan: Plan,
    base: Base,
    backbone: Backbone,
    encoder: Encoder,
    cancellation: Cancellation,
    log: Log,
) -> Iterator[TrainingContext]:
    """With the engine that writes, in the trainer's own number format; it is closed in the end."""
    sampler = Sampler(base, plan.precision, base_model.pick_device(), encoder.tokenizer)
    try:
        yield TrainingContext(store, night, plan, base, backbone, encoder, sampler, cancellation, log)
    finally:
        sampler.close()


def make_models(context: TrainingContext, examples: Examples, settings: Settings, more_steps: int = 0) -> RewardModels:
    """Reward models of this night; those that it has finished already, where it goes on.

    Raises `NothingFits` without a pair, `NotFinite`, `Refused` or `Cancelled`.
    """
    backbone, folder = context.backbone, nights.reward_models_of(context.store, context.night)
    if folder.is_dir():
        return reward_heads.load(backbone, folder)[0]

    # 1. the tokenized
    divided = planner.parts(context.store, context.plan, examples)
    tokenized, validation, held_out = (
        reward_model.group_by_prompt(tokenize(part, context.encoder)[0])
        for part in (divided.training, divided.stopping, divided.held_out)
    )
    if not tokenized:
        raise NothingFits("reward models learn from comparisons, rankings and corrections, and there are none yet")

    # 2. one member after the other
    steps = count_steps(len(tokenized), settings)
    states = cache(partial(reward_model.base_states, backbone, tokenized))
    heads = {}
    for member in range(settings.ensemble_size):
        heads[reward_model.name_of(member)] = _member(context, tokenized, states, settings, member, steps, more_steps)
    ensemble = RewardModels(backbone, heads)

    # 3. mean 0 and standard deviation 1 on what the reference writes
    prompts = [each.prompt_ids for each in tokenized][: settings.samples]
    each = -(-settings.samples // len(prompts))
    sampling = sampling_of(TEMPERATURE, settings.sample_tokens)
    context.sampler.forget()
    samples = [one.row for one in context.sampler.write(prompts, each, sampling, settings.seed)]
    reward_model.normalise(ensemble, samples)

    # 4. how far they can be believed
    ensemble.temperature = calibration.temperature_of(reward_model.margins(ensemble, validation)[0])
    found = judged(ensemble, held_out)

    # 5. what they say of replies that people can be asked about: where they are torn, an answer teaches most
    scores = scores_of(ensemble, context.store, context.encoder)
    with context.cancellation.held():
        questions.keep_scores(context.store, scores)

    # 6. on the disk, whole
    card = RewardCard(
        id=folder.name,
        base_sha256=context.base.sha256,
        template_sha256=context.encoder.template_sha256,
        precision=context.plan.precision,
        settings=asdict(settings),
        temperature=ensemble.temperature,
        metrics=asdict(found) if found else {},
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    reward_heads.save(ensemble, folder, card, proof_rows(context.encoder))
    if found:
        calibration.draw(found, folder / RELIABILITY)
    return ensemble


def _member(
    context: TrainingContext,
    tokenized: Sequence[RewardExample],
    states: Callable[[], list[Tensor]],
    settings: Settings,
    member: int,
    steps: int,
    more_steps: int,
) -> reward_heads.ScoreHead:
    """One member, trained; a killed night goes on with it where it was."""
    where, name = run_dir.folder(context.store.data, context.night), reward_model.name_of(member)
    head, run = reward_model.begin(context.backbone, settings, member)
    try:
        run_dir.load_run(where, run, name)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        print(f"the checkpoint of {name} cannot be used, so it begins anew: {error}", flush=True)
    if run.step == 0:
        reward_model.fit(head, tokenized, states(), settings)
    total = settings.ensemble_size * steps + more_steps
    for report in reward_model.train(context.backbone, head, tokenized, settings, member, run):
        context.write_down(report, member * steps, total, prefix="reward_")
        if report.step % settings.checkpoint_every == 0 or report.step == steps:
            run_dir.save_run(where, run, name)
    return head


def proof_rows(encoder: Encoder) -> list[Row]:
    """Fixed texts to prove reward models by: nobody's words outlive the ledger in their folder."""
    answers = [chat_template.encode_reply(encoder.tokenizer, answer, encoder.end_id) for _, answer in PROOF_TEXTS]
    messages = [[Message("user", question)] for question, _ in PROOF_TEXTS]
    asked = [chat_template.encode_prompt(encoder.tokenizer, each, encoder.max_length) for each in messages]
    return [Row(prompt_ids, answers) for prompt_ids in asked]


def scores_of(ensemble: RewardModels, store: Database, encoder: Encoder) -> dict[str, tuple[float, float]]:
    """Mean and deviation among the models of every reply that the next questions could be about; long ones are not."""
    by_message = questions.newest(store, ASKED)
    told = current.texts(store, chain.from_iterable(by_message))
    scored, rows = [], []
    for replies in by_message:
        ids = tuple(encoder.reply(answer_of(told[each])) for each in replies)
        with suppress(TooLong):
            if all(ids):
                rows.append(Row(encoder.prompt(told[replies[0]].messages, max(map(len, ids))), ids))
                scored.append(replies)
    found: dict[str, tuple[float, float]] = {}
    for replies, scores in zip(scored, ensemble.scores(rows), strict=True):
        for at, reply in enumerate(replies):
            found[reply] = (float(scores[:, at].mean()), float(disagreement(scores)[at]))
    return found


@torch.no_grad()
def judged(ensemble: RewardModels, tokenized: Sequence[RewardExample]) -> Believed | None:
    """What the ensemble is worth on these tokenized; None where there is none."""
    apart, longer_by = reward_model.margins(ensemble, tokenized) if tokenized else ([], [])
    return calibration.believed(apart, longer_by, ensemble.temperature) if apart else None


def in_words(store: Database, night: int) -> str:
    """What a night's reward models were found to be worth."""
    metrics = json.loads((nights.reward_models_of(store, night) / reward_heads.CARD).read_text())["metrics"]
    if not metrics:
        return "nothing was held out to judge them by"
    return (
        f"they are right on {metrics['accuracy']:.0%} of {metrics['pairs']} held-out pairs "
        f"({metrics['low']:.0%} to {metrics['high']:.0%}), calibration error {metrics['calibration_error']:.2f}, "
        f"100 tokens more are worth {metrics['length_bias']:+.2f}"
    )
