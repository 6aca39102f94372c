"""What policies learn by, against numbers worked by hand; gradients are checked in `test_losses`."""

import math

import pytest
import torch

from training.losses import policy_gradient as p


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_means_are_over_tokens_and_weigh_replies():
    values = torch.stack([t(1, 3, 99), t(2, 2, 5)])
    assert p.masked_mean(values, MASK).item() == pytest.approx(13 / 5)
    assert p.masked_mean(values, MASK, t(3, 1)).item() == pytest.approx((3 * 4 + 9) / (3 * 2 + 3))


def test_whitening_gives_variance_one_and_keeps_the_mean_where_asked():
    # 1, 3 | 2, 2, 7: mean 3, biased variance (4 + 0 + 1 + 1 + 16) / 5 = 4.4
    values = torch.stack([t(1, 3, 0), t(2, 2, 7)])
    shifted, kept = p.whiten(values, MASK), p.whiten(values, MASK, shift_mean=False)
    assert shifted[1, 2].item() == pytest.approx(4 / math.sqrt(4.4))
    assert p.masked_mean(shifted, MASK).item() == pytest.approx(0, abs=1e-9)
    assert p.masked_mean(kept, MASK).item() == pytest.approx(3)
    assert p.masked_mean((kept - 3) ** 2, MASK).item() == pytest.approx(1)
    assert shifted[0, 2] == kept[0, 2] == 0


def test_a_reply_that_did_not_end_has_its_score_replaced_exactly():
    assert p.replaced_scores(t(3, 3), torch.tensor([True, False])).tolist() == [3.0, -1.0]


def test_the_score_stands_at_the_last_real_token_and_kl_at_every_one():
    ours, ref = torch.stack([t(-1, -2, -9), t(-1, -1, -1)]), torch.stack([t(-2, -1, -3), t(-1, -1, -3)])
    found = p.token_rewards(t(5, 7), ours, ref, MASK, beta=0.1)
    assert found.flatten().tolist() == pytest.approx([-0.1, 0.1 + 5, 0, 0, 0, 7 - 0.2])


def test_the_kl_controller_moves_by_a_bounded_step():
    # kl / target - 1 = 1, clipped to 0.2: 0.1 (1 + 0.2 * 64 / 10000)
    assert p.next_kl_coefficient(0.1, kl=0.2, target=0.1, replies=64, horizon=10_000) == pytest.approx(0.100128)
    assert p.next_kl_coefficient(0.1, kl=0.0, target=0.1, replies=64, horizon=10_000) == pytest.approx(0.099872)
    assert p.next_kl_coefficient(0.1, kl=0.11, target=0.1, replies=1000, horizon=10_000) == pytest.approx(0.101)
    for kl in (0.0, 0.05, 0.1, 1.0, 1e9):
        assert abs(p.next_kl_coefficient(0.1, kl, 0.1, 64, 10_000) / 0.1 - 1) <= 0.2 * 64 / 10_000 + 1e-12


def test_rloo_takes_the_others_mean_off():
    assert p.rloo_advantages(torch.stack([t(1, 2, 6)])).flatten().tolist() == pytest.approx([-3, -1.5, 4.5])


def test_the_groups_mean_is_taken_off_and_advantages_are_scaled():
    rewards = torch.stack([t(1, 2, 6), t(0, 0, 3)])
    centred = p.group_advantages(rewards)
    assert centred.flatten().tolist() == pytest.approx([-2, -1, 3, -1, -1, 2])
    # unbiased deviations: of 1, 2, 6: sqrt(14 / 2); of 0, 0, 3: sqrt(6 / 2); of all six (mean 2): sqrt(26 / 5)
    by_prompt = p.scaled_advantages(centred, rewards, of_batch=False)
    assert by_prompt[:, 2].tolist() == pytest.approx([3 / (7**0.5 + 1e-4), 2 / (3**0.5 + 1e-4)])
    by_batch = p.scaled_advantages(centred, rewards, of_batch=True)
    assert by_batch[:, 2].tolist() == pytest.approx([3 / (5.2**0.5 + 1e-4), 2 / (5.2**0.5 + 1e-4)])
    assert p.scaled_advantages(torch.zeros(1, 2), torch.ones(1, 2), of_batch=False).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("normalise", "weights"),
    [
        ("sequence", [1 / 3, 0, 1 / 3]),
        ("reply", [1 / 6, 0, 1 / 12]),
        ("token", [1 / 6, 0, 1 / 6]),  # two and four tokens are learned from
        ("constant", [1 / 24, 0, 1 / 24]),
    ],
)
def test_a_replys_tokens_weigh_as_the_normalisation_says(normalise, weights):
    tokens, kept = torch.tensor([2, 3, 4]), torch.tensor([True, False, True])
    assert p.reply_weights(tokens, kept, normalise, longest=8).tolist() == pytest.approx(weights)


def test_without_a_reply_to_learn_from_all_weights_are_zero():
    tokens, none = torch.tensor([2, 3]), torch.tensor([False, False])
    for normalise in ("sequence", "reply", "token", "constant"):
        assert p.reply_weights(tokens, none, normalise, longest=8).tolist() == [0, 0]


def test_k3_is_the_kl_in_the_mean_and_never_negative():
    policy, ref = torch.log(t(0.7, 0.2, 0.1)), torch.log(t(0.3, 0.3, 0.4))
    found = p.k3(policy, ref)
    assert (found >= 0).all()
    assert float((policy.exp() * found).sum()) == pytest.approx(float((policy.exp() * (policy - ref)).sum()))


def test_importance_weights_are_truncated_and_carry_no_gradient():
    log_probs = torch.log(t(0.5, 0.9, 0.1)).requires_grad_()
    found = p.importance_weights(log_probs, torch.log(t(0.4, 0.3, 0.2)))
    assert found.tolist() == pytest.approx([1.25, 2.0, 0.5])
    assert not found.requires_grad


def test_advantages_by_hand():
    # gamma 0.5, lambda 0.5; rewards 0, 2 | values 1, 3: deltas 0 + 1.5 - 1 = 0.5 and 2 - 3 = -1
    # advantages 0.5 + 0.25 * -1 = 0.25 and -1; what is behind the last token does not count
    rewards, values = torch.stack([t(0, 2, 9), t(1, 0, 4)]), torch.stack([t(1, 3, 9), t(0, 0, 2)])
    advantages, returns = p.gae(rewards, values, MASK, gamma=0.5, gae_lambda=0.5)
    assert advantages[0].tolist() == pytest.approx([0.25, -1, 0])
    assert returns[0].tolist() == pytest.approx([1.25, 2, 0])
    # second: deltas 1, 1, 2: 1 + 0.25 (1 + 0.25 * 2) = 1.375
    assert advantages[1].tolist() == pytest.approx([1.375, 1.5, 2])


def test_with_gamma_and_lambda_one_the_return_is_the_sum_of_what_comes():
    rewards, values = torch.stack([t(1, 2, 0), t(1, 2, 4)]), torch.stack([t(5, 5, 5), t(1, 7, 3)])
    _, returns = p.gae(rewards, values, MASK, gamma=1.0, gae_lambda=1.0)
    assert returns.flatten().tolist() == pytest.approx([3, 2, 0, 7, 6, 4])


def test_ppo_clips_what_gains_and_not_what_loses():
    ratio = t(1.5, 1.5, 0.5, 0.5)
    found = p.ppo_policy_loss(ratio.log(), t(0, 0, 0, 0), t(1, -1, 1, -1), clip=0.2)
    assert found.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8])
    higher = p.ppo_policy_loss(ratio.log(), t(0, 0, 0, 0), t(1, -1, 1, -1), clip=0.2, clip_high=0.4)
    assert higher.tolist() == pytest.approx([-1.4, 1.5, -0.5, 0.8])
    at_one = p.ppo_policy_loss(t(-3).requires_grad_(), t(-3), t(2), clip=0.2)
    assert at_one.tolist() == [-2.0]


def test_the_value_loss_takes_the_larger_of_the_two_errors():
    # value 2, old 1, clip 0.2: near 1.2. Return 3: errors 1 and 3.24 -> 1.62. Return 1: 1 and 0.04 -> 0.5
    assert p.ppo_value_loss(t(2, 2), t(1, 1), t(3, 1), clip=0.2).tolist() == pytest.approx([1.62, 0.5])


def test_the_diagnostics_by_hand():
    old, new = torch.zeros(2, 3).double(), torch.stack([t(0.1, -0.3, 9), t(0, 0, 0.3)])
    # squares 0.01 + 0.09 + 0.09 over five tokens, halved; two ratios of five are outside 0.8 to 1.2
    assert p.approx_kl(new, old, MASK).item() == pytest.approx(0.5 * 0.19 / 5)
    assert p.clip_fraction(new, old, MASK, 0.2).item() == pytest.approx(2 / 5)
    returns = torch.stack([t(1, 3, 0), t(2, 2, 7)])
    assert p.explained_variance(returns, returns, MASK).item() == pytest.approx(1)
    assert p.explained_variance(torch.full_like(returns, 3), returns, MASK).item() == pytest.approx(0)
