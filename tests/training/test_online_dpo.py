"""Online DPO: which replies are its pairs, its step, and that it moves toward what is rewarded."""

from functools import partial
from typing import Any

import pytest
import torch

from assistant.models.base_model import Base
from tests.training.test_on_policy import PROMPTS, SMALL, backbone_of, kl_of, liked, nothing, rises, sampler
from training.algorithms.online_dpo import Choice, OnlineDpoConfig, OnlineDpoTrainer, chosen_by, gradients
from training.loop.loop import train
from training.losses import preference
from training.model.packing import Row
from training.rollouts.sampler import Rollout, token_values
from training.rollouts.sign_check import SignFlipped, require_right_sign

__all__ = ["liked", "sampler"]  # fixtures


def trainer_of(tiny: Base, sampler: Any, score: Any, **changes: Any) -> OnlineDpoTrainer:
    config = OnlineDpoConfig(**SMALL | {"steps": 10, "kl_budget": 50.0, "learning_rate": 2e-2} | changes)
    backbone = backbone_of(tiny)
    return OnlineDpoTrainer(backbone, sampler, PROMPTS, score, config, kl_of(backbone, sampler) if sampler else None)


def test_the_best_and_the_worst_of_the_kept_replies_are_the_pair() -> None:
    scores, everything = torch.tensor([1.0, 3.0, -2.0, 0.0]), torch.ones(4, dtype=torch.bool)
    assert chosen_by(scores, everything) == Choice(1, 2, 5.0)
    assert chosen_by(scores, torch.tensor([True, False, False, True])) == Choice(0, 3, 1.0)
    assert chosen_by(scores, torch.tensor([True, False, False, False])) is None
    assert chosen_by(torch.ones(4), everything) is None


def test_it_raises_what_is_rewarded(tiny: Base, sampler: Any, liked: Any) -> None:
    trainer = trainer_of(tiny, sampler, liked)
    metrics = [each.metrics for each in train(trainer, trainer.begin())]
    assert rises(metrics) > 0.1
    assert metrics[0]["pairs"] == 6
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: a fresh adapter is the reference
    assert metrics[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert max(each["engine_gap"] for each in metrics) < 1e-3
    assert metrics[-1]["score_gap"] > 0


def test_its_gradient_is_that_of_dpo_on_the_chosen_pairs(tiny: Base) -> None:
    backbone = backbone_of(tiny)
    with torch.no_grad():
        for each in backbone.parameters().values():
            each += 0.05 * torch.randn(each.shape, generator=torch.Generator().manual_seed(each.numel()))
    row, other = Row([1, 2, 3], [[5, 6], [7, 8, 9], [10]]), Row([1, 4], [[5], [6]])
    rollouts = [Rollout(row, (True,) * 3), Rollout(other, (True,) * 2)]
    config = OnlineDpoConfig(beta=0.3, temperature=0.8)
    references = token_values(backbone, [row, other], 0.8, reference=True)
    found = gradients(backbone, rollouts, [Choice(1, 0, 1.0), None], references, config, 10_000)
    ours = {name: each.grad.clone() for name, each in backbone.parameters().items() if each.grad is not None}

    for each in backbone.parameters().values():
        each.grad = None
    (policy,) = backbone.each_token_of([row], temperature=0.8)
    rejected, chosen, _ = (part.sum() for part in (policy - references[0]).split([2, 3, 1]))
    loss = preference.dpo_loss(0.3 * (chosen - rejected))
    loss.backward()
    assert found["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert ours
    for name, each in backbone.parameters().items():
        if name in ours:
            assert torch.allclose(ours[name], each.grad, atol=1e-6), name  # type: ignore[arg-type]


def test_without_a_difference_nothing_is_learned(tiny: Base, sampler: Any) -> None:
    trainer = trainer_of(tiny, sampler, nothing, steps=2)
    before = {name: each.detach().clone() for name, each in trainer.backbone.parameters().items()}
    metrics = [each.metrics for each in train(trainer, trainer.begin())]
    assert [each["pairs"] for each in metrics] == [0, 0]
    assert all(torch.equal(before[name], each) for name, each in trainer.backbone.parameters().items())


def test_the_canary_trips_on_a_turned_sign(tiny: Base) -> None:
    trainer = trainer_of(tiny, None, nothing)
    learn = partial(trainer.learn, config=trainer.config)
    require_right_sign(trainer.backbone, trainer.begin(), learn)
    with pytest.raises(SignFlipped, match="sign canary"):
        require_right_sign(
            trainer.backbone, trainer.begin(), lambda state, rollouts, scores: learn(state, rollouts, [-scores[0]])
        )


def test_a_spent_budget_ends_the_run_and_goes_back(tiny: Base, sampler: Any, liked: Any) -> None:
    trainer = trainer_of(tiny, sampler, liked, kl_budget=0.01)
    state = trainer.begin()
    list(train(trainer, state))
    assert "nats per token from the base" in state.ended
    assert state.kept_kl <= 0.01
