"""What goes wrong while something trains: numbers that are none, memory that runs out, a policy that collapses.

Faults are put into the numbers that the loops are given, on a tiny model; everything else is real.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from assistant.models.base_model import Base
from tests.feedback.test_split import QUESTIONS
from tests.training.test_early_stopping import examples_of
from tests.training.test_reward_model import examples_of as reward_examples_of
from training.algorithms import dpo_kto, ppo, reward_model, rloo
from training.loop import checkpoint
from training.loop.loop import Metrics, Report, Trainer, train
from training.loop.optim import NotFinite, within_memory
from training.loop.state import TrainState
from training.model.packing import Row
from training.model.policy import Backbone
from training.rollouts.sampler import Collapsed, Rollout, require_life

STEPS = 4


class Faulty(Backbone):
    """A backbone whose passes fail as they are told: at these passes with gradient, in this way."""

    def __init__(self, base: Base) -> None:
        self.faults: dict[int, str] = {}
        self.passes = 0
        super().__init__(base, torch.float32, "cpu", rank=4, alpha=8, seed=0)

    def states(self, packed: Any) -> torch.Tensor:
        found = super().states(packed)
        if not torch.is_grad_enabled():
            return found
        self.passes += 1
        fault = self.faults.pop(self.passes, "")
        if fault == "memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        if fault == "cuda memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found * torch.nan if fault == "nan" else found


def preference_trainer(backbone: Backbone) -> Trainer:
    config = dpo_kto.PreferenceConfig(epochs=1, min_steps=1, batch_size=2, evals_per_epoch=1, kl_budget=50)
    return dpo_kto.PreferenceTrainer(backbone, examples_of(backbone, QUESTIONS[: 2 * STEPS]), config)


def reward_trainer(backbone: Backbone) -> Trainer:
    config = reward_model.RewardConfig(ensemble_size=1, epochs=1, min_steps=1, batch_size=2, rank=4, alpha=8)
    return reward_model.EnsembleTrainer(backbone, reward_examples_of(backbone, QUESTIONS[: 2 * STEPS]), config)


def rollouts() -> tuple[list[Rollout], list[torch.Tensor]]:
    rows = [Row([1, 20 + at], [[30, 31], [40]]) for at in range(3)]
    return [Rollout(row, (True, True)) for row in rows], [torch.tensor([1.0, -1.0])] * 3


def no_scores(rollouts: Any) -> list[torch.Tensor]:
    return [torch.zeros(len(each.row.replies)) for each in rollouts]


class OnFixedRollouts:
    """A policy's steps without the engine: what it learns from is always the same."""

    watch = None
    kl_budget = 50.0
    steps = STEPS

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def begin(self) -> TrainState:
        return self.trainer.begin()

    def prepare(self, state: TrainState) -> None:
        pass  # the sign is checked in `test_on_policy`

    def step(self, state: TrainState) -> Metrics:
        return self.trainer.learn(state, *rollouts(), self.trainer.config)


def rloo_trainer(backbone: Backbone) -> Trainer:
    config = rloo.RlooConfig(steps=STEPS, kl_budget=50)
    return OnFixedRollouts(rloo.RlooTrainer(backbone, None, [], no_scores, config))


def ppo_trainer(backbone: Backbone) -> Trainer:
    config = ppo.PpoConfig(steps=STEPS, epochs=1, num_minibatches=1, kl_budget=50, rank=4, alpha=8)
    return OnFixedRollouts(ppo.PpoTrainer(backbone, None, [], no_scores, config))


TRAINERS = {"preference": preference_trainer, "reward": reward_trainer, "rloo": rloo_trainer, "ppo": ppo_trainer}


def started(loop: str, backbone: Backbone) -> tuple[TrainState, Iterator[Report]]:
    trainer = TRAINERS[loop](backbone)
    state = trainer.begin()
    return state, train(trainer, state)


def weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in backbone.peft.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("loop", TRAINERS)
def test_numbers_that_are_none_end_the_run_before_they_reach_the_weights(tiny, loop, at):
    backbone = Faulty(tiny)
    _, reports = started(loop, backbone)
    backbone.faults = {at: "nan"}
    seen: list[dict[str, torch.Tensor]] = []

    def go_on() -> None:
        for _ in reports:
            seen.append(weights(backbone))

    with pytest.raises(NotFinite):
        go_on()
    after = weights(backbone)
    assert all(each.isfinite().all() for each in after.values())
    assert not seen or all(torch.equal(seen[-1][name], after[name]) for name in after)


@pytest.mark.parametrize("fault", ["memory", "cuda memory"])
@pytest.mark.parametrize("loop", TRAINERS)
def test_memory_that_runs_out_halves_what_is_computed_at_once_and_goes_on(tiny, loop, fault):
    backbone, undisturbed = Faulty(tiny), Faulty(tiny)
    _, smooth = started(loop, undisturbed)
    done = [each.metrics["loss"] for each in smooth]
    state, reports = started(loop, backbone)
    backbone.faults = {2: fault, 3: fault}

    found = [each.metrics["loss"] for each in reports]

    assert not backbone.faults
    assert state.tokens_at_once == 256
    assert found == pytest.approx(done, abs=1e-4)  # the same steps, in smaller packs


def test_memory_that_never_suffices_is_said(tiny):
    backbone = Faulty(tiny)
    _, reports = started("preference", backbone)
    backbone.faults = dict.fromkeys(range(1, 20), "memory")
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        list(reports)


def test_other_errors_are_not_taken_for_memory():
    def compute(tokens: int) -> None:
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        within_memory(TrainState({}, torch.optim.AdamW([torch.zeros(1, requires_grad=True)])), compute)


def life(state: TrainState, replies: list[list[int]], scores: list[float]) -> None:
    made = [Rollout(Row([1, 2], replies), (True,) * len(replies))]
    require_life(state, made, [torch.tensor(scores)])


def new_run() -> TrainState:
    return TrainState({}, torch.optim.AdamW([torch.zeros(1, requires_grad=True)]))


def test_a_policy_that_writes_the_same_whatever_is_drawn_has_collapsed():
    run = new_run()
    for _ in range(2):
        life(run, [[5], [5]], [0.0, 0.1])
    life(run, [[5], [6]], [0.0, 0.1])  # once more alive: counted anew
    for _ in range(2):
        life(run, [[5], [5]], [0.0, 0.1])
    with pytest.raises(Collapsed, match="were the same"):
        life(run, [[5], [5]], [0.0, 0.1])


def test_a_policy_whose_scores_sink_has_collapsed():
    run = new_run()
    life(run, [[5], [6]], [1.0, 0.0])
    for _ in range(3):
        life(run, [[5], [6]], [-0.4, 0.4])  # worse, but within the noise
    life(run, [[5], [6]], [-3.0, -2.0])  # one bad step is not yet a trend
    with pytest.raises(Collapsed, match="sank"):
        life(run, [[5], [6]], [-3.0, -2.0])


@pytest.mark.parametrize("loop", ["rloo", "ppo"])
def test_a_run_that_goes_on_ends_as_if_nothing_had_been(tiny, loop, tmp_path):
    def train(stop: int | None) -> dict[str, torch.Tensor]:
        backbone = Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)
        state, reports = started(loop, backbone)
        checkpoint.load(tmp_path / "policy", state)
        for done in range(state.step, STEPS):
            next(reports)
            if done + 1 == stop:
                checkpoint.save(tmp_path / "policy", state)
                return {}
        return {name: each.detach().clone() for name, each in state.parameters.items()}

    whole = train(None)
    assert train(stop=2) == {}
    broken = train(None)
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
