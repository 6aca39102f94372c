"""What goes wrong while something trains: numbers that are none, memory that runs out, a policy that collapses.

Faults are put into the numbers that the loops are given, on a tiny model; everything else is real.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from assistant.models.base_model import Base, find_base
from tests.test_reward import examples_of as reward_examples_of
from tests.test_split import QUESTIONS
from tests.test_watch import examples_of
from tests.tiny import make_tiny
from training.algorithms import dpo_kto, ppo, reward_model, rloo
from training.loop.optim import NotFinite, Report, Run, within_memory
from training.model.packing import Row
from training.model.policy import Backbone
from training.night import run_dir
from training.rollouts.sampler import Collapsed, Rollout, require_life

STEPS = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Base:
    return find_base(str(make_tiny(tmp_path_factory.mktemp("tiny") / "model")))


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


def preference_loop(backbone: Backbone) -> tuple[Any, Iterator[Report]]:
    settings = dpo_kto.Settings(epochs=1, min_steps=1, batch_size=2, evals_per_epoch=1, kl_budget=50)
    progress = dpo_kto.begin(backbone, settings)
    return progress, dpo_kto.train(backbone, examples_of(backbone, QUESTIONS[: 2 * STEPS]), settings, progress)


def reward_loop(backbone: Backbone) -> tuple[Any, Iterator[Report]]:
    settings = reward_model.Settings(epochs=1, min_steps=1, batch_size=2, rank=4, alpha=8)
    head, run = reward_model.begin(backbone, settings, 0)
    return run, reward_model.train(
        backbone, head, reward_examples_of(backbone, QUESTIONS[: 2 * STEPS]), settings, 0, run
    )


def rollouts() -> tuple[list[Rollout], list[torch.Tensor]]:
    rows = [Row([1, 20 + at], [[30, 31], [40]]) for at in range(3)]
    return [Rollout(row, (True, True), torch.zeros(3)) for row in rows], [torch.tensor([1.0, -1.0])] * 3


def steps_of(learn: Callable[..., dict[str, float]], run: Run) -> Iterator[Report]:
    for _ in range(STEPS):
        yield Report(run.step, STEPS, learn(run, *rollouts()), 0.0)


def rloo_loop(backbone: Backbone) -> tuple[Any, Iterator[Report]]:
    settings = rloo.Settings(steps=STEPS, kl_budget=50)
    run = rloo.begin(backbone, settings)
    return run, steps_of(partial(rloo.learn, backbone, settings=settings, method="rloo"), run)


def ppo_loop(backbone: Backbone) -> tuple[Any, Iterator[Report]]:
    settings = ppo.Settings(steps=STEPS, epochs=1, num_minibatches=1, kl_budget=50, rank=4, alpha=8)
    head, run = ppo.begin(backbone, settings)
    return run, steps_of(partial(ppo.learn, backbone, head, settings=settings), run)


LOOPS = {"preference": preference_loop, "reward": reward_loop, "rloo": rloo_loop, "ppo": ppo_loop}


def weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in backbone.peft.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("loop", LOOPS)
def test_numbers_that_are_none_end_the_run_before_they_reach_the_weights(tiny, loop, at):
    backbone = Faulty(tiny)
    _, reports = LOOPS[loop](backbone)
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
@pytest.mark.parametrize("loop", LOOPS)
def test_memory_that_runs_out_halves_what_is_computed_at_once_and_goes_on(tiny, loop, fault):
    backbone, undisturbed = Faulty(tiny), Faulty(tiny)
    _, smooth = LOOPS[loop](undisturbed)
    done = [each.metrics["loss"] for each in smooth]
    state, reports = LOOPS[loop](backbone)
    backbone.faults = {2: fault, 3: fault}

    found = [each.metrics["loss"] for each in reports]

    assert not backbone.faults
    assert state.tokens_at_once == 256
    assert found == pytest.approx(done, abs=1e-4)  # the same steps, in smaller packs


def test_memory_that_never_suffices_is_said(tiny):
    backbone = Faulty(tiny)
    _, reports = preference_loop(backbone)
    backbone.faults = dict.fromkeys(range(1, 20), "memory")
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        list(reports)


def test_other_errors_are_not_taken_for_memory():
    def compute(tokens: int) -> None:
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        within_memory(Run({}, torch.optim.AdamW([torch.zeros(1, requires_grad=True)])), compute)


def life(run: Run, replies: list[list[int]], scores: list[float]) -> None:
    made = [Rollout(Row([1, 2], replies), (True,) * len(replies), torch.zeros(4))]
    require_life(run, made, [torch.tensor(scores)])


def new_run() -> Run:
    return Run({}, torch.optim.AdamW([torch.zeros(1, requires_grad=True)]))


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
        run, reports = LOOPS[loop](backbone)
        run_dir.load_run(tmp_path, run)
        for done in range(run.step, STEPS):
            next(reports)
            if done + 1 == stop:
                run_dir.save_run(tmp_path, run)
                return {}
        return {name: each.detach().clone() for name, each in run.parameters.items()}

    whole = train(None)
    assert train(stop=2) == {}
    broken = train(None)
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
