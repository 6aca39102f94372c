"""The kinds of loss that a pair may be taught by: each is the function of its name, of the margin it says."""

from functools import partial
from typing import get_args

import pytest
import torch

from feedback.errors import Refused
from training.algorithms import dpo_kto
from training.algorithms.dpo_kto import LOSSES, Loss, PreferenceConfig
from training.algorithms.registry import parse_settings
from training.data.tokenize import TokenizedExample
from training.losses import preference
from training.model.policy import Backbone

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
        ({"loss": "ipo"}, lambda margin: preference.ipo_loss(margin / BETA, BETA)),
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


def test_every_loss_that_may_be_asked_for_is_there():
    assert set(get_args(Loss)) == set(LOSSES)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(Refused, match="loss is one of sigmoid, robust, hinge, ipo, not 'square'"):
        parse_settings("dpo", ["loss=square"])
    assert parse_settings("dpo", ["loss=ipo", "per_token=1"]) == {"loss": "ipo", "per_token": 1}
    with pytest.raises(Refused, match="sft_weight must be at least 0"):
        PreferenceConfig(sft_weight=-1)
