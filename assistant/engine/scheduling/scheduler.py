"""Whose reply goes on in a step, whose prompt is read, and who gets a place: fair between people.

It decides and computes nothing; the cache and the network belong to the engine.
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

MOST_ROWS = 32  # answered at once
Portion = tuple[Writing, list[int]]  # a reply, and the tokens of its prompt that a step reads


class Scheduler:
    """What the engine thread asks between two steps; all that is here is that thread's alone."""

    def __init__(self, cache: Cache, few_rows: int, driven: bool) -> None:
        """`few_rows` is how many rows the network computes in the format for few of them."""
        self._cache = cache
        self._few_rows = few_rows
        self._driven = driven
        self._budget = PrefillBudget(few_rows)
        self._present = Present()
        self._turns = Turns()
        self._put_off = 0  # steps in a row in which somebody's prompt waited for that of one who holds less

    def plan(self, active: Sequence[Writing]) -> tuple[list[Writing], list[Portion]]:
        """The replies that get a token in this step, and what it reads of which prompts."""
        self._present.see(each.who for each in active if not each.forced)
        self._turns.begin({each.who: each.keys for each in sorted(active, key=lambda each: each.keys)})
        held = rows_held(active)
        reading = _in_fair_order([each for each in active if each.reading], held)
        growing = self._taking_turns([each for each in active if not each.reading], reading, held)
        return growing, self._portions(active, growing, reading, held)

    def took(self, seconds: float, growing: int, read: int) -> None:
        """Learn from how long a step took that wrote `growing` tokens and read `read` of prompts."""
        self._budget.took(seconds, growing, read)

    def next(self, waiting: Iterable[Writing], active: Sequence[Writing]) -> Writing | None:
        """The request that gets a place now: the first of whoever holds least. None: nobody's can."""
        firsts: dict[Who, Writing] = {}
        for writing in waiting:
            if writing.forced:
                return writing
            firsts.setdefault(writing.who, writing)
        held = rows_held(active)
        passed = False  # one who waits for more room than there is
        for who in sorted(firsts, key=lambda each: held[each]):
            first, beams = firsts[who], firsts[who].sampling.beams
            if not active:
                return first
            if passed and held[who]:
                return None  # only who has nothing yet goes before one who was passed
            if held.total() + beams > MOST_ROWS or not self._cache.fits(first.room, beams):
                passed = True
            elif self._is_fair(first, held):
                return first
        return None

    def _is_fair(self, writing: Writing, held: Counter[Who]) -> bool:
        """Whether what a request would take leaves enough for others."""
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
        """Those of these replies that go on in this step: of one person's the oldest, while others are there."""
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
        """What the step reads of which prompts: as much of each person's, as far as they have it.

        A prompt's last few tokens are read at once, where they take no other format: each step costs something
        however little it reads, and the first token comes after the last of them.
        What another text has computed of a prompt, or is about to, is not read but copied.
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
        """Copy what another text has computed of a prompt; whether that was all that one step may copy."""
        before = row.length
        return self._cache.reuse(row, prompt_ids) and row.length - before == MOST_COPIED

    def _who_reads(self, least: Mapping[Who, int], held: Counter[Who]) -> list[Who]:
        """Of these, in fair order, those who hold least and have about as little to read as the first.

        Their first token is next. Others wait for a few steps.
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
        """How many tokens of prompts this step may read."""
        if self._driven:
            return ALONE
        if all(each.forced for each in reading) and not all(each.forced for each in growing):
            return LEAST  # nobody waits for what is only scored
        tokens = self._budget.prompt_tokens(len(growing), len(reading))
        if not reading or self._present.is_alone(reading[0].who):
            return tokens
        return min(tokens, self._budget.tokens_within(BESIDE_OTHERS_S, len(growing)))

    def _will_be_read(self, writing: Writing, active: Sequence[Writing]) -> bool:
        """Whether one who reads before it is about to compute more of its prompt than it could by itself."""
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
    """How many rows each person's replies have, those that are only scored among the machine's own."""
    held: Counter[Who] = Counter()
    for each in active:
        held[each.who] += each.sampling.beams
    return held


def _in_fair_order(reading: Sequence[Writing], held: Counter[Who]) -> list[Writing]:
    """Prompts in the order in which they are read: first those of whoever holds least, then has least to read."""
    least = _least_unread(reading)
    people = sorted(least, key=lambda who: (held[who], least[who]))
    return sorted(reading, key=lambda each: people.index(each.who))


def _least_unread(reading: Sequence[Writing]) -> dict[Who, int]:
    """How much each person's shortest prompt still has to be read, in the order in which they come."""
    least: dict[Who, int] = {}
    for each in reading:
        least[each.who] = min(least.get(each.who, each.unread), each.unread)
    return least
