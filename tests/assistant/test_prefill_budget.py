"""Long prompts beside chats: nobody who is being answered waits for them, by the clock."""

import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from assistant.engine.engine import Engine
from assistant.engine.sampling.params import Sampling
from assistant.engine.scheduling.prefill_budget import ALONE, FEW, LEAST, MOST, MOST_OF_FEW, TRIED_AGAIN, PrefillBudget
from assistant.engine.scheduling.writing import Writing
from assistant.environment import AUTO
from assistant.models import base_model
from assistant.models.base_model import Base
from benchmarks import material
from tests.assistant.test_architectures import random_ids

CHATS = 8
LONG = 6000  # tokens
LONGEST_GAP = 3.0  # times the median
# The clock is the machine's, and so is its noise: one gap of some thousands that another program made is no fault of
# the engine's, but it does not come by chance in every try.
TRIES = 3


@pytest.fixture(scope="module")
def engine(embedded: Base) -> Iterator[Engine]:
    """As people have it: in the format that is fastest here."""
    opened = Engine(embedded, AUTO, "cpu", base_model.load_tokenizer(embedded))
    yield opened
    opened.close()


@dataclass
class Listener:
    """One who reads a reply as it comes, and when each token came."""

    writing: Writing
    stamps: list[float] = field(default_factory=list)

    def listen(self) -> None:
        while (tokens := self.writing.take()) is not None:
            self.stamps += [time.perf_counter()] * len(tokens)

    @property
    def gaps(self) -> list[float]:
        """Seconds from each token to the next."""
        return [later - earlier for earlier, later in zip(self.stamps, self.stamps[1:], strict=False)]


def worst_gap(engine: Engine, seed: int) -> float:
    """The longest gap in any of the chats while a long prompt is read beside them, over the median of all gaps."""
    endless = Sampling(temperature=1.0, max_tokens=1000, ignore_end=True)
    listeners = [Listener(engine.submit(random_ids(seed + at, 20), endless)) for at in range(CHATS)]
    threads = [threading.Thread(target=each.listen) for each in listeners]
    for each in threads:
        each.start()
    while min(len(each.stamps) for each in listeners) < 20:
        time.sleep(0.01)
    asked = time.perf_counter()
    long = engine.submit(random_ids(seed + 100, LONG), Sampling(temperature=0, max_tokens=3))
    assert long.take()
    read = time.perf_counter()
    going = [each.writing.finish is None for each in listeners]
    for listener, thread in zip(listeners, threads, strict=True):
        listener.writing.cancel()
        thread.join()
    gaps = [gap for each in listeners for gap in each.gaps]
    median = statistics.median(gaps)
    print(
        f"{LONG} tokens in {read - asked:.1f} s; median gap {1000 * median:.1f} ms, longest {1000 * max(gaps):.1f} ms"
    )
    assert all(going)  # every chat went on until the prompt was read
    return max(gaps) / median


@pytest.mark.soak
def test_a_long_prompt_beside_eight_chats_makes_no_gap_of_more_than_three_medians(engine: Engine) -> None:
    best = min_of_tries(engine)
    assert best <= LONGEST_GAP


def min_of_tries(engine: Engine) -> float:
    """The worst gap of the best try; no more tries than it takes."""
    best = worst_gap(engine, 0)
    for again in range(1, TRIES):
        if best <= LONGEST_GAP:
            break
        best = min(best, worst_gap(engine, 1000 * again))
    return best


@pytest.mark.soak
def test_an_adapter_that_is_read_leaves_no_helper_behind(engine: Engine, embedded: Base, tmp_path: Path) -> None:
    helpers = Path("/proc/self/task")
    if not helpers.is_dir() or torch.get_num_threads() == 1:
        pytest.skip("helpers can only be counted on Linux, and with two processors")
    (adapter,) = material.make_adapters(embedded, tmp_path, 1)
    with ThreadPoolExecutor(1) as promoting:  # as that of a server: it lives on
        promoting.submit(int).result()
        before = len(list(helpers.iterdir()))
        engine.unload(promoting.submit(engine.load, adapter).result())
        until = time.monotonic() + 5  # a thread that was told to end takes a moment to be gone
        while len(list(helpers.iterdir())) > before and time.monotonic() < until:
            time.sleep(0.01)
        assert len(list(helpers.iterdir())) == before


def measured(step_s: float, rows: int, fixed_s: float = 0.0) -> PrefillBudget:
    """What is known after many steps, on a machine that reads a token in 2 ms."""
    pace = PrefillBudget()
    pace.took(1.0, 0, 500)
    for _ in range(100):
        pace.took(step_s, rows, 0)
    for read in [16, 24] * 50:
        pace.took(step_s + fixed_s + 0.002 * read, rows, read)
    return pace


def tokens(pace: PrefillBudget, growing: int, reading: int = 1) -> float:
    """What two steps read on average, once it is steady: one a little less, the next a little more."""
    for _ in range(10):
        pace.prompt_tokens(growing, reading)
    return sum(pace.prompt_tokens(growing, reading) for _ in range(2)) / 2


def test_a_step_reads_as_much_as_its_tokens_take_and_never_too_much_or_nothing() -> None:
    assert tokens(measured(0.08, 8), 8) == pytest.approx(40, abs=1)
    assert tokens(measured(4.0, 8), 8) == MOST_OF_FEW
    assert tokens(measured(4.0, 8), 8, 8) == MOST
    assert tokens(measured(0.001, 8), 8) == LEAST
    assert PrefillBudget().prompt_tokens(0, 1) == ALONE


def test_where_many_wait_beside_few_who_are_answered_more_is_read() -> None:
    pace = measured(0.08, 4)
    assert [tokens(pace, 4, reading) for reading in (1, 2, 4, 12)] == pytest.approx([40, 40, 80, 240], abs=1)


def test_while_nothing_is_known_of_so_many_rows_what_is_known_of_fewer_will_do() -> None:
    pace = measured(0.08, 4)
    assert tokens(pace, 15) == pytest.approx(40, abs=1)
    pace.took(0.12, 15, 0)
    assert tokens(pace, 15) == pytest.approx(60, abs=1)
    assert tokens(measured(0.08, 15), 1) == 2 * LEAST


def test_what_reading_costs_however_little_is_read_is_taken_off_and_made_worth_its_while() -> None:
    assert tokens(measured(0.1, 8, fixed_s=0.02), 8) == pytest.approx((0.1 - 0.02) / 0.002, rel=0.05)
    assert tokens(measured(0.1, 8, fixed_s=0.07), 8) == pytest.approx(0.07 / 0.002, rel=0.05)
    assert tokens(measured(0.1, 8, fixed_s=0.2), 8) == LEAST


def test_one_slow_step_hardly_changes_the_pace() -> None:
    pace = measured(0.08, 8)
    pace.took(9.0, 8, 0)
    assert tokens(pace, 8) == pytest.approx(48, abs=2)
    pace.took(9.0, 8, 20)
    assert 24 <= tokens(pace, 8) <= 60


def test_a_first_step_that_was_slow_is_forgotten() -> None:
    pace = PrefillBudget()
    pace.took(0.4, 0, 160)  # ten times what it takes from then on
    pace.took(0.3, 8, 0)
    for _ in range(20):
        pace.took(0.03, 8, 0)
    for _ in range(100):
        read = pace.prompt_tokens(8, 1)
        pace.took(0.03 + 0.01 + 0.0004 * read, 8, read)
    assert tokens(pace, 8) == pytest.approx(0.02 / 0.0004, rel=0.1)


def test_so_much_is_read_as_takes_so_long() -> None:
    pace = PrefillBudget()
    assert pace.tokens_within(0.03, 1) == 2 * LEAST  # nothing is known yet
    pace.took(0.010, 1, 0)
    for tokens in (50, 100, 50, 100):
        pace.took(0.010 + 0.001 * tokens, 1, tokens)
    assert 25 <= pace.tokens_within(0.03, 1) <= 35
    assert pace.tokens_within(0.001, 1) == LEAST
    assert pace.tokens_within(60.0, 1) == MOST


def test_where_more_than_few_rows_take_too_long_few_are_read() -> None:
    pace = PrefillBudget(few_rows=12)
    pace.took(0.030, 2, 0)
    for tokens in (50, 100, 50, 100):
        pace.took(0.030 + 0.150 + 0.005 * tokens, 2, tokens)
    assert pace.tokens_within(0.03, 2) == 10  # all that are few: what those take is not known yet
    for tokens in (4, 10, 4, 10):
        pace.took(0.030 + 0.005 * tokens, 2, tokens)
    assert pace.tokens_within(0.032, 2) == 6
    assert pace.tokens_within(0.001, 2) == FEW
    assert pace.tokens_within(0.03, 11) == 1
    assert pace.tokens_within(0.03, 12) == LEAST
    assert pace.tokens_within(1.0, 2) > LEAST
    read = [pace.tokens_within(0.032, 2) for _ in range(TRIED_AGAIN + 1)]
    assert sorted(set(read)) == [6, LEAST]
    assert read.count(LEAST) == 1
