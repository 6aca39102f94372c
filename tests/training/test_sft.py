"""Imitation: demonstrations become likelier, each as one, and a night learns from them alone."""

import math

import pytest
import torch

from assistant.models.base_model import Base
from feedback.example_types import TIE, Answer, Demonstration, Examples, PreferencePair, UnpairedExample
from feedback.examples.split import split
from feedback.messages import Message
from feedback.records import adapters
from tests.conftest import PLACES
from tests.feedback.test_split import QUESTIONS
from tests.helpers.nights import run
from tests.training.test_night import SMALL, last, say
from training.algorithms import sft
from training.data.tokenize import TokenizedExample, tokenize
from training.loop.loop import train
from training.model.policy import Backbone
from training.night import run_dir
from training.night.learning import make_encoder
from training.night.plan.planner import used_by
from training.night.run_dir import Plan


def backbone_of(tiny: Base) -> Backbone:
    return Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)


def asked(question: str) -> tuple[Message, ...]:
    return (Message("user", question),)


def test_the_loss_is_a_mean_over_tokens_and_then_over_weighted_lessons(tiny):
    backbone = backbone_of(tiny)
    long, short = (
        TokenizedExample("demonstration", [1, 2, 3], ([4, 5, 6, 7],), weight=1.0),
        TokenizedExample("demonstration", [1, 9], ([8],), weight=3.0),
    )
    network = backbone.causal
    by_hand = []
    for example in (long, short):
        ids = torch.tensor([[*example.prompt_ids, *example.replies[0]]])
        with torch.no_grad():
            found = torch.log_softmax(network(input_ids=ids).logits[0].float(), -1)
        begin = len(example.prompt_ids)
        by_hand.append(
            -sum(found[at - 1, ids[0, at]].item() for at in range(begin, ids.shape[1])) / (ids.shape[1] - begin)
        )
    expected = (by_hand[0] + 3 * by_hand[1]) / 4
    assert sft.gradients(backbone, [long, short], 1024) == pytest.approx(expected, abs=1e-5)
    whole = {name: each.grad.clone() for name, each in backbone.parameters().items() if each.grad is not None}
    backbone.peft.zero_grad()
    assert sft.gradients(backbone, [long, short], 1) == pytest.approx(expected, abs=1e-5)  # a row at a time
    for name, each in backbone.parameters().items():
        if each.grad is not None:
            assert (each.grad - whole[name]).norm() <= 1e-5 * whole[name].norm() + 1e-6


def test_demonstrations_become_likely_and_training_ends_within_its_budget(tiny):
    backbone = backbone_of(tiny)
    encoder = make_encoder(tiny, backbone, sft.SftConfig())
    shown = tuple(Demonstration(asked(each), Answer("A kind word, and then the answer.")) for each in QUESTIONS[:16])
    examples, left_out = tokenize(Examples(demonstrations=shown), encoder)
    assert ({each.kind for each in examples}, len(examples), left_out) == ({"demonstration"}, 16, {})
    settings = sft.SftConfig(learning_rate=1e-2, rank=4, alpha=8, kl_budget=50.0, epochs=8)
    trainer = sft.SftTrainer(backbone, examples, settings)
    reports = list(train(trainer, trainer.begin()))
    assert reports[-1].step == settings.count_steps(16) == 16
    assert reports[-1].metrics["loss"] < 0.5 * reports[0].metrics["loss"]
    assert math.isfinite(reports[-1].metrics["kl"])

    backbone = backbone_of(tiny)
    tight = sft.SftConfig(learning_rate=1e-2, rank=4, alpha=8, kl_budget=0.01, epochs=8)
    trainer = sft.SftTrainer(backbone, examples, tight)
    state = trainer.begin()
    list(train(trainer, state))
    assert "nats per token from the base" in state.ended


def of_every_kind() -> Examples:
    better, worse = Answer("yes", (5, 6), "t" * 64, "stop"), Answer("no")
    return Examples(
        pairs=(PreferencePair(asked("a"), better, worse), PreferencePair(asked("b"), better, worse, "correction")),
        thumbs=(UnpairedExample(asked("c"), better, True),),
        left_out={"tie": 1, "no consent": 2},
        ties=(PreferencePair(asked("d"), better, worse, TIE),),
        demonstrations=(Demonstration(asked("b"), better),),
    )


def test_a_night_that_is_cut_off_finds_examples_of_every_kind_again(tmp_path):
    plan = Plan("embedded", "b" * 64, "ppo", {"steps": 1}, "float32", 1, [3])
    run_dir.save_plan(tmp_path, plan, of_every_kind())
    found = run_dir.load_plan(tmp_path)
    assert found == (plan, of_every_kind())
    assert found[1].sha256 == of_every_kind().sha256


def test_each_method_is_given_what_it_learns_from_and_the_rest_is_counted():
    examples = of_every_kind()
    seen = {method: used_by(method, examples) for method in ("auto", "sft", "reward", "ppo")}
    counts = {method: each.counts() for method, each in seen.items()}
    both = {"comparison": 1, "correction": 1, "thumbs_up": 1, "thumbs_down": 0}
    assert counts["auto"] == both | {"left_out": {"tie": 1, "no consent": 2}}
    assert counts["ppo"] == both | {"tie": 1, "demonstration": 1, "left_out": {"no consent": 2}}
    unused = {"thumbs_up": 0, "thumbs_down": 0}
    assert counts["sft"] == unused | {
        "correction": 1,
        "demonstration": 1,
        "left_out": {"tie": 1, "no consent": 2, "not used by sft": 2},
    }
    assert counts["reward"] == both | {"tie": 1, "left_out": {"no consent": 2}}


def test_a_demonstration_and_its_correction_are_in_the_same_part():
    corrections = tuple(
        PreferencePair(asked(each), Answer("yes"), Answer("no"), "correction") for each in QUESTIONS[:100]
    )
    shown = tuple(Demonstration(asked(each), Answer("yes")) for each in QUESTIONS[:100])
    parts = split(Examples(corrections, demonstrations=shown), PLACES)
    for part in (parts.training, parts.stopping, parts.held_out):
        assert [each.messages for each in part.pairs] == [each.messages for each in part.demonstrations]
        assert part.pairs


def test_a_night_of_imitation_learns_from_the_correction_alone(tiny, tmp_path):
    store = say(tmp_path)
    done = run(tmp_path, tiny.name, "--method", "sft", settings=SMALL)
    assert done.returncode == 0, done.stderr
    night = last(store)
    assert (night.state, night.adapter) == ("done", "night-0001")
    assert "not used by sft" in night.reason
    card = adapters.adapter(store, "night-0001")
    assert card.method == "sft"
    assert adapters.directory(store, "night-0001").is_dir()
    store.close()


def test_demonstrations_that_weigh_little_move_the_model_little_in_whatever_batch_they_come(tiny):
    losses = []
    for weight in (1.0, 0.1):
        examples = [TokenizedExample("demonstration", [1, each], ([4, 5, 6],), weight=weight) for each in (2, 3)]
        losses.append(sft.gradients(backbone_of(tiny), examples, 1024, full_weight=1.0))
    assert losses[1] == pytest.approx(losses[0] / 10, rel=1e-4)
