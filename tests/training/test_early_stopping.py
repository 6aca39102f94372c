"""How a training sees when it is enough, on a tiny model that learns one of two texts."""

import math

import pytest
import torch

from assistant.models.base_model import Base
from feedback.example_types import Answer, Examples, PreferencePair
from feedback.messages import Message
from tests.feedback.test_split import QUESTIONS
from tests.training.test_gate import KIND, RUDE
from training.algorithms.dpo_kto import PreferenceConfig, PreferenceTrainer
from training.data.kl import KlFromBase
from training.data.scoring import gains_of
from training.data.tokenize import TokenizedExample, tokenize
from training.loop import checkpoint, loop
from training.loop.early_stopping import Watch
from training.loop.state import TrainState
from training.model.packing import Row
from training.model.policy import Backbone
from training.night.learning import make_encoder

SETTINGS = PreferenceConfig(
    epochs=4, min_steps=1, batch_size=4, evals_per_epoch=1, patience=1, kl_budget=50, learning_rate=5e-3
)


def backbone_of(tiny: Base) -> Backbone:
    return Backbone(tiny, torch.float32, "cpu", rank=8, alpha=16, seed=0)


def examples_of(backbone: Backbone, questions: list[str], turned: bool = False) -> list[TokenizedExample]:
    better, worse = (RUDE, KIND) if turned else (KIND, RUDE)
    pairs = tuple(PreferencePair((Message("user", each),), Answer(better), Answer(worse)) for each in questions)
    return tokenize(Examples(pairs), make_encoder(backbone.base, backbone, SETTINGS))[0]


def train(backbone: Backbone, validation: list[TokenizedExample], config: PreferenceConfig = SETTINGS) -> TrainState:
    trainer = PreferenceTrainer(backbone, examples_of(backbone, QUESTIONS[:8]), config, validation)
    state = trainer.begin()
    list(loop.train(trainer, state))
    return state


def test_a_gain_is_the_mean_difference_of_a_tokens_probability():
    row = Row([1], [[2, 3], [4]])
    # By hand: ((0.5 - 0.25) + (0.5 - 0.5)) / 2 = 0.125 for the first reply, and 0.1 - 0.4 = -0.3 for the second.
    ours, theirs = (torch.tensor(each).log() for each in ([0.5, 0.5, 0.1], [0.25, 0.5, 0.4]))
    assert gains_of(row, ours, theirs).tolist() == pytest.approx([0.125, -0.3])


def test_training_goes_on_while_what_is_kept_aside_gains(tiny):
    backbone = backbone_of(tiny)
    progress = train(backbone, examples_of(backbone, QUESTIONS[8:18]))
    assert (progress.step, progress.ended) == (8, "")
    assert progress.validation_gain > 0


def test_training_ends_when_what_is_kept_aside_speaks_against_it_and_goes_back(tiny):
    backbone = backbone_of(tiny)
    validation = examples_of(backbone, QUESTIONS[8:18], turned=True)

    progress = train(backbone, validation)

    assert progress.step < 8
    assert "what was kept aside gained no more" in progress.ended
    watch = Watch(backbone, KlFromBase(backbone, [], validation), 50, every=1, validation=validation)
    assert progress.best_gains is not None
    assert torch.allclose(watch.gains(), progress.best_gains, atol=1e-5)
    assert float(progress.best_gains.mean()) > progress.validation_gain


def test_a_spent_budget_goes_back_to_the_last_look_within_it(tiny):
    backbone = backbone_of(tiny)
    free = train(backbone, [])
    half = free.kl / 2
    backbone = backbone_of(tiny)

    progress = train(backbone, [], SETTINGS.model_copy(update={"kl_budget": half}))

    assert "nats per token from the base" in progress.ended
    assert progress.kept_kl <= half < progress.kl
    examples = examples_of(backbone, QUESTIONS[:8])
    assert KlFromBase(backbone, [], examples).look(half).mean == pytest.approx(progress.kept_kl, rel=1e-3)


def test_a_checkpoint_keeps_what_the_watch_knows(tiny, tmp_path):
    backbone = backbone_of(tiny)
    progress = train(backbone, examples_of(backbone, QUESTIONS[8:18], turned=True))
    checkpoint.save(tmp_path / "whole", progress)
    other = backbone_of(tiny)
    trainer = PreferenceTrainer(other, examples_of(other, QUESTIONS[:8]), SETTINGS)
    read = trainer.begin()

    checkpoint.load(tmp_path / "whole", read)

    assert (read.step, read.ended, read.evals_without_gain) == (progress.step, progress.ended, 1)
    assert read.best_gains is not None
    assert torch.equal(read.best_gains, progress.best_gains)
    assert set(read.kept or {}) == set(progress.kept or {"nothing": 0})
    assert not math.isnan(read.kept_kl)
    assert list(loop.train(trainer, read)) == []  # it had ended, and stays so


def test_the_best_gains_of_another_validation_set_are_forgotten(tiny):
    backbone = backbone_of(tiny)
    examples = examples_of(backbone, QUESTIONS[:6])
    trainer = PreferenceTrainer(backbone, examples, SETTINGS, examples)
    state = trainer.begin()
    state.best_gains = torch.ones(9)  # as of a version that took a ranking's pairs apart
    trainer.watch.look(state)
    assert len(state.best_gains) == 6
