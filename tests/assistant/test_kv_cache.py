"""The cache by itself: every text's keys and values stay its own, whatever is taken, copied, kept and given back.

The model of it is plain: what lies at a position depends on who computed it and on every token up to there.
"""

import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from transformers import LlamaConfig

from assistant.engine.architectures import sizes_of
from assistant.engine.kv_cache import LEAST_SHARED, Cache, CacheSlot, shared_length

CONFIG = LlamaConfig(
    hidden_size=2, intermediate_size=2, num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1, vocab_size=9
)
SIZES = sizes_of(CONFIG)  # two layers; a token's keys and values in one are four numbers
WINDOW = 3000
TOKEN_BYTES = SIZES.layers * SIZES.kept_width * 4
BUDGET = 9000 * TOKEN_BYTES
PRIME = 16_777_213  # whole numbers up to here are exact in float32
# Texts that begin alike for a while, as those of people do: (what it is about, where it leaves that) of each.
TEXTS = [[(about * 7 + at * at) % 9 for at in range(WINDOW)] for about in range(2)]
KEYS = (None, "sailor", "letter")


def new_cache() -> Cache:
    return Cache(SIZES, WINDOW, BUDGET, torch.float32, "cpu")


def computed(key: object, token_ids: list[int]) -> torch.Tensor:
    """What a network would keep of a text, (layers, 2, kv heads, tokens, head width)."""
    value, values = KEYS.index(key) + 1, []
    for token in token_ids:
        value = (value * 31 + token + 1) % PRIME
        values.append(value)
    lanes = torch.arange(8.0).view(2, 2, 1, 1, 2)
    return torch.tensor(values, dtype=torch.float32)[:, None] - lanes


def write(row: CacheSlot, token_ids: list[int]) -> None:
    """Append tokens to a row as the network does."""
    text = [*row.token_ids, *token_ids]
    new = computed(row.key, text)[:, :, :, row.length :]
    row.slab.data[:, row.slot, :, :, row.length : len(text)] = new
    row.token_ids += token_ids


def held(row: CacheSlot) -> torch.Tensor:
    """What the cache holds for a row."""
    return row.slab.written(row)


def texts() -> Any:
    """A prompt: the beginning of a common text, and an end of its own."""
    return st.tuples(st.sampled_from(TEXTS), st.integers(1, WINDOW - 60), st.lists(st.integers(0, 8), max_size=40)).map(
        lambda drawn: drawn[0][: drawn[1]] + drawn[2]
    )


class Texts(RuleBasedStateMachine):
    """Texts come, read what others left, grow, split and go."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = new_cache()
        self.wanted: dict[CacheSlot, list[int]] = {}  # what each living row has been given to hold
        self.slabs: list[weakref.ref[Any]] = []

    @initialize()
    def empty(self) -> None:
        assert (self.cache.taken_bytes, self.cache.kept_bytes) == (0, 0)

    @rule(prompt=texts(), more=st.integers(0, 400), key=st.sampled_from(KEYS), whole=st.booleans())
    def come(self, prompt: list[int], more: int, key: str | None, whole: bool) -> None:
        room = min(len(prompt) + more + 1, WINDOW)
        if not self.cache.fits(room):
            return
        row = self.cache.take(room, key)
        assert row.room >= room
        assert row.length == 0
        self.slabs.append(weakref.ref(row.slab))
        before = row.length
        while self.cache.reuse(row, prompt):
            assert row.length > before
            assert row.token_ids == prompt[: row.length]
            before = row.length
        assert row.length < len(prompt)
        best = max(
            (shared_length(ids, prompt[:-1]) for other, ids in self.wanted.items() if other.key == key), default=0
        )
        assert row.length >= best - LEAST_SHARED + 1
        write(row, prompt[row.length :] if whole else prompt[row.length : row.length + 1])
        self.wanted[row] = list(row.token_ids)

    @precondition(lambda self: self.wanted)
    @rule(data=st.data(), count=st.integers(1, 300))
    def grow(self, data: Any, count: int) -> None:
        row = data.draw(st.sampled_from(list(self.wanted)))
        tokens = [(count + at) % 9 for at in range(min(count, row.room - row.length))]
        write(row, tokens)
        self.wanted[row] += tokens

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def split(self, data: Any) -> None:
        row = data.draw(st.sampled_from(list(self.wanted)))
        if self.cache.fits(row.room):
            other = self.cache.fork(row)
            self.slabs.append(weakref.ref(other.slab))
            self.wanted[other] = list(self.wanted[row])

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def go(self, data: Any) -> None:
        row = data.draw(st.sampled_from(list(self.wanted)))
        self.cache.free(row)
        del self.wanted[row]

    @precondition(lambda self: len(self.wanted) > 2)
    @rule()
    def most_go(self) -> None:
        for row in list(self.wanted)[:-1]:
            self.cache.free(row)
            del self.wanted[row]

    @rule(key=st.sampled_from(KEYS))
    def an_adapter_goes(self, key: str | None) -> None:
        if all(row.key != key for row in self.wanted):
            before = self.cache.kept_bytes
            self.cache.forget(key)
            assert self.cache.kept_bytes <= before

    @invariant()
    def every_text_is_whole(self) -> None:
        for row, token_ids in self.wanted.items():
            assert row.slab.rows[row.slot] is row
            assert row.token_ids == token_ids
            assert torch.equal(held(row), computed(row.key, token_ids))

    @invariant()
    def the_budget_holds(self) -> None:
        assert self.cache.taken_bytes == sum(row.room for row in self.wanted) * TOKEN_BYTES
        assert self.cache.taken_bytes + self.cache.kept_bytes <= BUDGET
        assert self.cache.kept_bytes <= BUDGET // 2

    @invariant()
    def short_texts_lie_together(self) -> None:
        for room in {row.room for row in self.wanted if row.room <= 1024}:
            rows = [row for row in self.wanted if row.room == room]
            assert len({id(row.slab) for row in rows}) == 1
            assert max(row.slot for row in rows) < 2 * len(rows)

    def teardown(self) -> None:
        while self.wanted:
            self.cache.free(self.wanted.popitem()[0])
        for key in KEYS:
            self.cache.forget(key)
        gc.collect()
        assert (self.cache.taken_bytes, self.cache.kept_bytes) == (0, 0)
        assert [slab for slab in self.slabs if slab() is not None] == []


TestTexts = Texts.TestCase
TestTexts.settings = settings(max_examples=3, stateful_step_count=30, deadline=None)


@pytest.mark.soak
class TestManyTexts(Texts.TestCase):
    """The same, for longer."""

    settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


def test_the_next_turn_of_a_long_conversation_takes_the_memory_over_without_copying() -> None:
    cache = new_cache()
    row = cache.take(2500, None)
    write(row, TEXTS[0][:1500])
    cache.free(row)
    assert cache.kept_bytes == 3000 * TOKEN_BYTES  # all the memory that it has
    after = cache.take(2600, None)
    assert cache.reuse(after, TEXTS[0][:1520])
    assert (after.length, cache.kept_bytes) == (1500, 0)
    assert torch.equal(held(after), computed(None, TEXTS[0][:1500]))


def test_what_one_adapter_computed_is_never_given_to_another() -> None:
    cache = new_cache()
    row = cache.take(200, "sailor")
    write(row, TEXTS[0][:200])
    cache.free(row)
    other, same = cache.take(200, "letter"), cache.take(200, "sailor")
    assert not cache.reuse(other, TEXTS[0][:200])
    assert cache.reuse(same, TEXTS[0][:200])
    assert same.length == 199  # what comes after the last token is what is asked for


def finish(cache: Cache, token_ids: list[int], room: int) -> None:
    """A text comes, is written and goes."""
    row = cache.take(room, None)
    cache.reuse(row, [*token_ids, 0])
    write(row, token_ids[row.length :])
    cache.free(row)


def test_of_what_finished_texts_left_the_one_used_longest_ago_goes_first() -> None:
    cache = new_cache()
    long = TEXTS[0][:999]
    for about in (0, 1, 2, 0, 3, 4):  # 1,000 tokens each, and 4,500 may be kept; 0 is used a second time
        finish(cache, [about, *long], 1001)
    assert cache.kept_bytes == 4000 * TOKEN_BYTES
    left = [about for about in range(5) if cache.reuse(cache.take(100, None), [about, *long[:40]])]
    assert left == [0, 2, 3, 4]


def test_a_long_text_that_is_kept_is_not_given_away_to_one_that_only_begins_alike() -> None:
    cache = new_cache()
    finish(cache, TEXTS[0][:2400], 2500)
    other = cache.take(2500, None)
    assert cache.reuse(other, [*TEXTS[0][:40], 8, 8, 8])
    assert other.length == 40
    again = cache.take(2500, None)
    assert cache.reuse(again, TEXTS[0][:2401])
    assert again.length == 2400


def test_beams_fit_only_where_a_whole_slot_for_each_does() -> None:
    cache = new_cache()
    assert cache.fits(1100)
    assert cache.fits(1100, 4)  # 2,048 tokens each, of 9,000
    assert not cache.fits(1100, 5)  # though 5,500 would


def test_shared_length_is_that_of_the_common_beginning() -> None:
    for length in range(70):
        for other in (0, 1, length // 2, length):
            left, right = [1] * length + [2, 3], [1] * other + [4]
            assert shared_length(left, right) == min(length, other)
