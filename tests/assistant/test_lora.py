"""The adapters side by side: what each token is given is what its own adapter adds, and nothing of another's."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assistant.engine.architectures import Target
from assistant.engine.lora import LoraPool, LoraSlot
from assistant.models.adapter import Factors

GROUPS = {"qkv": {"q": 12, "k": 6, "v": 6}, "out": {"o": 10}, "gate_up": {"gate": 14, "up": 14}, "down": {"down": 10}}
INPUTS = {"qkv": 10, "out": 12, "gate_up": 10, "down": 14}
LAYERS = 2


def all_targets() -> dict[str, Target]:
    """The linear layers of two layers; queries and keys have an order of their own."""
    shuffled = torch.Generator().manual_seed(0)
    targets = {}
    for layer in range(LAYERS):
        for group, parts in GROUPS.items():
            start = 0
            for part, (name, outputs) in enumerate(parts.items()):
                order = torch.randperm(outputs, generator=shuffled) if name in "qk" else None
                targets[f"{layer}.{name}"] = Target(layer, group, part, slice(start, start + outputs), order)
                start += outputs
    return targets


TARGETS = all_targets()
SHAPES = {name: (each.outputs.stop - each.outputs.start, INPUTS[each.group]) for name, each in TARGETS.items()}


@dataclass(frozen=True)
class Sitting:
    """An adapter that was added."""

    factors: Factors
    lora_slot: LoraSlot


def new_lineup() -> LoraPool:
    return LoraPool(TARGETS, SHAPES, torch.float32, "cpu")


def random_factors(seed: int, ranks: dict[str, int]) -> Factors:
    numbers = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, SHAPES[name][1], generator=numbers),
            torch.randn(SHAPES[name][0], rank, generator=numbers),
        )
        for name, rank in ranks.items()
    }


def added(factors: Factors | None, layer: int, group: str, x: Tensor) -> Tensor:
    """What an adapter adds to a group's outputs for one token's x (in,), by the book: b (a x)."""
    y = torch.zeros(sum(GROUPS[group].values()))
    for name, (a, b) in (factors or {}).items():
        target = TARGETS[name]
        if (target.layer, target.group) == (layer, group):
            own = b @ (a @ x)
            y[target.outputs] = own if target.order is None else own[target.order]
    return y


def require_plain(lineup: LoraPool, sitting: list[Sitting], tokens: list[int | None]) -> None:
    """Check a batch whose tokens have these adapters (None: the base) in every layer and group."""
    choice = lineup.choose([None if at is None else sitting[at].lora_slot for at in tokens])
    for layer in range(LAYERS):
        for group, parts in GROUPS.items():
            x, y = torch.randn(len(tokens), INPUTS[group]), torch.randn(len(tokens), sum(parts.values()))
            own = [None if at is None else sitting[at].factors for at in tokens]
            plain = torch.stack([y[row] + added(own[row], layer, group, x[row]) for row in range(len(tokens))])
            got = y if choice is None else choice.add(layer, group, x, y.clone())
            torch.testing.assert_close(got, plain, atol=1e-3, rtol=1e-4)


RANKS = st.dictionaries(st.sampled_from(sorted(TARGETS)), st.sampled_from([1, 2, 3, 8, 17, 64]), min_size=1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_adapters_come_and_go_and_every_token_gets_its_own(data: st.DataObject) -> None:
    lineup, sitting = new_lineup(), list[Sitting]()
    for step in range(data.draw(st.integers(1, 12))):
        if sitting and data.draw(st.booleans()):
            lineup.remove(sitting.pop(data.draw(st.integers(0, len(sitting) - 1))).lora_slot)
        else:
            factors = random_factors(step, data.draw(RANKS))
            sitting.append(Sitting(factors, lineup.add(factors)))
        whose = st.sampled_from([None, *range(len(sitting))])
        require_plain(lineup, sitting, data.draw(st.lists(whose, min_size=1, max_size=6)))
    for each in sitting:
        lineup.remove(each.lora_slot)
    assert lineup.nbytes == 0


def test_an_adapter_that_takes_the_place_of_one_that_left_takes_no_more_memory() -> None:
    lineup = new_lineup()
    sitting = [Sitting(each, lineup.add(each)) for each in (random_factors(at, {"0.q": 8}) for at in range(5))]
    before = lineup.nbytes
    for at in range(20):
        lineup.remove(sitting.pop(at % 5).lora_slot)
        factors = random_factors(at, {"1.down": 6, "0.v": 1})
        sitting.append(Sitting(factors, lineup.add(factors)))
        require_plain(lineup, sitting, [0, 1, None, 2, 3, 4, 4])
    assert lineup.nbytes == before


def test_a_step_that_is_being_computed_is_not_changed_by_who_comes_or_goes() -> None:
    lineup = new_lineup()
    factors = random_factors(1, {"0.q": 4, "0.v": 2})
    first, second = lineup.add(factors), lineup.add(random_factors(2, {"0.k": 4}))
    choice = lineup.choose([first, None])
    x, y = torch.randn(2, INPUTS["qkv"]), torch.randn(2, 24)
    assert choice is not None
    plain = choice.add(0, "qkv", x, y.clone())
    lineup.remove(second)
    lineup.add(random_factors(3, dict.fromkeys(TARGETS, 200)))
    assert torch.equal(choice.add(0, "qkv", x, y.clone()), plain)


@pytest.mark.parametrize("number", [1e38, -1e38])
def test_an_adapter_whose_numbers_overflow_spoils_no_other_token(number: float) -> None:
    lineup = new_lineup()
    wild = {name: (torch.full((2, shape[1]), number), torch.ones(shape[0], 2)) for name, shape in SHAPES.items()}
    tame = Sitting(random_factors(1, {"0.q": 4, "1.down": 2}), lineup.add(random_factors(1, {"0.q": 4, "1.down": 2})))
    sitting = [tame, Sitting(wild, lineup.add(wild))]
    choice = lineup.choose([sitting[1].lora_slot, sitting[0].lora_slot, None])
    x = torch.ones(3, INPUTS["qkv"])
    assert choice is not None
    got = choice.add(0, "qkv", x, torch.zeros(3, 24))
    assert not got[0].isfinite().all()
    torch.testing.assert_close(got[1], added(tame.factors, 0, "qkv", x[1]), atol=1e-3, rtol=1e-4)
    assert got[2].tolist() == [0.0] * 24


def test_nothing_of_what_is_added_is_lost_in_an_output_of_few_bits() -> None:
    lineup = new_lineup()
    factors = {name: (a / 100, b / 100) for name, (a, b) in random_factors(1, dict.fromkeys(TARGETS, 4)).items()}
    sitting = Sitting(factors, lineup.add(factors))
    x, y = torch.randn(1, INPUTS["qkv"]), torch.randn(1, 24).bfloat16()
    choice = lineup.choose([sitting.lora_slot])
    assert choice is not None
    got = choice.add(0, "qkv", x, y.clone()) - y.float()
    torch.testing.assert_close(got[0], added(factors, 0, "qkv", x[0]), atol=1e-6, rtol=1e-3)
