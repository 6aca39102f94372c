"""The scheduler: whose reply goes on in a step, whose prompt is read, and who is admitted, fairly between people.

It only decides; the cache and the network belong to the engine.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from assistant.engine.kv_cache import MOST_COPIED, Cache, CacheSlot, shared_length
from assistant.engine.request import Who
from assistant.engine.scheduling.fair_shares import (
    ABOUT_AS_LITTLE,
    BESIDE_NEWCOMERS,
    BESIDE_OTHERS,
    BESIDE_OTHERS_S,
    PUT_OFF,
    Present,
    Turns,
    may_take,
)
from assistant.engine.scheduling.prefill_budget import ALONE, LEAST, PrefillBudget
from assistant.engine.scheduling.writing import Writing

MOST_ROWS = 32  # written at once
Portion = tuple[Writing, list[int]]  # a reply, and the tokens of its prompt that a step reads


class Scheduler:
    """The decisions between two steps. Everything here belongs to the engine's thread alone."""

    def __init__(self, cache: Cache, few_rows: int, driven: bool) -> None:
        """`few_rows` is the most rows that the network computes in its format for few rows."""
        self._cache = cache
        self._few_rows = few_rows
        self._driven = driven
        self._budget = PrefillBudget(few_rows)
        self._present = Present()
        self._turns = Turns()
        self._put_off = 0  # steps in a row in which a prompt waited for those of people who hold less

    def plan(self, active: Sequence[Writing]) -> tuple[list[Writing], list[Portion]]:
        """The replies that get a token in this step, and the prompt tokens that it reads."""
        self._present.see(each.who for each in active if not each.forced)
        self._turns.begin({each.who: each.keys for each in sorted(active, key=lambda each: each.keys)})
        held = rows_held(active)
        reading = _in_fair_order([each for each in active if each.reading], held)
        growing = self._taking_turns([each for each in active if not each.reading], reading, held)
        return growing, self._portions(active, growing, reading, held)

    def took(self, seconds: float, growing: int, read: int) -> None:
        """Learn from the duration of a step that wrote `growing` tokens and read `read` prompt tokens."""
        self._budget.took(seconds, growing, read)

    def next(self, waiting: Iterable[Writing], active: Sequence[Writing]) -> Writing | None:
        """The request to admit now: a scored one, or the first of the person who holds least. None: none can be."""
        firsts: dict[Who, Writing] = {}
        for writing in waiting:
            if writing.forced:
                return writing
            firsts.setdefault(writing.who, writing)
        held = rows_held(active)
        passed = False  # whether a request was passed that needs more room than there is
        for who in sorted(firsts, key=lambda each: held[each]):
            first, beams = firsts[who], firsts[who].sampling.beams
            if not active:
                return first
            if passed and held[who]:
                return None  # only a person who holds nothing goes before a request that was passed
            if held.total() + beams > MOST_ROWS or not self._cache.fits(first.room, beams):
                passed = True
            elif self._is_fair(first, held):
                return first
        return None

    def _is_fair(self, writing: Writing, held: Counter[Who]) -> bool:
        """Whether a request leaves enough for others."""
        who, beams = writing.who, writing.sampling.beams
        if who is None or not held[who]:
            return True
        if not may_take(who, held[who], beams, held.total(), MOST_ROWS):
            return False
        if not self._cache.fits(writing.room, beams, share=0.75):
            return False
        return held[who] + beams <= BESIDE_OTHERS or self._present.is_alone(who)

    def _taking_turns(
        self, growing: Sequence[Writing], reading: Sequence[Writing], held: Counter[Who]
    ) -> list[Writing]:
        """The replies that go on in this step: each person's oldest ones, while others are present."""
        fewest = min((held[each.who] for each in reading), default=MOST_ROWS)
        taken: Counter[Who] = Counter()
        going, wait = [], set()
        for each in growing:
            who, beams = each.who, each.sampling.beams
            alone, newcomer = self._present.is_alone(who), fewest < held[who]
            most = MOST_ROWS if alone else BESIDE_NEWCOMERS if newcomer else BESIDE_OTHERS
            if who in wait or (taken[who] and taken[who] + beams > most):
                continue
            if alone or self._turns.take(who, each.keys, newcomer):
                taken[who] += beams
                going.append(each)
            else:
                wait.add(who)
        return going

    def _portions(
        self, active: Sequence[Writing], growing: Sequence[Writing], reading: Sequence[Writing], held: Counter[Who]
    ) -> list[Portion]:
        """The prompt tokens that the step reads: an equal share for each person, as far as they have that many.

        A prompt's last few tokens are read at once if the format for few rows has room for them: each step has a fixed
        cost, and the first token comes after the last of them. What another sequence has computed of a prompt, or is
        about to, is copied instead of read.
        """
        budget, few = self._prompt_tokens(growing, reading), self._few_rows - len(growing)
        people = self._who_reads(_least_unread(reading), held)
        portions = []
        for at, who in enumerate(people):
            left = min(budget, max(LEAST, budget // (len(people) - at)))
            for writing in reading:
                if writing.who != who:
                    continue
                row = writing.rows[0]
                if left <= 0 or self._copies_much(row, writing.prompt_ids) or self._will_be_read(writing, active):
                    continue
                unread = len(writing.prompt_ids) - row.length
                count = unread if unread <= few else left
                tokens = writing.prompt_ids[row.length : row.length + count]
                alone = self._present.is_alone(who)
                if not alone and not self._turns.take(who, row.length + len(tokens), beside_newcomer=False):
                    break
                left -= len(tokens)
                few -= len(tokens)
                budget -= len(tokens)
                portions.append((writing, tokens))
        return portions

    def _copies_much(self, row: CacheSlot, prompt_ids: Sequence[int]) -> bool:
        """Copy what another sequence has computed of a prompt; return whether that was the most a step may copy."""
        before = row.length
        return self._cache.reuse(row, prompt_ids) and row.length - before == MOST_COPIED

    def _who_reads(self, least: Mapping[Who, int], held: Counter[Who]) -> list[Who]:
        """Of these people, in fair order, those who hold least and have about as little to read as the first.

        Their first token is next. The others wait for up to `PUT_OFF` steps.
        """
        people = list(least)
        lightest = [
            who for who in people if held[who] == held[people[0]] and least[who] <= ABOUT_AS_LITTLE * least[people[0]]
        ]
        self._put_off = self._put_off + 1 if len(lightest) < len(people) else 0
        if self._put_off > PUT_OFF:
            self._put_off = 0
            return people
        return lightest

    def _prompt_tokens(self, growing: Sequence[Writing], reading: Sequence[Writing]) -> int:
        """The number of prompt tokens that this step may read."""
        if self._driven:
            return ALONE
        if all(each.forced for each in reading) and not all(each.forced for each in growing):
            return LEAST  # nobody waits for what is only scored
        tokens = self._budget.prompt_tokens(len(growing), len(reading))
        if not reading or self._present.is_alone(reading[0].who):
            return tokens
        return min(tokens, self._budget.tokens_within(BESIDE_OTHERS_S, len(growing)))

    def _will_be_read(self, writing: Writing, active: Sequence[Writing]) -> bool:
        """Whether an earlier request is about to compute enough more of this one's prompt to be worth waiting for."""
        row, ids = writing.rows[0], writing.prompt_ids
        for other in active:
            if other is writing:
                return False
            if other.reading and other.lora_slot is writing.lora_slot and other.rows[0].key == row.key:
                shared = min(shared_length(other.prompt_ids, ids), len(ids) - 1)
                if shared >= row.length + self._cache.worth_waiting:
                    return True
        return False


def rows_held(active: Iterable[Writing]) -> Counter[Who]:
    """The number of rows of each person's replies; scored ones count as the machine's own."""
    held: Counter[Who] = Counter()
    for each in active:
        held[each.who] += each.sampling.beams
    return held


def _in_fair_order(reading: Sequence[Writing], held: Counter[Who]) -> list[Writing]:
    """Prompts in the order in which they are read: by how little their person holds, then by how little is unread."""
    least = _least_unread(reading)
    people = sorted(least, key=lambda who: (held[who], least[who]))
    return sorted(reading, key=lambda each: people.index(each.who))


def _least_unread(reading: Sequence[Writing]) -> dict[Who, int]:
    """The unread tokens of each person's shortest prompt, in the order in which the people come."""
    least: dict[Who, int] = {}
    for each in reading:
        least[each.who] = min(least.get(each.who, each.unread), each.unread)
    return least
