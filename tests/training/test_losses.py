"""The losses against numbers worked by hand, their gradients against differences, and against TRL where it has them."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from training.algorithms import rloo
from training.algorithms.rloo import RlooConfig
from training.losses import policy_gradient, preference
from training.model.packing import Row
from training.model.policy import Backbone
from training.rollouts.sampler import Rollout


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_dpo_is_minus_log_sigmoid_of_the_margin():
    # margin = 0.1 * ((-10 - -12) - (-20 - -17)) = 0.1 * (2 + 3) = 0.5; -log sigmoid(0.5) = log(1 + e^-0.5) = 0.474077
    margin = preference.dpo_margin(t(-10), t(-20), t(-12), t(-17), beta=0.1)
    assert margin.tolist() == pytest.approx([0.5])
    assert preference.dpo_loss(margin).tolist() == pytest.approx([0.474077], abs=1e-6)


def test_dpo_starts_at_log_two():
    same = t(-10, -30)
    assert preference.dpo_loss(preference.dpo_margin(same, same, same, same, 0.1)).tolist() == pytest.approx(
        [math.log(2)] * 2
    )


def test_dpo_loss_falls_when_the_chosen_reply_becomes_likelier():
    chosen = t(-10).requires_grad_()
    preference.dpo_loss(preference.dpo_margin(chosen, t(-20), t(-10), t(-20), 0.1)).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.1 * 0.5)  # -beta * sigmoid(-margin), at margin 0


def test_label_smoothing_is_the_loss_expected_under_wrong_labels():
    # 0.9 * log(1 + e^-0.5) + 0.1 * log(1 + e^0.5) = 0.9 * 0.474077 + 0.1 * 0.974077 = 0.524077
    assert preference.dpo_loss(t(0.5), label_smoothing=0.1).tolist() == pytest.approx([0.524077], abs=1e-6)


def test_smoothed_dpo_is_lowest_at_the_log_odds_of_a_right_label():
    # the derivative is zero where sigmoid(margin) = 1 - e: margin = log(0.9 / 0.1) = 2.197225
    margins = torch.linspace(0, 5, 5001, dtype=torch.float64)
    assert margins[preference.dpo_loss(margins, 0.1).argmin()].item() == pytest.approx(2.197225, abs=1e-3)


def test_an_offset_asks_for_a_margin_whichever_reply_is_the_better_one():
    # margin 0.5 and offset 1: log(1 + e^0.5) = 0.974077; with the label wrong, log(1 + e^1.5) = 1.701413
    assert preference.dpo_loss(t(0.5), offset=t(1.0)).tolist() == pytest.approx([0.974077], abs=1e-6)
    expected = 0.9 * 0.974077 + 0.1 * 1.701413
    assert preference.dpo_loss(t(0.5), 0.1, t(1.0)).tolist() == pytest.approx([expected], abs=1e-6)
    expected = (0.9 * 0.974077 - 0.1 * 1.701413) / 0.8
    assert preference.robust_dpo_loss(t(0.5), 0.1, t(1.0)).tolist() == pytest.approx([expected], abs=1e-6)
    assert preference.hinge_loss(t(0.5), t(1.0)).tolist() == pytest.approx([1.5])


def test_davidsons_model_with_shares_is_the_mean_over_people_and_asks_no_margin_of_a_tie():
    left, right, nu = t(1.0), t(0.0), 0.3
    of_each = {way: preference.davidson_loss(left, right, torch.tensor([way]), nu).item() for way in (1, 0, -1)}
    found = preference.soft_davidson_loss(left, right, t(0.5), t(0.25), nu)
    assert found.tolist() == pytest.approx([0.5 * of_each[1] + 0.25 * of_each[0] + 0.25 * of_each[-1]])
    asked = preference.soft_davidson_loss(left, right, t(0.0), t(1.0), nu, margin=t(2.0))
    assert asked.item() == pytest.approx(of_each[0])
    closer = preference.davidson_loss(t(0.0), t(1.0), torch.tensor([1]), nu)  # 1 apart less 2
    assert preference.soft_davidson_loss(left, right, t(1.0), t(0.0), nu, t(2.0)).tolist() == pytest.approx(
        closer.tolist()
    )


def test_kto_rewards_are_measured_from_the_baseline():
    # z0 = mean(-9 - -10, -5 - -8) = mean(1, 3) = 2
    baseline = preference.kto_baseline(t(-9, -5), t(-10, -8))
    assert baseline.item() == pytest.approx(2.0)
    # wanted: 0.1 * (7 - 2) = 0.5, and 1 - sigmoid(0.5) = 0.377541
    # unwanted: -0.1 * (-8 - 2) = 1, and 1 - sigmoid(1) = 0.268941
    wanted = torch.tensor([True, False])
    margin = preference.kto_margin(t(-10, -28), t(-17, -20), baseline, wanted, beta=0.1)
    assert margin.tolist() == pytest.approx([0.5, 1.0])
    assert preference.kto_loss(margin, wanted).tolist() == pytest.approx([0.377541, 0.268941], abs=1e-6)
    assert preference.kto_loss(margin, wanted, 2.0, 3.0).tolist() == pytest.approx([0.755081, 0.806824], abs=1e-6)


def test_the_kto_baseline_is_never_negative_and_has_no_gradient():
    policy = t(-12).requires_grad_()
    assert preference.kto_baseline(policy, t(-10)).item() == 0
    assert not preference.kto_baseline(policy, t(-20)).requires_grad
    assert preference.kto_baseline(t(), t()).item() == 0


def test_the_running_baseline_is_a_batchs_at_first_and_then_of_all_batches_lately():
    total, count = preference.running_kto_baseline(t(-9, -5), t(-10, -8), 0.0, 0.0)
    assert (total, count) == (4.0, 2.0)  # 1 + 3, of two
    assert total / count == preference.kto_baseline(t(-9, -5), t(-10, -8)).item()
    # the second batch is one ratio of -6: (0.9 * 4 - 6) / (0.9 * 2 + 1)
    total, count = preference.running_kto_baseline(t(-16), t(-10), total, count)
    assert (total, count) == (pytest.approx(-2.4), pytest.approx(2.8))


def test_the_running_baseline_is_not_biased_upwards_by_small_batches():
    chance = torch.Generator().manual_seed(0)
    ratios = 6 * torch.randn(4000, generator=chance).double()  # of a policy that is the reference, by a deviation of 6
    of_batches = [float(preference.kto_baseline(each[None], t(0))) for each in ratios]
    assert sum(of_batches) / len(of_batches) > 2  # E max(0, 6 z) = 6 / sqrt(2 pi) = 2.39
    total, count, running = 0.0, 0.0, []
    for each in ratios.split(4):
        total, count = preference.running_kto_baseline(each, torch.zeros_like(each), total, count)
        running.append(max(0.0, total / count))
    # over 4 * (1 + 0.9) / (1 - 0.9) = 76 effective ratios: 6 / sqrt(76) / sqrt(2 pi) = 0.27
    assert sum(running) / len(running) == pytest.approx(0.27, abs=0.1)


def test_kto_pushes_wanted_replies_up_and_unwanted_ones_down():
    policy = t(-10, -10).requires_grad_()
    wanted = torch.tensor([True, False])
    preference.kto_loss(preference.kto_margin(policy, t(-10, -10), t(0)[0], wanted, 0.1), wanted).sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([-0.025, 0.025])  # beta * sigmoid'(0) = 0.1 / 4


@pytest.mark.parametrize(("wanted", "unwanted"), [(100, 10), (10, 100), (8, 7), (1, 1), (3, 1)])
def test_kto_weights_balance_the_two_kinds_within_their_range(wanted, unwanted):
    up, down = preference.kto_weights(wanted, unwanted)
    assert 1 - 1e-9 <= up * wanted / (down * unwanted) <= 4 / 3 + 1e-9
    assert up * wanted + down * unwanted == pytest.approx(wanted + unwanted)


def test_one_kind_of_thumb_alone_is_not_reweighed():
    assert preference.kto_weights(5, 0) == preference.kto_weights(0, 5) == (1.0, 1.0)


def test_conservative_and_robust_dpo_by_hand():
    # log(1 + e^-0.5) = 0.474077 right, 0.974077 wrong; e = 0.1:
    # robust (0.9 * 0.474077 - 0.1 * 0.974077) / 0.8 = 0.411577
    assert preference.robust_dpo_loss(t(0.5), 0.1).tolist() == pytest.approx([0.411577], abs=1e-6)
    flipped = 0.9 * preference.robust_dpo_loss(t(0.5), 0.1) + 0.1 * preference.robust_dpo_loss(t(-0.5), 0.1)
    assert flipped.tolist() == pytest.approx(preference.dpo_loss(t(0.5)).tolist())  # unbiased: its promise


def test_ipo_hinge_and_length_normalised_dpo_by_hand():
    # log-ratios 6 and -4 over 3 and 2 tokens: 2 - -2 = 4 a token; (4 - 1 / 0.2)^2 = 1
    gap = preference.normalised_margin(t(6), t(-4), t(3), t(2), beta=1.0)
    assert gap.tolist() == [4.0]
    assert preference.ipo_loss(gap, tau=0.1).tolist() == pytest.approx([1.0])
    assert preference.hinge_loss(t(0.4, 1.5)).tolist() == pytest.approx([0.6, 0.0])


def test_the_language_model_loss_is_a_token():
    assert preference.nll_loss(t(-12, -3), t(4, 3)).tolist() == [3.0, 1.0]


def test_weights_weigh_examples():
    assert preference.weighted_mean(t(1, 4), t(3, 1)).item() == pytest.approx(7 / 4)
    assert preference.weighted_mean(t(1, 4), t(0, 0)).item() == 0


def test_bradley_terry_with_margin_soft_label_and_centring_by_hand():
    # scores 1 and 0.5: log(1 + e^-0.5) = 0.474077; with margin 1, log(1 + e^0.5) = 0.974077
    assert preference.bradley_terry_loss(t(1), t(0.5)).tolist() == pytest.approx([0.474077], abs=1e-6)
    assert preference.bradley_terry_loss(t(1), t(0.5), margin=1.0).tolist() == pytest.approx([0.974077], abs=1e-6)
    assert preference.bradley_terry_loss(t(1), t(0.5), label=0.9).tolist() == pytest.approx([0.524077], abs=1e-6)
    # + 0.01 * 1.5^2
    assert preference.bradley_terry_loss(t(1), t(0.5), center_rewards_coefficient=0.01).tolist() == pytest.approx(
        [0.496577], abs=1e-6
    )


def test_a_tie_is_likeliest_between_equals():
    # Davidson with nu = 1 and equal scores: every outcome has probability 1/3
    equal = preference.davidson_loss(t(0.3, 0.3, 0.3), t(0.3, 0.3, 0.3), t(1, 0, -1), log_tie=0.0)
    assert equal.tolist() == pytest.approx([math.log(3)] * 3)
    # scores log 4 and 0, nu 0.5: weights 4, 0.5 * sqrt(4) = 1, 1: P = 2/3, 1/6, 1/6
    apart = preference.davidson_loss(t(math.log(4)).expand(3), t(0).expand(3), t(1, 0, -1), log_tie=math.log(0.5))
    assert apart.exp().reciprocal().tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def test_rao_and_kupper_by_hand():
    # strengths 4 and 1, theta 2: 4 / (4 + 2) = 2/3; 1 / (8 + 1) = 1/9; the tie has the rest, 2/9
    found = preference.rao_kupper_loss(t(math.log(4)).expand(3), t(0).expand(3), t(1, 0, -1), t(math.log(2)))
    assert found.exp().reciprocal().tolist() == pytest.approx([2 / 3, 2 / 9, 1 / 9])


def test_a_ranking_is_choosing_among_the_rest():
    # strengths 4, 2, 1: 4/7 * 2/3 * 1; the second row has two replies, 4 and 2: 4/6
    scores = torch.stack([t(4, 2, 1), t(4, 2, 8)]).log()
    ranked = torch.tensor([[True, True, True], [True, True, False]])
    assert preference.plackett_luce_loss(scores, ranked).tolist() == pytest.approx(
        [-math.log(8 / 21), -math.log(2 / 3)]
    )
    pair = preference.plackett_luce_loss(torch.stack([t(1, 0.5)]))
    assert pair.tolist() == pytest.approx(preference.bradley_terry_loss(t(1), t(0.5)).tolist())


def test_kl_and_entropy_are_exact_over_the_whole_vocabulary():
    # (0.5, 0.5) from (0.25, 0.75): 0.5 log 2 + 0.5 log(2/3) = 0.143841; of a distribution from itself: 0
    policy, reference = t(0.5, 0.5).log()[None], t(0.25, 0.75).log()[None]
    assert policy_gradient.kl_per_position(policy, reference).item() == pytest.approx(0.143841, abs=1e-6)
    assert policy_gradient.kl_per_position(policy, policy + 3).item() == pytest.approx(0, abs=1e-6)
    assert policy_gradient.entropy_per_position(policy).item() == pytest.approx(math.log(2))


# Gradients


def r(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random numbers that want a gradient, in float64."""
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.requires_grad_()


MASK = torch.tensor([[True, True, True, False], [True, True, False, False], [True, True, True, True]])
OUTCOME = torch.tensor([1, 0, -1])
WANTED = torch.tensor([True, False, True])
COUNT = torch.tensor([3.0, 5.0, 2.0], dtype=torch.float64)
RANKED = torch.tensor([[True, True, True], [True, True, False]])
GRADIENTS = {
    "nll": (lambda x: preference.nll_loss(x, COUNT), (r(3),)),
    "weighted mean": (lambda x: preference.weighted_mean(x, COUNT), (r(3),)),
    "bradley-terry": (lambda a, b: preference.bradley_terry_loss(a, b, 0.3, 0.8, 0.01), (r(3), r(3, seed=1))),
    "davidson": (lambda a, b, nu: preference.davidson_loss(a, b, OUTCOME, nu), (r(3), r(3, seed=1), r(1, seed=2))),
    "rao-kupper": (
        lambda a, b, x: preference.rao_kupper_loss(a, b, OUTCOME, x.exp()),
        (r(3), r(3, seed=1), r(1, seed=2)),
    ),
    "plackett-luce": (lambda x: preference.plackett_luce_loss(x, RANKED), (r(2, 3),)),
    "dpo": (
        lambda a, b: preference.dpo_loss(preference.dpo_margin(a, b, COUNT, COUNT, 0.3), 0.1),
        (r(3), r(3, seed=1)),
    ),
    "normalised dpo": (
        lambda a, b: preference.dpo_loss(preference.normalised_margin(a, b, COUNT, COUNT, 2.0)),
        (r(3), r(3, seed=1)),
    ),
    "robust dpo": (lambda x: preference.robust_dpo_loss(x, 0.2), (r(3),)),
    "ipo": (lambda x: preference.ipo_loss(x, 0.2), (r(3),)),
    "hinge": (lambda x: preference.hinge_loss(x), (r(3),)),
    "kto": (
        lambda x: preference.kto_loss(preference.kto_margin(x, COUNT, COUNT.mean(), WANTED, 0.2), WANTED, 1.2, 0.7),
        (r(3),),
    ),
    "whiten": (lambda x: policy_gradient.whiten(x, MASK), (r(3, 4),)),
    "gae": (lambda x, v: policy_gradient.gae(x, v, MASK, 0.9, 0.95), (r(3, 4), r(3, 4, seed=1))),
    "token rewards": (
        lambda s, x: policy_gradient.token_rewards(s, x, torch.zeros(3, 4).double(), MASK, 0.1),
        (r(3), r(3, 4, seed=1)),
    ),
    "rloo": (lambda x: policy_gradient.rloo_advantages(x), (r(2, 3),)),
    "reinforce": (lambda x: policy_gradient.reinforce_loss(x, COUNT), (r(3),)),
    "ppo policy": (
        lambda x: policy_gradient.ppo_policy_loss(x, r(3, seed=1).detach(), COUNT, 0.2),
        (r(3),),
    ),
    "ppo value": (
        lambda x: policy_gradient.ppo_value_loss(x, r(3, seed=1).detach(), COUNT, 0.2),
        (r(3),),
    ),
    "kl": (lambda x: policy_gradient.kl_per_position(x, r(2, 5, seed=1).detach()), (r(2, 5),)),
}


@pytest.mark.parametrize("name", [name for name in GRADIENTS if name != "kl"])
def test_gradients_are_those_of_small_differences(name):
    function, inputs = GRADIENTS[name]
    assert torch.autograd.gradcheck(function, inputs)


# TRL, on the same tensors


class Given(nn.Module):
    """A model that answers with the numbers it is given, one batch after another."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.answers = list(answers)

    def forward(self, **inputs: Any) -> Any:
        return self.answers.pop(0)


def quiet(config: Any, folder: Any, **options: Any) -> Any:
    return config(output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, **options)


def answer(log_probs: torch.Tensor) -> Any:
    """What TRL reads of a model's output; all but the log-probs is for its diagnostics."""
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def dpo_batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Two pairs as TRL collates them, with reference log-probs; and log-probs of each token under a policy."""
    width = 8
    completion = torch.zeros(4, width, dtype=torch.long)
    for row, length in enumerate((3, 5, 4, 2)):
        completion[row, 2 : 2 + length] = 1
    per_token = -r(4, width - 1, seed=5).detach().abs() * completion[:, 1:]
    inputs = {
        "input_ids": torch.ones(4, width, dtype=torch.long),
        "attention_mask": torch.ones(4, width, dtype=torch.long),
        "completion_mask": completion,
        "ref_chosen_logps": t(-2.5, -4.0),
        "ref_rejected_logps": t(-2.0, -1.5),
    }
    return inputs, per_token


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge", "robust", "sigmoid_norm", "sft"])
def test_dpo_and_its_kin_equal_trl(kind, tiny, tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    smoothing = 0.1 if kind == "robust" else 0.0
    asked = {"loss_type": [kind], "beta": 0.3, "label_smoothing": smoothing, "precompute_ref_log_probs": False}
    trainer = trl.DPOTrainer(str(tiny.path), args=quiet(trl.DPOConfig, tmp_path, **asked), train_dataset=rows)
    trainer.precompute_ref_logps = True  # taken from the batch
    inputs, per_token = dpo_batch()
    theirs = trainer._compute_loss(Given(answer(per_token)), dict(inputs), return_outputs=False)

    sums, tokens = per_token.sum(1), inputs["completion_mask"].sum(1)
    chosen, rejected = sums[:2] - inputs["ref_chosen_logps"], sums[2:] - inputs["ref_rejected_logps"]
    margin = preference.dpo_margin(sums[:2], sums[2:], inputs["ref_chosen_logps"], inputs["ref_rejected_logps"], 0.3)
    ours = {
        "sigmoid": lambda: preference.dpo_loss(margin),
        "ipo": lambda: preference.ipo_loss(
            preference.normalised_margin(chosen, rejected, tokens[:2], tokens[2:], 1.0), 0.3
        ),
        "hinge": lambda: preference.hinge_loss(margin),
        "robust": lambda: preference.robust_dpo_loss(margin, 0.1),
        "sigmoid_norm": lambda: preference.dpo_loss(
            preference.normalised_margin(chosen, rejected, tokens[:2], tokens[2:], 0.3)
        ),
        "sft": lambda: preference.weighted_mean(preference.nll_loss(sums[:2], tokens[:2]), tokens[:2].double()),
    }[kind]()
    assert float(ours.mean()) == pytest.approx(float(theirs), abs=1e-6)


def test_the_reward_loss_equals_trl(tiny, tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    from transformers import AutoModelForSequenceClassification

    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    model = AutoModelForSequenceClassification.from_pretrained(str(tiny.path), num_labels=1)
    config = quiet(trl.RewardConfig, tmp_path, center_rewards_coefficient=0.01)
    trainer = trl.RewardTrainer(model, args=config, train_dataset=rows)
    scores, margin = t(1.0, -0.5, 0.2, 0.4), t(0.3, 0.0)
    batch = {"input_ids": torch.ones(4, 2), "attention_mask": torch.ones(4, 2), "margin": margin}
    theirs = trainer.compute_loss(Given(SimpleNamespace(logits=scores[:, None])), batch)
    ours = preference.bradley_terry_loss(scores[:2], scores[2:], margin, center_rewards_coefficient=0.01).mean()
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


def test_kto_equals_trl(tiny, tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    rows = datasets.Dataset.from_list([{"prompt": "a", "completion": "b", "label": each} for each in (True, False)])
    config = quiet(
        trl.KTOConfig, tmp_path, beta=0.2, desirable_weight=1.2, undesirable_weight=0.7, per_device_train_batch_size=2
    )
    trainer = trl.KTOTrainer(str(tiny.path), args=config, train_dataset=rows)
    trainer.precompute_ref_logps = True
    policy, mismatched = -r(3, 4, seed=3).detach().abs(), -r(3, 4, seed=4).detach().abs()
    labels, ref, ref_mismatched = torch.tensor([True, False, True]), t(-2, -3, -1), t(-4.5, -4, -5)
    whole = torch.ones(3, 5, dtype=torch.long)
    batch = dict.fromkeys(("input_ids", "attention_mask", "completion_mask"), whole)
    batch |= {f"KL_{name}": each for name, each in batch.items()}
    batch |= {"label": labels, "ref_logps": ref, "ref_KL_logps": ref_mismatched}
    theirs = trainer._compute_loss(Given(answer(mismatched), answer(policy)), batch, return_outputs=False)

    baseline = preference.kto_baseline(mismatched.sum(1), ref_mismatched)
    assert baseline > 0
    total, count = preference.running_kto_baseline(mismatched.sum(1), ref_mismatched, 0.0, 0.0)
    assert total / count == pytest.approx(float(baseline), abs=1e-12)  # so a first step's is TRL's, too
    margin = preference.kto_margin(policy.sum(1), ref, baseline, labels, 0.2)
    assert float(preference.kto_loss(margin, labels, 1.2, 0.7).mean()) == pytest.approx(float(theirs), abs=1e-6)


GROUPS = {  # TRL's loss_type and scale_rewards, and ours
    "grpo": ("grpo", "group", {"normalise": "reply", "advantage": "group", "scale": "group", "kl_in": "loss"}),
    "dr_grpo": ("dr_grpo", "none", {"normalise": "constant", "advantage": "group", "scale": "none", "kl_in": "loss"}),
    "dapo": ("dapo", "batch", {"normalise": "token", "advantage": "group", "scale": "batch", "kl_in": "loss"}),
}


@pytest.mark.parametrize("masked", [False, True], ids=["every reply", "the truncated left out"])
@pytest.mark.parametrize("name", GROUPS)
def test_grpo_and_its_kin_equal_trl(name, masked, tiny, tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    loss_type, scale, asked = GROUPS[name]
    config = RlooConfig(**asked, beta=0.04, clip_coef=0.2, clip_high=0.28, max_completion_length=8, temperature=0.7)
    options = {"loss_type": loss_type, "scale_rewards": scale, "beta": 0.04, "epsilon": 0.2, "epsilon_high": 0.28}
    options |= {"max_completion_length": 8, "temperature": 0.7, "num_generations": 3, "per_device_train_batch_size": 6}
    options |= {"importance_sampling_level": "token"}
    rows = datasets.Dataset.from_list([{"prompt": "a"}] * 2)
    args = quiet(trl.GRPOConfig, tmp_path, **options)
    trainer = trl.GRPOTrainer(str(tiny.path), reward_funcs=lambda completions, **_: [], args=args, train_dataset=rows)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1

    # two prompts of three replies; the policy that wrote and the reference are some way from the model
    texts = [Row([1, 20, 30], [[50, 51, 52], [60], [70, 71]]), Row([1, 21, 31], [[80, 81], [90, 91, 92, 93], [95]])]
    backbone = Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)
    with torch.no_grad():
        policy = backbone.each_token_of(texts, temperature=0.7)
    noise = torch.Generator().manual_seed(3)
    old = [each + 0.3 * torch.randn(each.shape, generator=noise) for each in policy]
    references = [each + 0.5 * torch.randn(each.shape, generator=noise) for each in policy]
    drawn = [each + 0.5 * torch.randn(each.shape, generator=noise) for each in policy]
    scores = [torch.tensor([1.0, -0.5, 0.3]), torch.tensor([0.2, 0.9, -1.0])]
    kept = [torch.tensor([True, not masked, True]), torch.tensor([True, True, not masked])]
    rollouts = [Rollout(row, (True,) * 3, each) for row, each in zip(texts, drawn, strict=True)]
    ours = rloo.gradients(backbone, rloo.Batch(rollouts, scores, kept, references, old), config, 4096)["loss"]

    replies = [(row.prompt_ids, reply) for row in texts for reply in row.replies]
    width = max(len(reply) for _, reply in replies)

    def wide(values: Any, fill: float = 0.0) -> torch.Tensor:
        parts = [part for row, each in zip(texts, values, strict=True) for part in row.by_reply(each)]
        return torch.stack([torch.nn.functional.pad(part, (0, width - len(part)), value=fill) for part in parts])

    mask = torch.tensor([[1] * len(reply) + [0] * (width - len(reply)) for _, reply in replies])
    mask = mask * torch.cat(kept)[:, None]
    rewards = torch.cat(scores)
    spread = {
        "group": lambda: rewards.view(2, 3).std(1).repeat_interleave(3),
        "batch": rewards.std,
        "none": lambda: 1.0,
    }
    advantages = (rewards.view(2, 3) - rewards.view(2, 3).mean(1, keepdim=True)).flatten()
    inputs = {
        "prompt_ids": torch.tensor([prompt for prompt, _ in replies]),
        "prompt_mask": torch.ones(6, 3, dtype=torch.long),
        "completion_ids": torch.tensor([reply + [0] * (width - len(reply)) for _, reply in replies]),
        "completion_mask": mask,
        "advantages": advantages / (spread[scale]() + (0.0 if scale == "none" else 1e-4)),
        "old_per_token_logps": wide(old),
        "ref_per_token_logps": wide(references),
        "importance_sampling_ratio": (wide(old) - wide(drawn)).exp().clamp(max=2.0),
        "num_items_in_batch": mask.sum(),
    }
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (wide(policy), torch.zeros(6, width), None)
    theirs = trainer._compute_loss(trainer.model, inputs)
    assert ours == pytest.approx(float(theirs), abs=1e-6)
