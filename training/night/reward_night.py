"""Reward models from the ledger: trained, normalised, calibrated, judged on held-out pairs, and saved.

This is a night of its own, or the first half of one that trains a policy by them. They are saved in
`<data>/reward_models/<night>`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import torch

from assistant.models import base_model, chat_template
from assistant.models.adapter import PROOF_TEXTS
from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.example_types import Examples
from feedback.examples.build import answer_of
from feedback.kinds import current
from feedback.messages import Message
from feedback.raters import questions
from feedback.records import nights
from training.algorithms import reward_model
from training.algorithms.base import TrainingContext
from training.algorithms.reward_model import EnsembleTrainer, RewardConfig
from training.data.judged import has_contrast
from training.data.tokenize import Encoder, NothingFits, TokenizedExample, Unfit, tokenize
from training.evaluation import calibration
from training.evaluation.calibration import Believed
from training.model import reward_heads
from training.model.packing import Row
from training.model.policy import Backbone
from training.model.reference import References
from training.model.reward_heads import RewardCard, RewardModels
from training.night.plan import planner
from training.night.plan.reasons import added, why_unfit
from training.night.recorder import Recorder, Stage
from training.night.run_dir import Plan, rewards_folder
from training.rewards.base import RewardContext
from training.rollouts.on_policy import PolicyConfig, usual_length
from training.rollouts.sampler import Rollout, Sampler, sampling_of
from training.rollouts.sign_check import require_models_sign

SIGNED = 64  # examples whose pairs must be scored the right way round by what has learned from them
ASKED = 200  # messages whose replies are scored for the next questions
RELIABILITY = "reliability.png"
TEMPERATURE = 0.7  # of the reference model's replies that scores are normalised on; the same as in chats
Build = Callable[[TrainingContext, RewardConfig], Any]  # returns an `EnsembleTrainer`


@dataclass(frozen=True)
class RewardNight:
    """All that making reward models needs besides examples."""

    plan: Plan
    base: Base
    backbone: Backbone
    encoder: Encoder
    sampler: Sampler
    recorder: Recorder

    @property
    def store(self) -> Database:
        return self.recorder.store


@contextmanager
def with_sampler(
    recorder: Recorder, plan: Plan, base: Base, backbone: Backbone, encoder: Encoder
) -> Iterator[RewardNight]:
    """Open a sampler in the trainer's own number format, and close it in the end."""
    sampler = Sampler(base, plan.precision, base_model.pick_device(), encoder.tokenizer)
    try:
        yield RewardNight(plan, base, backbone, encoder, sampler, recorder)
    finally:
        sampler.close()


def make_models(
    night: RewardNight, examples: Examples, config: RewardConfig, build: Build = reward_model.build, more_steps: int = 0
) -> RewardModels:
    """Make this night's reward models, or load them if a resumed night had already finished them.

    Raises `NothingFits` without contrast (`judged.has_contrast`), `NotFinite`, `Refused` or `Cancelled`.
    """
    store, backbone, folder = night.store, night.backbone, nights.reward_models_of(night.store, night.recorder.night)
    if folder.is_dir():
        return reward_heads.load(backbone, folder)[0]

    # 1. tokenize the training, validation and held-out sets; without contrast to train on, the second gives way
    divided = planner.parts(store, night.plan, examples)
    (training, unfit), (validation, unfit_too), (held_out, _) = (
        tokenize(part, night.encoder) for part in (divided.training, divided.stopping, divided.held_out)
    )
    if not has_contrast(training):
        training, validation = [*training, *validation], []
    if not has_contrast(training):
        dropped = added(unfit, unfit_too)
        left_out = added(examples.left_out, dropped)
        raise NothingFits(why_unfit(dropped, night.encoder.max_length, replace(examples, left_out=left_out)))
    trainer: EnsembleTrainer = build(TrainingContext(backbone, training, validation, References(backbone)), config)

    # 2. train one member after the other
    stage = Stage("the reward models", "reward.safetensors", prefix="reward_", after=more_steps)
    night.recorder.follow(trainer, config, stage)
    ensemble = trainer.models
    require_models_sign(reward_model.margins(ensemble, training[:SIGNED])[0])

    # 3. normalise scores to mean 0 and standard deviation 1 on the reference model's replies
    length = config.sample_tokens or usual_length(training)
    samples = written(night, [each.prompt_ids for each in trainer.examples], config, length)
    reward_model.normalise(ensemble, [each.row for each in samples])
    ensemble.reference_ends = share_ended(samples)

    # 4. calibrate on the validation set, judge on the held-out set
    apart, _ = reward_model.margins(ensemble, validation)
    ensemble.temperature = calibration.temperature_of(apart)
    found = judged(ensemble, held_out)
    ensemble.metrics = asdict(found) if found else {}

    # 5. score the replies of possible questions: where the ensemble disagrees most, an answer teaches most
    scores = scores_of(ensemble, store, night.encoder)
    with night.recorder.cancellation.held():
        questions.keep_scores(store, scores)

    # 6. save them, whole or not at all
    keep(night, ensemble, config, found)
    return ensemble


class Rewards:
    """What a policy's replies may be rewarded by in a night; reward models are trained once one of them asks."""

    def __init__(self, night: RewardNight, examples: Examples) -> None:
        self.night, self.examples = night, examples
        self.models: RewardModels | None = None  # this night's, once they are made

    def context(self, config: PolicyConfig) -> RewardContext:
        """What sources of reward are built from."""
        folder = rewards_folder(self.night.store.data)
        told = config.uncertainty_penalty, config.least_reward_accuracy
        return RewardContext(lambda: self._made(config), self._of_night, folder, *told)

    def reference_ends(self, examples: Sequence[TokenizedExample], config: PolicyConfig) -> float:
        """The share of its replies to the examples' prompts that the reference ends by itself."""
        if self.models is not None:
            return self.models.reference_ends
        prompts = list(dict.fromkeys(tuple(each.prompt_ids) for each in examples))
        return share_ended(written(self.night, prompts, asked_by(config), config.max_completion_length))

    def _made(self, config: PolicyConfig) -> RewardModels:
        if self.models is None:
            asked = asked_by(config)
            self.models = make_models(self.night, self.examples, asked, more_steps=config.steps)
        return self.models

    def _of_night(self, number: int) -> RewardModels:
        folder = nights.reward_models_of(self.night.store, number)
        if not folder.is_dir():
            raise Refused(f"night {number} has left no reward models")
        return reward_heads.load(self.night.backbone, folder, f"night-{number}-")[0]


def share_ended(samples: Sequence[Rollout]) -> float:
    """The share of replies that ended by themselves."""
    ended = [ended for each in samples for ended in each.ended]
    return sum(ended) / len(ended)


def keep(night: RewardNight, ensemble: RewardModels, config: RewardConfig, found: Believed | None) -> None:
    """Save reward models in their folder, with their accuracy and calibration."""
    folder = nights.reward_models_of(night.store, night.recorder.night)
    card = RewardCard(
        id=folder.name,
        base_sha256=night.base.sha256,
        template_sha256=night.encoder.template_sha256,
        precision=night.plan.precision,
        settings=config.model_dump(),
        temperature=ensemble.temperature,
        metrics=ensemble.metrics,
        reference_ends=ensemble.reference_ends,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    reward_heads.save(ensemble, folder, card, proof_rows(night.encoder))
    if found:
        calibration.draw(found, folder / RELIABILITY)


def asked_by(config: PolicyConfig) -> RewardConfig:
    """The settings of the reward models that a policy learns by."""
    shared = ("ensemble_size", "max_length", "seed", "precision")
    own = {name: getattr(config, name) for name in shared}
    return RewardConfig(**own, sample_tokens=config.max_completion_length)


def written(night: RewardNight, prompts: Sequence[Sequence[int]], config: RewardConfig, longest: int) -> list[Rollout]:
    """Sample about `config.samples` replies of at most `longest` tokens of the reference model, to prompts by lot."""
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(config.seed))
    drawn = [prompts[at] for at in order[: config.samples]]
    each = -(-config.samples // len(drawn))
    night.sampler.forget()
    return night.sampler.write(drawn, each, sampling_of(TEMPERATURE, longest), config.seed)


def proof_rows(encoder: Encoder) -> list[Row]:
    """Fixed texts to prove reward models by, so that no person's words outlive the ledger in their folder."""
    answers = [chat_template.encode_reply(encoder.tokenizer, answer, encoder.end_id) for _, answer in PROOF_TEXTS]
    messages = [[Message("user", question)] for question, _ in PROOF_TEXTS]
    asked = [chat_template.encode_prompt(encoder.tokenizer, each, encoder.max_length) for each in messages]
    return [Row(prompt_ids, answers) for prompt_ids in asked]


def scores_of(ensemble: RewardModels, store: Database, encoder: Encoder) -> dict[str, list[float]]:
    """Every model's score of the replies of possible next questions, except those that do not fit."""
    by_message = questions.newest(store, ASKED)
    told = current.texts(store, chain.from_iterable(by_message))
    scored, rows = [], []
    for replies in by_message:
        ids = tuple(encoder.reply(answer_of(told[each])) for each in replies)
        with suppress(Unfit):
            if all(ids):
                rows.append(Row(encoder.prompt(told[replies[0]].messages, max(map(len, ids))), ids))
                scored.append(replies)
    found: dict[str, list[float]] = {}
    for replies, scores in zip(scored, ensemble.scores(rows), strict=True):
        found |= zip(replies, scores.T.tolist(), strict=True)
    return found


@torch.no_grad()
def judged(ensemble: RewardModels, tokenized: Sequence[TokenizedExample]) -> Believed | None:
    """The ensemble's accuracy and calibration on these examples; None if they hold no preference."""
    apart, longer_by = reward_model.margins(ensemble, tokenized)
    drawn = [each.drawn for each in tokenized if each.field == "pairs" for _ in each.preferences]
    return calibration.believed(apart, longer_by, ensemble.temperature, drawn) if apart else None


def in_words(store: Database, night: int) -> str:
    """The held-out accuracy and calibration of a night's reward models, in words."""
    metrics = json.loads((nights.reward_models_of(store, night) / reward_heads.CARD).read_text())["metrics"]
    if not metrics:
        return "no pair was held out to judge them by"
    return (
        f"they are right on {metrics['accuracy']:.0%} of {metrics['pairs']} held-out pairs "
        f"({metrics['low']:.0%} to {metrics['high']:.0%}), calibration error {metrics['calibration_error']:.2f}, "
        f"100 tokens more are worth {metrics['length_bias']:+.2f}"
    )
