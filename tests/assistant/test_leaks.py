"""Nothing is lost: not a slot, not a thread, not a byte, after cancels, short requests, swaps and closed engines."""

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import transformers

from assistant.engine.engine import Engine
from assistant.engine.request import Busy
from assistant.engine.sampling.params import Sampling
from assistant.engine.scheduling.writing import Writing
from assistant.models import base_model
from assistant.models.base_model import Base
from tests.assistant.test_architectures import PLAIN, SIZES, random_ids
from tests.helpers.small_models import save_adapter, save_small

KINDS: dict[str, dict[str, Any]] = {"llama": {}, "gpt_neox": PLAIN["gpt_neox"]}  # the fast path, and the other
MOST_GROWTH = 8 << 20  # bytes: the garbage of Python and of the allocator between two looks


def small(folder: Path, kind: str) -> Base:
    return save_small(folder / "model", transformers.AutoConfig.for_model(kind, **SIZES | KINDS[kind]))


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt_neox", marks=pytest.mark.soak)])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Path]]:
    """An engine, and an adapter that it can load."""
    folder = tmp_path_factory.mktemp("leaks")
    base = small(folder, request.param)
    adapter = save_adapter(folder / "adapter", base, 1, r=16, lora_alpha=16, target_modules="all-linear")
    engine = Engine(base, "float32", "cpu", base_model.load_tokenizer(base))
    yield engine, adapter
    engine.close()


def settle(engine: Engine) -> None:
    """Ask once more and read the reply: what was left for the engine's thread to do is done then."""
    for _ in range(2):
        for _ in engine.submit([5], Sampling(temperature=0, max_tokens=1)):
            pass


def cancel_many(engine: Engine, times: int) -> None:
    """Replies that are cancelled while they wait, while their prompt is read, or while they are written."""
    open_ones: list[Writing] = []
    for at in range(times):
        asked = Sampling(temperature=1.0, seed=at, max_tokens=200, ignore_end=True, beams=1)
        writing = engine.submit(random_ids(at, 1 + 41 * at % 250), asked)
        if at % 3 == 0:
            writing.take()
        if at % 5 == 0:
            writing.cancel()
        open_ones.append(writing)
        if len(open_ones) == 40:
            drop(open_ones)
            open_ones = []
    drop(open_ones)


def drop(writing: list[Writing]) -> None:
    """Cancel all; some of the first may have come to their end."""
    for each in writing:
        each.cancel()
    for each in writing:
        for _ in each:
            pass
    finished = [each.finish for each in writing]
    assert set(finished) <= {"cancelled", "length"}
    assert finished.count("cancelled") >= len(writing) // 2


def ask_many(engine: Engine, times: int) -> None:
    """Short replies to short prompts, twenty at a time, with beams here and there."""
    for at in range(0, times, 20):
        asked = [
            Sampling(temperature=1.0, seed=each, max_tokens=2, ignore_end=True) if each % 10 else
            Sampling(temperature=0, beams=2, max_tokens=2)
            for each in range(at, at + 20)
        ]  # fmt: skip
        for each in [engine.submit(random_ids(at + number, 3 + number), one) for number, one in enumerate(asked)]:
            for _ in each:
                pass


def require_empty(engine: Engine) -> None:
    """No reply, no slot, no more kept than may be."""
    settle(engine)
    assert (engine.active, engine.waiting) == (0, 0)
    assert engine.cache.taken_bytes == 0
    assert engine.cache.kept_bytes <= engine.cache.budget // 2


def rss() -> int:
    """This process's memory, without garbage."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def require_flat(engine: Engine, work: Any, times: int) -> None:
    """Do it once for what is kept on purpose, then check that doing it again takes nothing more."""
    work(engine, times)
    threads, before = threading.active_count(), rss()
    work(engine, times)
    require_empty(engine)
    assert threading.active_count() <= threads
    assert rss() - before < MOST_GROWTH


def test_a_hundred_cancels_leave_nothing_behind(opened: tuple[Engine, Path]) -> None:
    require_flat(opened[0], cancel_many, 100)


def test_two_hundred_short_requests_leave_nothing_behind(opened: tuple[Engine, Path]) -> None:
    require_flat(opened[0], ask_many, 200)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_thousand_cancels_leave_nothing_behind(opened: tuple[Engine, Path]) -> None:
    require_flat(opened[0], cancel_many, 1000)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_thousand_short_requests_leave_nothing_behind(opened: tuple[Engine, Path]) -> None:
    require_flat(opened[0], ask_many, 10_000)


def test_a_full_queue_refuses_with_the_position_and_nothing_else_is_harmed(opened: tuple[Engine, Path]) -> None:
    engine, _ = opened
    asked = Sampling(temperature=0, max_tokens=6, ignore_end=True)
    alone = [[token.id for token in engine.submit(random_ids(at, 9), asked)] for at in range(150)]
    accepted, positions = {}, set()
    for at in range(150):
        try:
            accepted[at] = engine.submit(random_ids(at, 9), asked)
        except Busy as error:
            positions.add(str(error))
    assert all(each.startswith("busy, position 65") for each in positions)
    assert {at: [token.id for token in each] for at, each in accepted.items()} == {at: alone[at] for at in accepted}
    assert positions
    require_empty(engine)


def test_the_memory_of_adapters_is_given_back_and_that_of_one_in_use_when_it_is_not(
    opened: tuple[Engine, Path],
) -> None:
    engine, directory = opened
    loaded = [engine.load(directory) for _ in range(5)]
    lora_slots = [weakref.ref(each.lora_slot) for each in loaded]
    writing = engine.submit([5, 6], Sampling(temperature=0, max_tokens=400, ignore_end=True), loaded[2])
    writing.take()
    for each in loaded:
        engine.unload(each)
    settle(engine)
    assert lora_slots[2]() is not None  # it goes on with it
    assert len(list(writing)) > 300
    del loaded, each, writing
    settle(engine)
    gc.collect()
    assert [lora_slot() for lora_slot in lora_slots] == [None] * 5
    assert getattr(engine.network, "lineup", None) is None or engine.network.lineup.nbytes == 0


def test_adapters_that_come_and_go_take_no_more_memory_and_change_no_reply(opened: tuple[Engine, Path]) -> None:
    engine, directory = opened
    asked = Sampling(temperature=0, max_tokens=300, ignore_end=True)
    loaded = engine.load(directory)
    alone = [[token.id for token in engine.submit([5, 6, 7], asked, each)] for each in (loaded, None)]

    def come_and_go(engine: Engine, times: int) -> None:
        for _ in range(times):
            engine.unload(engine.load(directory))

    writing = [engine.submit([5, 6, 7], asked, each) for each in (loaded, None)]
    times = 0
    while any(each.finish is None for each in writing):
        come_and_go(engine, 1)
        times += 1
    assert times > 1
    assert [[token.id for token in each] for each in writing] == alone
    engine.unload(loaded)
    require_flat(engine, come_and_go, 30)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_engine_gives_back_its_model_and_its_thread(tmp_path: Path, kind: str) -> None:
    threads = threading.active_count()
    base = small(tmp_path, kind)
    engine = Engine(base, "float32", "cpu", base_model.load_tokenizer(base))
    settle(engine)
    network, cache = weakref.ref(engine.network), weakref.ref(engine.cache)
    engine.close()
    assert threading.active_count() == threads
    del engine
    gc.collect()
    assert (network(), cache()) == (None, None)
