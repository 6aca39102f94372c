"""The fast path by itself: texts read in any pieces beside any others give the logits of a plain forward."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from assistant.engine.kv_cache import Cache, CacheSlot
from assistant.engine.load import open_network
from assistant.engine.model_runner import Network, SequenceChunk
from assistant.models.adapter import read_adapter
from tests.assistant.test_architectures import FAST, SIZES
from tests.helpers.small_models import Reference, save_adapter, save_small

BUDGET = 1 << 24
LENGTHS = (90, 61, 33, 17)  # of the texts; the windows are shorter


@dataclass(frozen=True)
class Known:
    """A network, and the logits (tokens, V) that a plain forward gives each text with each adapter."""

    network: Network
    lora_slots: dict[str | None, Any]
    texts: list[list[int]]
    plain: dict[tuple[int, str | None], Tensor]


@pytest.fixture(scope="module", params=["llama", "gemma2", "qwen2 with windows"])
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Known:
    folder = tmp_path_factory.mktemp("network")
    config = transformers.AutoConfig.for_model(request.param.split()[0], **SIZES | FAST[request.param])
    base = save_small(folder / "model", config)
    directories = {
        "wide": save_adapter(folder / "wide", base, 1, r=20, lora_alpha=16, target_modules="all-linear"),
        "thin": save_adapter(folder / "thin", base, 2, r=1, lora_alpha=2, target_modules=["k_proj", "down_proj"]),
    }
    network: Any = open_network(base, "float32", "cpu")
    lora_slots = {
        name: network.add(read_adapter(each, base.sha256, network.shapes)[1]) for name, each in directories.items()
    }
    reference = Reference(base, directories, attention="eager")
    numbers = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 512, (length,), generator=numbers).tolist() for length in LENGTHS]
    texts[1][:40] = texts[0][:40]  # two that begin alike
    asked: list[str | None] = [*directories, None]
    plain = {
        (at, name): reference.logits(ids[:1], [*ids[1:], 3], name) for at, ids in enumerate(texts) for name in asked
    }
    return Known(network, lora_slots | {None: None}, texts, plain)


@dataclass
class Reading:
    """A text on its way through the network."""

    text: int
    adapter: str | None
    row: CacheSlot


PLANS = st.lists(
    st.tuples(st.sampled_from(range(len(LENGTHS))), st.sampled_from([None, "wide", "thin"]), st.integers(100, 600)),
    min_size=1,
    max_size=6,
)


def step(known: Known, cache: Cache, readings: list[Reading], counts: list[int]) -> None:
    """Read so many more tokens of each (0: it pauses), and check the logits behind them."""
    going = [(each, count) for each, count in zip(readings, counts, strict=True) if count]
    parts = []
    for each, count in going:
        ids = known.texts[each.text]
        while cache.reuse(each.row, ids):
            pass
        parts.append(SequenceChunk(each.row, ids[each.row.length :][:count], known.lora_slots[each.adapter]))
    if not parts:
        return
    logits = known.network.forward(parts)
    plain = [known.plain[each.text, each.adapter][each.row.length - 1] for each, _ in going]
    torch.testing.assert_close(logits, torch.stack(plain), atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_texts_read_in_any_pieces_beside_any_others_give_the_plain_logits(known: Known, data: st.DataObject) -> None:
    cache = known.network.new_cache(BUDGET)
    for plan in data.draw(st.lists(PLANS, min_size=1, max_size=3)):
        readings = [Reading(text, name, cache.take(room, known.lora_slots[name])) for text, name, room in plan]
        while readings:
            counts = [data.draw(st.sampled_from([0, 1, 1, 1, 2, 7, 30])) for _ in readings]
            step(known, cache, readings, counts if any(counts) else [1] * len(readings))
            over = [each for each in readings if each.row.length == LENGTHS[each.text]]
            for each in over:
                cache.free(each.row)
            readings = [each for each in readings if each not in over]


def test_memory_that_nobody_wrote_to_is_never_read(known: Known) -> None:
    torch.use_deterministic_algorithms(True)  # with which torch fills new memory with NaN
    try:
        cache = known.network.new_cache(BUDGET)
        readings = [Reading(text, None, cache.take(200, None)) for text in range(len(LENGTHS))]
        for counts in ([30, 20, 10, 5], [1] * 4, [0, 9, 0, 1], [1] * 4):
            step(known, cache, readings, counts)
    finally:
        torch.use_deterministic_algorithms(False)


def test_texts_far_apart_in_a_slab_are_computed_without_those_in_between(known: Known) -> None:
    cache = known.network.new_cache(BUDGET)
    readings = [Reading(at % 4, None, cache.take(200, None)) for at in range(8)]
    step(known, cache, readings, [10] * 8)
    grow = [SequenceChunk(readings[at].row, [3]) for at in (0, 2, 7)]
    assert len(known.network._flatten(grow).token_ids) == 3 + 1  # the second slot lies between two that grow
    step(known, cache, readings, [1, 0, 1, 0, 0, 0, 0, 1])
    step(known, cache, readings, [1] * 8)


def test_a_fork_goes_on_differently_and_leaves_the_first_as_it_was(known: Known) -> None:
    cache = known.network.new_cache(BUDGET)
    first = Reading(0, "wide", cache.take(200, known.lora_slots["wide"]))
    step(known, cache, [first], [40])
    other = Reading(1, "wide", cache.fork(first.row))  # the two texts have 40 tokens in common
    while other.row.length < LENGTHS[1]:
        step(known, cache, [first, other], [1, 1])


def test_an_adapter_that_overflows_harms_no_text_beside_or_after_it(known: Known) -> None:
    network = known.network
    wild = network.add(
        {name: (torch.full((1, shape[1]), 1e38), torch.ones(shape[0], 1)) for name, shape in network.shapes.items()}
    )
    cache = network.new_cache(BUDGET)
    readings = [Reading(0, "thin", cache.take(200, known.lora_slots["thin"])), Reading(2, None, cache.take(200, None))]
    bad = cache.take(200, wild)
    for count in (16, 1, 1):
        mine = [
            SequenceChunk(each.row, known.texts[each.text][each.row.length :][:count], known.lora_slots[each.adapter])
            for each in readings
        ]
        logits = network.forward([*mine, SequenceChunk(bad, [5] * count, wild)])
        plain = [known.plain[each.text, each.adapter][each.row.length - 1] for each in readings]
        assert not logits[-1].isfinite().all()
        torch.testing.assert_close(logits[:-1], torch.stack(plain), atol=1e-4, rtol=1e-4)
    cache.free(bad)
    assert cache.kept_bytes == 0  # nobody goes on from what is no number
    network.remove(wild)
    readings.append(Reading(3, None, cache.take(200, None)))  # where the bad one was
    for counts in ([1, 1, 6], [1, 1, 1], [1, 1, 1]):
        step(known, cache, readings, counts)
