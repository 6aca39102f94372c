"""REINFORCE, RLOO and PPO: what must be true of them, and that they move toward what is rewarded."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from assistant.models import base_model
from assistant.models.base_model import Base
from training.algorithms import ppo, rloo
from training.data.kl import KlFromBase
from training.loop import checkpoint
from training.loop.loop import Report, train
from training.loop.optim import NotFinite
from training.loop.state import TrainState
from training.losses import policy_gradient as p
from training.model.packing import Row
from training.model.policy import Backbone
from training.rollouts.sampler import Rollout, Sampler, sampling_of, scored
from training.rollouts.sign_check import SignFlipped, require_kl_sign, require_models_sign, require_right_sign

PROMPTS = [[1, 20 + at, 30 + at, 40] for at in range(6)]
SMALL = {"prompts": 6, "replies": 8, "max_completion_length": 4, "rank": 4, "alpha": 8, "learning_rate": 2e-2}
SMALL |= {"temperature": 0.4, "truncated": "keep"}


@pytest.fixture(scope="module")
def sampler(tiny) -> Iterator[Sampler]:
    made = Sampler(tiny, "float32", "cpu", base_model.load_tokenizer(tiny))
    yield made
    made.close()


def backbone_of(tiny: Base) -> Backbone:
    return Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)


@pytest.fixture(scope="module")
def liked(tiny):
    """A reward that can be counted: the share of a reply's tokens that lie on one side of the embedding."""
    network: Any = base_model.load_model(tiny, torch.float32, "cpu")
    good = network.get_input_embeddings().weight[:, 0] > 0

    def score(rollouts: Sequence[Rollout]) -> list[Tensor]:
        return [torch.stack([good[reply].float().mean() for reply in each.row.replies]) for each in rollouts]

    return score


def kl_of(backbone: Backbone, sampler: Sampler) -> KlFromBase:
    """The KL on what the base writes to the prompts."""
    sampler.forget()
    return KlFromBase(backbone, [each.row for each in sampler.write(PROMPTS, 1, sampling_of(0.7, 4), seed=9)], [])


def nothing(rollouts: Sequence[Rollout]) -> list[Tensor]:
    return [torch.zeros(len(each.row.replies)) for each in rollouts]


def run_rloo(tiny, sampler, score, method=rloo.RlooTrainer, **changes):
    backbone = backbone_of(tiny)
    config = rloo.RlooConfig(**SMALL | {"steps": 10, "kl_budget": 50.0, "beta": 0.01} | changes)
    trainer = method(backbone, sampler, PROMPTS, score, config, kl_of(backbone, sampler))
    state = trainer.begin()
    return backbone, state, [each.metrics for each in train(trainer, state)]


def run_ppo(tiny, sampler, score, **changes):
    backbone = backbone_of(tiny)
    # a controller as slow as the paper's, as the run may go far from the base
    asked = {"steps": 12, "kl_budget": 50.0, "beta": 0.01, "target_kl": 1.0, "epochs": 4, "kl_horizon": 10_000}
    config = ppo.PpoConfig(**SMALL | asked | changes)
    trainer = ppo.PpoTrainer(backbone, sampler, PROMPTS, score, config, kl_of(backbone, sampler))
    state = trainer.begin()
    return backbone, state, [each.metrics for each in train(trainer, state)]


def rises(metrics: list[dict[str, float]]) -> float:
    scores = [each["score"] for each in metrics]
    return sum(scores[-3:]) / 3 - sum(scores[:2]) / 2


@pytest.fixture(scope="module")
def rloo_run(tiny, sampler, liked):
    return run_rloo(tiny, sampler, liked)


@pytest.fixture(scope="module")
def ppo_run(tiny, sampler, liked):
    return run_ppo(tiny, sampler, liked)


def test_rloo_raises_what_is_rewarded(rloo_run):
    assert rises(rloo_run[2]) > 0.15


def test_reinforce_with_a_baseline_raises_what_is_rewarded(tiny, sampler, liked):
    assert rises(run_rloo(tiny, sampler, liked, method=rloo.ReinforceTrainer)[2]) > 0.1


def test_ppo_raises_what_is_rewarded(ppo_run):
    _, _, metrics = ppo_run
    assert rises(metrics) > 0.15
    assert metrics[0]["rollout_kl"] == pytest.approx(0, abs=1e-6)  # a fresh adapter is the base
    assert metrics[-1]["updates"] == 8
    assert 0 < metrics[-1]["clip_fraction"] < 1


def test_the_engine_draws_from_what_the_trainer_computes(rloo_run, ppo_run):
    for _, _, metrics in (rloo_run, ppo_run):
        assert max(each["engine_gap"] for each in metrics) < 1e-3  # nats a token, with adapters that have learned
        assert max(each["kl"] for each in metrics) > 0.01


def test_the_highest_seed_draws_as_any_other(sampler):
    seed = (2**32 - 1) * 100_003  # as a trainer makes it of the setting
    first, again = (sampler.write(PROMPTS[:2], 2, sampling_of(1.0, 3), seed) for _ in range(2))
    assert [each.row.replies for each in first] == [each.row.replies for each in again]


@pytest.mark.parametrize("method", ["rloo", "ppo"])
def test_a_run_that_is_cut_off_goes_on_to_the_same_bits(tiny, liked, tmp_path, method):
    def begin() -> tuple[Sampler, TrainState, Iterator[Report]]:
        backbone, fresh = backbone_of(tiny), Sampler(tiny, "float32", "cpu", base_model.load_tokenizer(tiny))
        asked: dict[str, Any] = SMALL | {"steps": 5, "kl_budget": 50.0}
        given = (backbone, fresh, PROMPTS, liked)
        kl = kl_of(backbone, fresh)
        trainer: Any = (
            rloo.RlooTrainer(*given, rloo.RlooConfig(**asked), kl)
            if method == "rloo"
            else ppo.PpoTrainer(*given, ppo.PpoConfig(**asked), kl)
        )
        state = trainer.begin()
        checkpoint.load(tmp_path / "policy", state)
        return fresh, state, train(trainer, state)

    sampler, whole, reports = begin()
    scores = [each.metrics["score"] for each in reports]
    sampler.close()

    sampler, cut, reports = begin()
    before = [next(reports).metrics["score"] for _ in range(2)]
    checkpoint.save(tmp_path / "policy", cut)
    sampler.close()
    sampler, resumed, reports = begin()
    after = [each.metrics["score"] for each in reports]
    sampler.close()

    assert before + after == scores
    assert len(set(scores)) > 1
    assert all(torch.equal(each, resumed.parameters[name]) for name, each in whole.parameters.items())


def test_a_run_without_scores_stays_where_it_is(tiny, sampler):
    for run in (partial(run_rloo, steps=4), partial(run_ppo, steps=3)):
        _, _, metrics = run(tiny, sampler, nothing, beta=0.1)
        assert max(abs(each["kl"]) for each in metrics) < 0.02


def test_a_spent_budget_ends_the_run_and_goes_back(tiny, sampler, liked):
    for run_method in (run_rloo, run_ppo):
        backbone, run, metrics = run_method(tiny, sampler, liked, kl_budget=0.01)
        assert "nats per token from the base" in run.ended
        assert metrics[-1]["kl"] > 0.01
        assert run.kept_kl <= 0.01
        assert run.kept is not None
        assert all(torch.equal(run.kept[name], each) for name, each in backbone.parameters().items())


def test_ratios_are_one_before_the_first_update(ppo_run):
    backbone, _, _ = ppo_run
    settings = ppo.PpoConfig(**SMALL)
    head = ppo.ValueHead(backbone.head.shape[1])
    rows = [Row(each, [[50, 51, 52], [60], [70, 71]]) for each in PROMPTS]
    rollouts = [Rollout(row, (True,) * 3) for row in rows]
    scores = [torch.randn(3) for _ in rows]
    batch = ppo.experience(backbone, head, rollouts, scores, 0.1, settings)
    found = ppo.gradients(backbone, head, batch, [4, 1], settings)
    assert found["mean_log_ratio"] <= found["largest_log_ratio"] < 1e-4
    assert found["approx_kl"] < 1e-8
    assert found["clip_fraction"] == 0
    backbone.peft.zero_grad()


@pytest.mark.parametrize(
    ("dtype", "largest", "mean", "same"),
    [
        (torch.float32, 1e-5, 1e-6, True),
        (torch.float32, 0.01, 1e-6, False),  # one token is wrong
        (torch.bfloat16, 0.5, 0.03, True),  # one token rounds to another place
        (torch.bfloat16, 0.5, 0.2, False),
        (torch.bfloat16, float("nan"), float("nan"), False),
    ],
)
def test_a_first_minibatch_of_another_policy_ends_the_run(dtype, largest, mean, same):
    found = {"largest_log_ratio": largest, "mean_log_ratio": mean}
    with nullcontext() if same else pytest.raises(NotFinite, match="not the one that wrote"):
        ppo.require_same_policy(found, dtype)


def test_log_probs_are_those_of_a_left_padded_batch(ppo_run):
    backbone, _, _ = ppo_run
    rows = [Row([1, 20, 30, 40, 50], [[60, 61, 62]]), Row([1, 20], [[70, 71]])]
    with torch.no_grad():
        ours = torch.cat(backbone.each_token_of(rows, temperature=0.7))
        ids = torch.tensor([[1, 20, 30, 40, 50, 60, 61, 62], [2, 2, 2, 2, 1, 20, 70, 71]])
        mask = torch.tensor([[1] * 8, [0] * 4 + [1] * 4])
        positions = (mask.cumsum(-1) - mask).masked_fill(mask == 0, 0)
        backbone.causal.set_attn_implementation("sdpa")
        logits = backbone.causal(input_ids=ids, attention_mask=mask, position_ids=positions).logits / 0.7
        backbone.causal.set_attn_implementation("nightschool_tree")
    every = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert (ours - torch.cat([every[0, 4:], every[1, 5:]])).abs().max() < 1e-4


def test_a_reply_without_an_end_is_worth_minus_one_exactly():
    made = Rollout(Row([1], [[5, 6], [7]]), (False, True))
    assert scored(lambda _: [torch.tensor([3.0, 3.0])], [made], 1.0)[0].tolist() == [-1.0, 3.0]
    assert scored(lambda _: [torch.tensor([3.0, 3.0])], [made], None)[0].tolist() == [3.0, 3.0]


def test_the_canary_trips_on_a_turned_sign_and_leaves_no_trace(tiny):
    backbone = backbone_of(tiny)
    trainers = [
        rloo.RlooTrainer(backbone, None, PROMPTS, nothing, rloo.RlooConfig(**SMALL)),
        ppo.PpoTrainer(backbone, None, PROMPTS, nothing, ppo.PpoConfig(**SMALL)),
    ]
    before = {name: each.detach().clone() for name, each in backbone.parameters().items()}
    for trainer in trainers:
        learn = partial(trainer.learn, config=trainer.config)
        require_right_sign(backbone, trainer.begin(), learn)

        def turned(state, rollouts, scores, learn=learn):
            return learn(state, rollouts, [-each for each in scores])

        with pytest.raises(SignFlipped, match="sign canary"):
            require_right_sign(backbone, trainer.begin(), turned)
    assert all(torch.equal(before[name], each) for name, each in backbone.parameters().items())


def test_reward_models_that_prefer_what_people_rejected_are_refused():
    require_models_sign([])
    require_models_sign([0.3, -0.1, 0.2])
    with pytest.raises(SignFlipped, match=r"score what people preferred 0\.100 below the rest"):
        require_models_sign([-0.3, 0.1, -0.1])


@pytest.mark.parametrize("method", ["rloo", "grpo", "reinforce", "ppo"])
def test_the_canary_trips_on_a_turned_kl_and_leaves_no_trace(tiny, method):
    backbone = backbone_of(tiny)
    given = (backbone, None, PROMPTS, nothing)
    made = {
        "rloo": lambda: rloo.RlooTrainer(*given, rloo.RlooConfig(**SMALL)),
        "grpo": lambda: rloo.RlooTrainer(
            *given, rloo.RlooConfig(**SMALL, kl_in="loss", advantage="group", scale="group", normalise="reply")
        ),
        "reinforce": lambda: rloo.ReinforceTrainer(*given, rloo.ReinforceConfig(**SMALL)),
        "ppo": lambda: ppo.PpoTrainer(*given, ppo.PpoConfig(**SMALL)),
    }
    trainer: Any = made[method]()
    before = {name: each.detach().clone() for name, each in backbone.parameters().items()}
    trainer.prepare(trainer.begin())
    turned = trainer.trial.model_copy(update={"beta": -1.0})
    with pytest.raises(SignFlipped, match="towards its reference"):
        require_kl_sign(backbone, trainer.new_state(turned), partial(trainer.learn, config=turned))
    assert all(torch.equal(before[name], each) for name, each in backbone.parameters().items())


def test_ppo_without_its_additions_has_the_gradient_of_reinforce(rloo_run):
    backbone, _, _ = rloo_run
    rows = [Row(each, [[50, 51, 52], [60], [70, 71]]) for each in PROMPTS[:3]]
    scores = [torch.tensor([1.0, -0.5, 0.3]), torch.tensor([0.2, 0.9, -1.0]), torch.tensor([-0.7, 0.1, 0.4])]
    tokens = sum(row.reply_tokens for row in rows)

    for row, worth in zip(rows, scores, strict=True):
        found = backbone.log_probs(row)
        (p.reinforce_loss(found, worth).sum() / tokens).backward()
    expected = {name: each.grad.clone() for name, each in backbone.parameters().items()}
    backbone.peft.zero_grad()

    every = {"gamma": 1.0, "gae_lambda": 1.0, "beta": 0.0, "clip_coef": 1e9, "vf_coef": 0.0, "temperature": 1.0}
    settings = ppo.PpoConfig(**SMALL | every)
    backbone.add(ppo.VALUE, 4, 8, seed=1)
    head = ppo.ValueHead(backbone.head.shape[1])  # zero, and so are all values
    rollouts = [Rollout(row, (True,) * 3) for row in rows]
    batch = ppo.experience(backbone, head, rollouts, scores, 0.0, settings)
    plain = ppo.Experience(**vars(batch) | {"advantages": batch.returns})  # not whitened
    ppo.gradients(backbone, head, plain, [0, 1, 2], settings)
    for name, each in expected.items():
        found = backbone.parameters()[name].grad
        assert (found - each).norm() <= 1e-4 * each.norm() + 1e-8, name
    backbone.peft.zero_grad()


def test_demonstrations_are_mixed_in(tiny, sampler):
    backbone = backbone_of(tiny)
    settings = ppo.PpoConfig(**SMALL | {"steps": 2, "ptx_coef": 5.0, "kl_budget": 50.0})
    shown = [Row([1, 20, 30], [[90, 91, 92]])]
    trainer = ppo.PpoTrainer(backbone, sampler, PROMPTS, nothing, settings, demonstrations=shown)
    before = float(backbone.log_probs(shown[0]).detach())
    reports = list(train(trainer, trainer.begin()))
    assert reports[0].metrics["ptx_loss"] > reports[-1].metrics["ptx_loss"]
    assert float(backbone.log_probs(shown[0]).detach()) > before + 0.5
