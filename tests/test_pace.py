"""Long prompts beside chats: nobody who is being answered waits for them, by the clock."""

import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from assistant import models
from assistant.engine import Engine, Writing
from assistant.environment import AUTO
from assistant.models import Base
from assistant.pace import LEAST, MOST, Pace
from assistant.sampling import Sampling
from tests.test_families import random_ids

CHATS = 8
LONG = 6000  # tokens
LONGEST_GAP = 3.0  # times the median
# The clock is the machine's, and so is its noise: one gap of some thousands that another program made is no fault of
# the engine's, but it does not come by chance three times in a row.
TRIES = 3


@pytest.fixture(scope="module")
def engine(embedded: Base) -> Iterator[Engine]:
    """As people have it: in the format that is fastest here."""
    opened = Engine(embedded, AUTO, "cpu", models.load_tokenizer(embedded))
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


@pytest.mark.alone
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


def test_a_step_reads_as_much_as_its_tokens_take_and_never_too_much_or_nothing() -> None:
    pace = Pace()
    pace.took(1.0, 0, 500)  # 2 ms a token
    for _ in range(50):
        pace.took(0.04, 8, 0)  # eight rows take 40 ms: as long as 20 tokens
    read = [pace.prompt_tokens(8) for _ in range(10)]
    assert read[-1] == 20
    for _ in range(100):
        pace.took(4.0, 8, 0)
        pace.prompt_tokens(8)
    assert pace.prompt_tokens(8) == MOST
    for _ in range(100):
        pace.took(0.001, 8, 0)
    assert pace.prompt_tokens(8) == LEAST


def test_one_slow_step_hardly_changes_the_pace() -> None:
    pace = Pace()
    pace.took(1.0, 0, 500)
    for _ in range(20):
        pace.took(0.04, 8, 0)
        pace.prompt_tokens(8)
    pace.took(9.0, 8, 0)
    assert pace.prompt_tokens(8) <= 24
