"""Shares of the engine: whoever asks for much, another's reply begins soon, and nobody alone goes short."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import transformers

from assistant.engine.engine import MOST_WAITING, Engine
from assistant.engine.quant.formats import FLOAT32, Plan
from assistant.engine.request import Busy, Who
from assistant.engine.sampling.params import Sampling
from assistant.engine.scheduling.fair_shares import (
    BESIDE_NEWCOMERS,
    BESIDE_OTHERS,
    KEYS_A_STEP,
    LATELY_S,
    NEWCOMERS_FIRST,
    PUT_OFF,
    Present,
    Turns,
    may_take,
    require_places,
)
from assistant.engine.scheduling.scheduler import MOST_ROWS
from assistant.engine.scheduling.writing import Writing
from assistant.engine.vllm.engine import MOST_OPEN, RemoteEngine
from assistant.models import base_model
from assistant.models.base_model import Base
from tests.assistant.test_architectures import SIZES
from tests.helpers.foreign import Foreign, serving
from tests.helpers.small_models import save_small

GREEDY, HONEST, THIRD = 1, 2, 3
ENDLESS = Sampling(temperature=1.0, max_tokens=400, ignore_end=True)
SHORT = Sampling(temperature=0, max_tokens=4, ignore_end=True)


@pytest.fixture
def engine(tiny: Base) -> Iterator[Engine]:
    """One that takes a step when told to."""
    opened = Engine(tiny, "float32", "cpu", base_model.load_tokenizer(tiny), driven=True)
    yield opened
    opened.close()


def test_a_model_beyond_the_fast_path_answers_one_account_several_times_at_once(tmp_path: Path) -> None:
    base = save_small(tmp_path / "model", transformers.AutoConfig.for_model("gpt_neox", **SIZES))
    engine = Engine(base, "float32", "cpu", base_model.load_tokenizer(base), driven=True)
    asked = [engine.submit([5, 6, 7], SHORT, who=GREEDY) for _ in range(3)]
    for _ in range(20):
        engine.step()
    assert [(len(list(each)), each.finish) for each in asked] == [(4, "length")] * 3
    engine.close()


def fill(engine: Engine, who: Who) -> list[Writing]:
    """All that one can get: rows, and places in the queue."""
    held: list[Writing] = []
    for _ in range(3):
        with suppress(Busy):
            while True:
                held.append(engine.submit([5, 6, 7], ENDLESS, who=who))
        engine.step()
    return held


def steps_to(engine: Engine, writing: Writing, tokens: int) -> int:
    """How many steps it takes until a reply has so many tokens; at most 500."""
    for count in range(500):
        if writing.written >= tokens:
            return count
        engine.step()
    return 500


def test_a_long_prompt_waits_for_that_of_who_holds_less(engine: Engine) -> None:
    long = [engine.submit(list(range(9 + each, 1500 + each)), SHORT, who=GREEDY) for each in range(3)]
    engine.step()
    unread = [each.unread for each in long]
    honest = engine.submit([9, 8], SHORT, who=HONEST)
    engine.step()
    assert (honest.written, [each.unread for each in long]) == (1, unread)


def test_a_long_prompt_waits_for_a_few_steps_at_most(engine: Engine) -> None:
    long = [engine.submit(list(range(9 + each, 1500 + each)), SHORT, who=GREEDY) for each in range(3)]
    engine.step()
    unread = [each.unread for each in long]
    for step in range(PUT_OFF + 2):  # somebody who holds less has something new to be read in every step
        engine.submit(list(range(40 + 7 * step, 540 + 7 * step)), Sampling(temperature=0, max_tokens=1), who=HONEST)
        engine.step()
    assert sum(each.unread for each in long) < sum(unread)


def test_a_long_text_goes_on_as_often_as_what_it_reads_allows_and_a_short_one_always() -> None:
    turns, long, short = Turns(), 4 * KEYS_A_STEP, KEYS_A_STEP
    went = []
    for _ in range(40):
        turns.begin({GREEDY: long, HONEST: short})
        went.append((turns.take(GREEDY, long, False), turns.take(HONEST, short, False)))
    assert went == [(False, True), (False, True), (False, True), (True, True)] * 10


def test_beside_a_newcomer_a_long_text_waits_a_few_steps_more_and_then_goes_on() -> None:
    turns, long = Turns(), 4 * KEYS_A_STEP
    went = []
    for _ in range(200):
        turns.begin({GREEDY: long})
        went.append(turns.take(GREEDY, long, True))
    assert went.index(True) == 4 + NEWCOMERS_FIRST - 1
    assert sum(went) == (200 - NEWCOMERS_FIRST) // 4


def test_a_long_prompt_is_read_beside_others_though_its_owner_has_short_texts_too(engine: Engine) -> None:
    short = engine.submit([5, 6, 7], ENDLESS, who=GREEDY)
    other = engine.submit([9, 8], ENDLESS, who=HONEST)
    engine.step()
    long = engine.submit(list(range(9, 2000)), SHORT, who=GREEDY)
    assert steps_to(engine, long, 4) < 200
    assert min(short.written, other.written) > 4


def test_nothing_is_saved_up_by_who_has_nothing_to_say() -> None:
    turns = Turns()
    for _ in range(100):
        turns.begin({GREEDY: 10})
    turns.begin({HONEST: 10})
    turns.begin({GREEDY: 2 * KEYS_A_STEP})
    assert not turns.take(GREEDY, 2 * KEYS_A_STEP, False)


def test_anothers_long_texts_read_few_keys_a_step_and_what_is_written_is_the_same(engine: Engine) -> None:
    prompts = [list(range(9 + each, 1400 + each)) for each in range(3)]
    some = Sampling(temperature=0, max_tokens=20, ignore_end=True)
    alone = [[token.id for token in engine.submit(each, some, who=GREEDY)] for each in prompts]
    long = [engine.submit(each, some, who=GREEDY) for each in prompts]
    honest = engine.submit([9, 8], Sampling(temperature=0, max_tokens=60, ignore_end=True), who=HONEST)
    assert steps_to(engine, honest, 1) < 5
    read = 0
    for step in range(1, 31):
        before = [(each.written, each.keys) for each in long]
        engine.step()
        read += sum(keys for each, (had, keys) in zip(long, before, strict=True) if had and each.written > had)
        assert read <= KEYS_A_STEP * (step + NEWCOMERS_FIRST) + 1400
    assert read > KEYS_A_STEP * 15
    assert honest.written == 31
    assert [[token.id for token in each] for each in long] == alone


def test_a_reply_of_four_tokens_takes_four_steps_beside_an_account_that_asks_for_all(engine: Engine) -> None:
    held = fill(engine, GREEDY)
    assert steps_to(engine, engine.submit([9, 8], SHORT, who=HONEST), 1) <= 2
    assert steps_to(engine, engine.submit([9, 8], SHORT, who=HONEST), 4) <= 5
    both = [engine.submit([9, 8, at], SHORT, who=THIRD) for at in (1, 2)]  # side by side
    assert max(steps_to(engine, each, 4) for each in both) <= 5
    assert all(each.finish is None for each in held)


def test_what_was_begun_goes_on_by_few_rows_a_step_while_others_are_there_and_loses_nothing(engine: Engine) -> None:
    asked = Sampling(temperature=0, max_tokens=20, ignore_end=True)
    alone = [token.id for token in engine.submit([5, 6, 7], asked)]
    held = [engine.submit([5, 6, 7], asked, who=GREEDY) for _ in range(24)]
    engine.step()
    newcomer = engine.submit([9, 8], ENDLESS, who=HONEST)
    counts = []
    for _ in range(3):
        engine.step()
        counts.append(sum(each.written for each in held))
    assert [after - before for before, after in pairwise([24, *counts])] == [
        BESIDE_NEWCOMERS,
        BESIDE_OTHERS,
        BESIDE_OTHERS,
    ]
    newcomer.cancel()
    assert [[token.id for token in each] for each in held] == [alone] * 24


@pytest.mark.parametrize(("who", "rows"), [(GREEDY, 24), (None, MOST_ROWS)])
def test_without_others_an_account_has_three_quarters_of_the_rows_and_a_machine_without_accounts_all(
    engine: Engine, who: Who, rows: int
) -> None:
    held = fill(engine, who)
    before = engine.tokens_written
    engine.step()
    assert (engine.active, engine.tokens_written - before) == (rows, rows)
    assert sum(bool(each.rows) for each in held) == rows


def test_who_holds_least_comes_first_and_of_several_who_has_waited_longest(engine: Engine) -> None:
    filler = fill(engine, None)
    for each in filler[-MOST_WAITING:]:
        each.cancel()
    engine.step()
    asked = [engine.submit([5, at], ENDLESS, who=who) for at, who in enumerate((1, 1, 1, 2, 2, 3))]
    begun: list[int] = []
    for each in filler[:6]:
        each.cancel()
        engine.step()
        begun += [at for at, one in enumerate(asked) if one.rows and at not in begun]
    assert begun == [0, 3, 5, 1, 4, 2]


def test_a_short_prompt_is_read_before_another_accounts_long_ones(engine: Engine) -> None:
    long = [engine.submit([at, *range(5, 1505)], SHORT, who=GREEDY) for at in range(20)]
    engine.step()
    assert steps_to(engine, engine.submit([9, 8], SHORT, who=HONEST), 1) == 1
    assert not any(each.written for each in long)


def test_the_last_few_tokens_of_a_prompt_are_read_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.network, "plan", Plan(((24, FLOAT32), (0, FLOAT32))))
    others = [engine.submit([5, 6, 7], ENDLESS, who=GREEDY) for _ in range(3)]
    engine.step()
    monkeypatch.setattr(engine._scheduler, "_few_rows", 24)
    monkeypatch.setattr(engine._scheduler, "_prompt_tokens", lambda *_: 4)  # on a slow machine, where others are there
    few = 24 - BESIDE_NEWCOMERS
    assert steps_to(engine, engine.submit(list(range(9, 9 + few)), SHORT, who=HONEST), 1) == 1
    assert steps_to(engine, engine.submit(list(range(40, 40 + few + 5)), SHORT, who=THIRD), 1) == 3
    assert all(each.written for each in others)


def small_engine(tiny: Base, windows: int) -> Engine:
    """One with memory for so many texts of the whole window."""
    base = tiny
    tokenizer = base_model.load_tokenizer(base)
    measured = Engine(base, "float32", "cpu", tokenizer, driven=True)
    measured.close()
    memory = windows * measured.window * measured.cache.token_bytes
    return Engine(base, "float32", "cpu", tokenizer, memory, driven=True)


def test_one_account_takes_no_more_than_three_quarters_of_the_memory(tiny: Base) -> None:
    engine, long = small_engine(tiny, windows=4), Sampling(max_tokens=2000, ignore_end=True)
    for _ in range(8):
        engine.submit([5, 6, 7], long, who=GREEDY)
    engine.step()
    assert engine.active == 3
    engine.submit([5, 6, 7], long, who=HONEST)
    engine.step()
    assert engine.active == 4
    engine.close()


def test_one_who_waits_for_much_memory_is_passed_only_by_those_who_have_nothing(tiny: Base) -> None:
    engine = small_engine(tiny, windows=2)
    long, short = Sampling(max_tokens=2000, ignore_end=True), Sampling(max_tokens=100, ignore_end=True)
    for who in (GREEDY, THIRD):
        engine.submit([5, 6, 7], short, who=who)
    engine.step()
    first = engine.submit([5, 6, 7], long, who=HONEST)
    engine.step()
    much = engine.submit([5, 6, 7], long, who=4)
    more = engine.submit([5, 6, 7], short, who=THIRD)
    little = engine.submit([5, 6, 7], short, who=5)
    engine.step()
    assert (bool(much.rows), bool(more.rows), bool(little.rows)) == (False, False, True)
    first.cancel()
    engine.step()
    assert much.rows
    engine.close()


def test_an_account_may_have_half_of_the_places_in_the_queue_and_others_find_theirs(engine: Engine) -> None:
    fill(engine, GREEDY)
    assert engine.waiting == MOST_WAITING // 2
    with pytest.raises(Busy, match="32 requests of yours wait already, and one person may have 32; try again soon"):
        engine.submit([5], SHORT, who=GREEDY)
    with pytest.raises(Busy, match="requests of yours wait already"):
        engine.require_places(GREEDY, 1)
    engine.require_places(HONEST, 8)
    engine.submit([5], SHORT, who=HONEST)


def test_the_last_quarter_of_places_is_for_those_who_hold_little() -> None:
    assert may_take(1, 23, 1, 23, 32)
    assert not may_take(1, 24, 1, 24, 32)
    assert may_take(2, 0, 8, 24, 32)
    assert may_take(2, 2, 2, 26, 32)
    assert not may_take(2, 4, 1, 28, 32)
    assert not may_take(2, 0, 1, 32, 32)
    assert may_take(None, 31, 1, 31, 32)


def test_two_accounts_that_ask_for_much_leave_places_in_the_queue_for_a_third() -> None:
    waiting = [1] * 32 + [2] * 16
    with pytest.raises(Busy, match="busy, position 49 in the queue"):
        require_places(2, 1, waiting, 64)
    require_places(3, 8, waiting, 64)
    with pytest.raises(Busy, match="busy, position 65 in the queue"):
        require_places(3, 1, [None] * 64, 64)


def test_who_was_here_a_moment_ago_still_counts_and_later_no_more() -> None:
    now = [0.0]
    present = Present(clock=lambda: now[0])
    present.see([1, 2])
    now[0] = LATELY_S - 1
    present.see([1])
    assert not present.is_alone(1)
    now[0] = LATELY_S
    present.see([1])
    assert present.is_alone(1)
    assert not present.is_alone(2)


def test_a_model_server_is_asked_for_no_more_than_one_accounts_share(tiny: Base) -> None:
    base = tiny
    with serving(Foreign(base, base_model.load_tokenizer(base), behaves="hangs")) as foreign:
        engine = RemoteEngine(foreign.url, base, foreign.tokenizer)
        held = [engine.submit([1, 2], Sampling(), who=GREEDY) for _ in range(MOST_OPEN)]
        with pytest.raises(Busy, match="32 replies to you are being written, and one person may have 32 at once"):
            engine.submit([1, 2], Sampling(), who=GREEDY)
        assert engine.submit([1, 2], Sampling(), who=HONEST).take()
        for each in held:
            each.cancel()
        engine.close()
