"""The losses against numbers worked by hand."""

import math

import pytest
import torch

from training import losses


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_dpo_is_minus_log_sigmoid_of_the_margin():
    # margin = 0.1 * ((-10 - -12) - (-20 - -17)) = 0.1 * (2 + 3) = 0.5; -log sigmoid(0.5) = log(1 + e^-0.5) = 0.474077
    margin = losses.dpo_margin(t(-10), t(-20), t(-12), t(-17), beta=0.1)
    assert margin.tolist() == pytest.approx([0.5])
    assert losses.dpo_loss(margin).tolist() == pytest.approx([0.474077], abs=1e-6)


def test_dpo_starts_at_log_two():
    same = t(-10, -30)
    assert losses.dpo_loss(losses.dpo_margin(same, same, same, same, 0.1)).tolist() == pytest.approx([math.log(2)] * 2)


def test_dpo_loss_falls_when_the_chosen_reply_becomes_likelier():
    chosen = t(-10).requires_grad_()
    losses.dpo_loss(losses.dpo_margin(chosen, t(-20), t(-10), t(-20), 0.1)).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.1 * 0.5)  # -beta * sigmoid(-margin), at margin 0


def test_label_smoothing_is_the_loss_expected_under_wrong_labels():
    # 0.9 * log(1 + e^-0.5) + 0.1 * log(1 + e^0.5) = 0.9 * 0.474077 + 0.1 * 0.974077 = 0.524077
    assert losses.dpo_loss(t(0.5), label_smoothing=0.1).tolist() == pytest.approx([0.524077], abs=1e-6)


def test_smoothed_dpo_is_lowest_at_the_log_odds_of_a_right_label():
    # the derivative is zero where sigmoid(margin) = 1 - e: margin = log(0.9 / 0.1) = 2.197225
    margins = torch.linspace(0, 5, 5001, dtype=torch.float64)
    assert margins[losses.dpo_loss(margins, 0.1).argmin()].item() == pytest.approx(2.197225, abs=1e-3)


def test_kto_rewards_are_measured_from_the_baseline():
    # z0 = mean(-9 - -10, -5 - -8) = mean(1, 3) = 2
    baseline = losses.kto_baseline(t(-9, -5), t(-10, -8))
    assert baseline.item() == pytest.approx(2.0)
    # wanted: 0.1 * (7 - 2) = 0.5, and 1 - sigmoid(0.5) = 0.377541
    # unwanted: -0.1 * (-8 - 2) = 1, and 1 - sigmoid(1) = 0.268941
    wanted = torch.tensor([True, False])
    margin = losses.kto_margin(t(-10, -28), t(-17, -20), baseline, wanted, beta=0.1)
    assert margin.tolist() == pytest.approx([0.5, 1.0])
    assert losses.kto_loss(margin, wanted).tolist() == pytest.approx([0.377541, 0.268941], abs=1e-6)
    assert losses.kto_loss(margin, wanted, 2.0, 3.0).tolist() == pytest.approx([0.755081, 0.806824], abs=1e-6)


def test_the_kto_baseline_is_never_negative_and_has_no_gradient():
    policy = t(-12).requires_grad_()
    assert losses.kto_baseline(policy, t(-10)).item() == 0
    assert not losses.kto_baseline(policy, t(-20)).requires_grad
    assert losses.kto_baseline(t(), t()).item() == 0


def test_kto_pushes_wanted_replies_up_and_unwanted_ones_down():
    policy = t(-10, -10).requires_grad_()
    wanted = torch.tensor([True, False])
    losses.kto_loss(losses.kto_margin(policy, t(-10, -10), t(0)[0], wanted, 0.1), wanted).sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([-0.025, 0.025])  # beta * sigmoid'(0) = 0.1 / 4


@pytest.mark.parametrize(("wanted", "unwanted"), [(100, 10), (10, 100), (8, 7), (1, 1), (3, 1)])
def test_kto_weights_balance_the_two_kinds_within_their_range(wanted, unwanted):
    up, down = losses.kto_weights(wanted, unwanted)
    assert 1 - 1e-9 <= up * wanted / (down * unwanted) <= 4 / 3 + 1e-9
    assert up * wanted + down * unwanted == pytest.approx(wanted + unwanted)


def test_one_kind_of_thumb_alone_is_not_reweighed():
    assert losses.kto_weights(5, 0) == losses.kto_weights(0, 5) == (1.0, 1.0)


def test_kl_is_exact_over_the_whole_vocabulary():
    # (0.5, 0.5) from (0.25, 0.75): 0.5 log 2 + 0.5 log(2/3) = 0.143841; of a distribution from itself: 0
    policy, reference = t(0.5, 0.5).log()[None], t(0.25, 0.75).log()[None]
    assert losses.kl_per_position(policy, reference).item() == pytest.approx(0.143841, abs=1e-6)
    assert losses.kl_per_position(policy, policy + 3).item() == pytest.approx(0, abs=1e-6)
