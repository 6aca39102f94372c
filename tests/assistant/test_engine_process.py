"""An engine in a process of its own writes what one in this process writes, says no as it does, and is never lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from assistant.engine.engine import MEMORY, MOST_WAITING, Engine
from assistant.engine.engine_process import EngineApart
from assistant.engine.request import Busy, EngineError, Generation
from assistant.engine.sampling.params import Sampling
from assistant.models import base_model
from assistant.models.adapter import AdapterRefused
from assistant.models.base_model import Base
from feedback.errors import Refused
from tests.helpers.small_models import save_adapter

pytestmark = pytest.mark.long
PROMPT = [5, 6, 7, 8, 9]
GREEDY = Sampling(temperature=0, seed=1, max_tokens=12, ignore_end=True)
ENDLESS = Sampling(temperature=1.0, max_tokens=2000, ignore_end=True)
LOST = "the assistant's engine ended while answering; try again"


@pytest.fixture(scope="module")
def base(tiny: Base) -> Base:
    return tiny


@pytest.fixture(scope="module")
def adapter(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    return save_adapter(folder, base, 1, r=8, lora_alpha=16, target_modules="all-linear")


@pytest.fixture(scope="module")
def shared(base: Base) -> Iterator[EngineApart]:
    """One for all tests that leave it as it was."""
    opened = EngineApart(base, "float32", "cpu", MEMORY)
    yield opened
    opened.close()


@pytest.fixture
def apart(base: Base) -> Iterator[EngineApart]:
    opened = EngineApart(base, "float32", "cpu", MEMORY)
    yield opened
    opened.close()


def read(reply: Generation) -> list[int]:
    return [token.id for token in reply]


def process_of(apart: EngineApart) -> psutil.Process:
    assert apart._process is not None
    return psutil.Process(apart._process.pid)


def until(true: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.05)
    assert true()  # type: ignore[operator]


def test_it_writes_what_an_engine_here_writes(shared: EngineApart, base: Base, adapter: Path) -> None:
    here = Engine(base, "float32", "cpu", base_model.load_tokenizer(base))
    drawn = Sampling(temperature=1.0, seed=3, max_tokens=12, top_logprobs=2, ignore_end=True)
    said, scores, facts = [], [], []
    for engine in (here, shared):
        before, loaded = engine.tokens_written, engine.load(adapter)
        replies = [
            engine.submit(PROMPT, GREEDY),
            engine.submit(PROMPT, GREEDY, loaded),
            engine.submit(PROMPT, drawn, loaded, who=1),
            engine.score(PROMPT, [11, 12, 13], loaded),
        ]
        scores.append([token.logprob for token in replies.pop()])
        said.append([(read(each), each.finish, each.sampling.max_tokens, each.sampling.seed) for each in replies])
        facts.append([loaded.card, engine.window, engine.tolerance, engine.end_ids, engine.number_format])
        assert engine.tokens_written == before + 12 * 3 + 3
        assert [engine.active, engine.waiting] == [0, 0]
    here.close()
    assert said[0][0][0] != said[0][1][0]  # the adapter does something
    assert said[0] == said[1]
    assert facts[0] == facts[1]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)  # of another number of threads


def test_what_an_engine_refuses_is_refused_in_the_same_words(shared: EngineApart, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"the prompt has 5,000 tokens, and the model takes at most 2,048"):
        shared.submit([1] * 5000, GREEDY)
    with pytest.raises(AdapterRefused):
        shared.load(tmp_path / "none")
    with pytest.raises(Busy, match="requests"):
        shared.require_places(1, MOST_WAITING + 1)
    assert read(shared.submit(PROMPT, GREEDY))


def test_a_base_that_cannot_be_opened_is_refused_here(base: Base) -> None:
    with pytest.raises(Refused, match="number format"):
        EngineApart(base, "float17", "cpu", MEMORY)


def test_a_reply_that_is_cancelled_ends(shared: EngineApart) -> None:
    before = shared.tokens_written
    reply = shared.submit(PROMPT, ENDLESS)
    assert reply.take()
    reply.cancel()
    list(reply)
    assert reply.finish == "cancelled"
    assert shared.tokens_written < before + 2000


@pytest.mark.soak
def test_replies_end_when_it_closes_and_nobody_waits_for_it(base: Base) -> None:
    apart = EngineApart(base, "float32", "cpu", MEMORY)
    reply = apart.submit(PROMPT, ENDLESS)
    assert reply.take()
    apart.close()
    list(reply)
    assert reply.finish == "cancelled"
    assert not apart.alive
    with pytest.raises(Busy, match="shutting down"):
        apart.submit(PROMPT, GREEDY)
    assert apart.waiting == 0


@pytest.mark.soak
def test_one_that_dies_young_fails_its_replies_and_says_so(apart: EngineApart) -> None:
    reply = apart.submit(PROMPT, ENDLESS)
    assert reply.take()
    process_of(apart).kill()
    with pytest.raises(EngineError, match=LOST):
        list(reply)
    until(lambda: not apart.alive)
    with pytest.raises(EngineError, match=LOST):
        apart.submit(PROMPT, GREEDY)
    assert apart.active == 0


@pytest.mark.soak
def test_one_that_dies_later_is_started_anew_with_its_adapters(
    apart: EngineApart, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assistant.engine.engine_process.STARTED_ANEW_AFTER_S", 0.0)
    loaded = apart.load(adapter)
    with_it, without = read(apart.submit(PROMPT, GREEDY, loaded)), read(apart.submit(PROMPT, GREEDY))
    written = apart.tokens_written
    first = process_of(apart)
    reply = apart.submit(PROMPT, ENDLESS)
    assert reply.take()
    first.kill()
    with pytest.raises(EngineError, match=LOST):
        list(reply)
    until(lambda: apart.alive)
    assert read(apart.submit(PROMPT, GREEDY, loaded)) == with_it != without
    assert read(apart.submit(PROMPT, GREEDY)) == without
    assert process_of(apart).pid != first.pid
    assert apart.tokens_written >= written + 24
    apart.unload(loaded)
    with pytest.raises(Busy, match="let go a moment ago"):
        apart.submit(PROMPT, GREEDY, loaded)


def test_an_adapter_that_was_changed_since_its_proof_answers_no_more_once_it_is_started_anew(
    apart: EngineApart, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assistant.engine.engine_process.STARTED_ANEW_AFTER_S", 0.0)
    *kept, changed = (
        apart.load(save_adapter(tmp_path / name, base, seed, r=4, target_modules="all-linear"))
        for seed, name in enumerate(("first", "second", "third", "fourth", "changed"), 1)
    )
    written = [read(apart.submit(PROMPT, GREEDY, each)) for each in kept]
    save_adapter(tmp_path / "changed", base, 9, r=4, target_modules="all-linear")
    first = process_of(apart)
    first.kill()
    until(lambda: not first.is_running() and apart.alive)
    replies = [apart.submit(PROMPT, GREEDY, each) for each in reversed(kept)]  # at once: those read last come first
    assert [read(each) for each in reversed(replies)] == written
    with pytest.raises(Busy, match="let go a moment ago"):
        apart.submit(PROMPT, GREEDY, changed)


@pytest.mark.soak
def test_it_ends_with_its_server_and_not_by_a_signal_that_is_the_servers(base: Base) -> None:
    program = f"""
import time
from assistant.models import base_model
from assistant.engine.engine_process import EngineApart
if __name__ == "__main__":
    opened = EngineApart(base_model.find_base({str(base.path)!r}), "float32", "cpu", 1 << 28)
    print(opened._process.pid, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        engine = psutil.Process(int(server.stdout.readline()))
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine.pid, number)
        time.sleep(0.5)
        assert engine.is_running()
        server.kill()
    until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 10)
