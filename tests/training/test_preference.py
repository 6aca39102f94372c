"""The kinds of loss that a pair may be taught by: each is the function of its name, of the margin it says."""

from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import torch

from benchmarks import rewards
from feedback.errors import Refused
from training.algorithms import dpo_kto
from training.algorithms.dpo_kto import LOSSES, Loss, PreferenceConfig, PreferenceTrainer
from training.algorithms.registry import parse_settings
from training.data.kl import KlFromBase
from training.data.scoring import margins_of, references_of
from training.data.tokenize import Preference, TokenizedExample
from training.loop import checkpoint
from training.loop.config import in_lines
from training.loop.early_stopping import Watch
from training.loop.loop import train
from training.losses import preference
from training.model.packing import pack
from training.model.policy import Backbone
from training.model.reference import References

LESSON = TokenizedExample("comparison", [1, 2, 3], ([4, 5, 6, 7], [8, 9]), weight=1.0)
BETA = 0.3


@pytest.fixture(scope="module")
def backbone(tiny) -> Backbone:
    made = Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)
    with torch.no_grad():  # moved, so that policy and reference differ
        for name, each in made.parameters().items():
            if "lora_B" in name:
                each.copy_(0.1 * torch.randn(each.shape, generator=torch.Generator().manual_seed(len(name))))
    return made


@pytest.mark.parametrize(
    ("asked", "loss"),
    [
        ({}, preference.dpo_loss),
        ({"label_smoothing": 0.2}, partial(preference.dpo_loss, label_smoothing=0.2)),
        ({"loss": "robust", "label_smoothing": 0.2}, partial(preference.robust_dpo_loss, flipped=0.2)),
        ({"loss": "hinge"}, preference.hinge_loss),
        ({"loss": "ipo", "per_token": 1}, lambda margin: preference.ipo_loss(margin / BETA, BETA)),
        ({"per_token": 1}, preference.dpo_loss),
        ({"sft_weight": 0.5}, preference.dpo_loss),
    ],
)
def test_a_pair_is_taught_by_the_loss_that_was_asked_for(backbone, asked, loss):
    settings = PreferenceConfig(beta=BETA, **asked)
    row = LESSON.own_row()
    policy, reference = backbone.log_probs(row).detach(), backbone.log_probs(row, reference=True)
    lengths = torch.tensor([4, 2]) if settings.per_token else torch.tensor([1, 1])
    moved = (policy - reference) / lengths
    assert abs(moved[0] - moved[1]) > 0.01
    expected = loss(BETA * (moved[0] - moved[1])) - settings.sft_weight * policy[0] / 4

    tally = dpo_kto.gradients(backbone, [LESSON], reference[None], torch.zeros(()), (1.0, 1.0), settings, 1024)

    backbone.peft.zero_grad()
    assert tally.sums["loss"] == pytest.approx(expected.item(), abs=1e-5)


REPLIES = ([4, 5, 6, 7], [8, 9], [4, 5, 9], [10])
ORDER = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
RANKING = TokenizedExample(
    "ranking", [1, 2, 3] * 20, REPLIES, 3.0, ranked=tuple(Preference(*each, weight=0.5) for each in ORDER)
)
PAIRS = [TokenizedExample("ranking", [1, 2, 3] * 20, (REPLIES[a], REPLIES[b]), 0.5) for a, b in ORDER]


@pytest.mark.parametrize("asked", [{}, {"per_token": 1}, {"loss": "hinge"}, {"sft_weight": 0.5}])
def test_a_ranking_in_one_row_teaches_what_its_pairs_teach_in_fewer_tokens(backbone, asked):
    settings = PreferenceConfig(beta=BETA, ranking_weight=2.0, **asked)
    found = {}
    for name, examples in (("one row", [RANKING]), ("pairs", PAIRS)):
        backbone.peft.zero_grad()
        reference = references_of(References(backbone), examples)
        tally = dpo_kto.gradients(backbone, examples, reference, torch.zeros(()), (1.0, 1.0), settings, 1024)
        slopes = {
            key: each.grad * len(examples)  # of the sum over the batch, not the mean
            for key, each in backbone.parameters().items()
            if each.grad is not None
        }
        found[name] = (tally, slopes)
    backbone.peft.zero_grad()
    (ours, our_slopes), (theirs, their_slopes) = found.values()

    assert ours.sums == pytest.approx(theirs.sums, abs=1e-4)
    assert any(each.abs().max() > 1e-3 for each in our_slopes.values())
    for key, each in our_slopes.items():
        assert torch.allclose(each, their_slopes[key], atol=1e-5), key
    assert ours.tokens == 60 + 10
    assert theirs.tokens == 6 * 60 + 3 * 10  # every reply is in three pairs
    computed = [sum(len(pack([each.own_row()]).ids) for each in some) for some in ([RANKING], PAIRS)]
    assert computed[0] < computed[1] / 5


def test_a_ranking_says_when_to_stop_as_its_pairs_do(backbone):
    reference = References(backbone)
    watched = [
        Watch(backbone, KlFromBase(backbone, [], PAIRS), 0.3, 1, validation=validation, references=reference).gains()
        for validation in ([RANKING], PAIRS)
    ]
    assert watched[0].tolist() == pytest.approx([float(watched[1].mean())], abs=1e-6)


def test_a_training_on_rankings_goes_on_from_its_checkpoint_to_the_same_end(tiny, tmp_path):
    settings = PreferenceConfig(epochs=3, min_steps=1, batch_size=2, evals_per_epoch=1, kl_budget=50)

    def trained(stop: int | None) -> dict[str, torch.Tensor]:
        moving = Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)
        trainer = dpo_kto.PreferenceTrainer(moving, [RANKING, *PAIRS[:3]], settings, [RANKING, PAIRS[0]])
        state = trainer.begin()
        checkpoint.load(tmp_path / "state", state)
        for report in train(trainer, state):
            if report.step == stop:
                checkpoint.save(tmp_path / "state", state)
                return {}
        return {name: each.detach().clone() for name, each in state.parameters.items()}

    whole = trained(None)
    trained(3)
    assert all(torch.equal(each, whole[name]) for name, each in trained(None).items())


def test_the_stronger_a_preference_the_more_it_teaches_and_without_a_strength_there_is_no_margin(backbone):
    reference = References(backbone).of(LESSON.own_row())[None]

    def learned(strength: float, strength_margin: float, loss: Loss = "sigmoid") -> float:
        settings = PreferenceConfig(beta=BETA, strength_margin=strength_margin, loss=loss, per_token=int(loss == "ipo"))
        lesson = replace(LESSON, strength=strength)
        tally = dpo_kto.gradients(backbone, [lesson], reference, torch.zeros(()), (1.0, 1.0), settings, 1024)
        backbone.peft.zero_grad()
        return tally.sums["loss"]

    losses = [learned(strength, 1.0) for strength in (0.0, 0.25, 0.5, 1.0)]
    assert losses == sorted(set(losses))
    (margin,) = margins_of(backbone.log_probs(LESSON.own_row()), LESSON, reference[0], torch.zeros(()), BETA)
    assert losses[3] == pytest.approx(torch.log1p((1 - margin).exp()).item(), abs=1e-5)
    assert learned(1.0, 0.0) == losses[0]
    assert learned(1.0, 1.0, "ipo") == learned(0.0, 1.0, "ipo")


def test_every_loss_that_may_be_asked_for_is_there():
    assert set(get_args(Loss)) == set(LOSSES)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(Refused, match="loss is one of sigmoid, robust, hinge, ipo, not 'square'"):
        parse_settings("dpo", ["loss=square"])
    assert parse_settings("dpo", ["loss=ipo", "per_token=1"]) == {"loss": "ipo", "per_token": 1}
    with pytest.raises(Refused, match="sft_weight must be at least 0"):
        PreferenceConfig(sft_weight=-1)
    with pytest.raises(Refused, match="loss=ipo takes per_token=1, as its target is a gap per token"):
        PreferenceConfig(loss="ipo")
    for loss in ("ipo", "hinge"):
        with pytest.raises(Refused, match=f"label_smoothing is for the losses sigmoid and robust, .* for {loss}"):
            PreferenceConfig(loss=loss, per_token=1, label_smoothing=0.1)
    with pytest.raises(Refused, match=r"beta is 0, for that of the loss, or at least 0\.0001, not 1e-09"):
        PreferenceConfig(beta=1e-9)


@pytest.mark.parametrize(
    ("asked", "beta"),
    [
        ({}, 0.02),
        ({"per_token": 1}, 2.0),
        ({"loss": "robust", "label_smoothing": 0.1}, 0.02),
        ({"loss": "robust", "label_smoothing": 0.1, "per_token": 1}, 2.0),
        ({"loss": "hinge"}, 0.02),
        ({"loss": "ipo", "per_token": 1}, 0.1),
        ({"loss": "ipo", "per_token": 1, "beta": 0.5}, 0.5),
    ],
)
def test_a_beta_that_is_left_out_is_that_of_the_loss(asked, beta):
    config = PreferenceConfig(**asked)
    assert config.beta == config.model_dump()["beta"] == beta
    assert PreferenceConfig(**config.model_dump()) == config  # as a night's row and an adapter's card keep it


def test_beta_0_is_what_it_stands_for_wherever_it_is_asked_for():
    asked = ["loss=ipo", "per_token=1", "beta=0"]
    assert parse_settings("auto", asked) == {"loss": "ipo", "per_token": 1, "beta": 0.1}
    (line,) = (each for each in in_lines(PreferenceConfig) if each.startswith("beta="))
    assert "0: by loss, sigmoid 0.02, or 2 per token; robust 0.02, or 2 per token; hinge" in line
    assert "ipo 0.1 per token" in line


def test_every_loss_has_a_beta_and_reaches_what_it_asks_for():
    assert {loss for loss, _ in preference.BETAS} == set(LOSSES)
    # IPO's target at its beta, in nats a token; hinge and sigmoid per token reach a margin of 1 at half a nat a token
    assert 1 / (2 * preference.BETAS["ipo", True]) == 5
    assert preference.hinge_loss(torch.tensor([preference.BETAS["hinge", True] * 0.5])).item() == 0


@pytest.mark.parametrize("asked", [{}, {"loss": "ipo", "per_token": 1}, {"loss": "hinge"}])
def test_the_benchmark_of_rewards_learns_by_the_products_defaults(tiny, asked):
    pairs = [TokenizedExample("comparison", [1, 2, 20 + at], ([30 + at, 31], [40 + at]), 1.0) for at in range(6)]
    config = rewards.config_of(1e-2, asked)
    assert (config.beta, config.thumb_beta) == (PreferenceConfig(**asked).beta, 0.1)
    for some in (pairs, rewards.as_thumbs(pairs)):
        fresh = Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)
        found = rewards.learn_policy(fresh, some, config, {"test": pairs}, References(fresh))["test"]
        moved = [fresh.log_probs(each.row()).detach() - fresh.log_probs(each.row(), reference=True) for each in pairs]
        lengths, beta = (1, 0.1) if some is not pairs else (torch.tensor([2, 1]), config.beta)
        lengths = lengths if config.per_token else 1
        expected = [beta * float((each / lengths)[0] - (each / lengths)[1]) for each in moved]
        assert found == (pytest.approx(expected, abs=1e-4), [1] * 6)
        assert sum(expected) > 0


def test_robust_without_label_smoothing_says_that_it_is_sigmoid(backbone):
    same = torch.tensor([0.3, -1.2])
    assert torch.equal(preference.robust_dpo_loss(same, 0.0), preference.dpo_loss(same))
    said = "loss=robust with label_smoothing=0 is the same as loss=sigmoid"
    assert said in PreferenceTrainer(backbone, [LESSON], PreferenceConfig(loss="robust")).warning
    told = PreferenceTrainer(backbone, [LESSON], PreferenceConfig(loss="robust", label_smoothing=0.1)).warning
    assert told == ""
