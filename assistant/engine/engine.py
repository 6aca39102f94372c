"""Many chats answered at once by one network, each with its own adapter, joining and leaving between two tokens.

A reply is written by one adapter from first token to last, whatever is promoted meanwhile: a request carries the
adapter itself, so a swap is only that later requests carry another. Long prompts are read a little in every step, so
that nobody who is being answered waits for them, and people have fair shares of rows and memory (`fair_shares`).
"""

import gc
import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from assistant.engine.background import run_in_background
from assistant.engine.fair_shares import (
    ABOUT_AS_LITTLE,
    BESIDE_NEWCOMERS,
    BESIDE_OTHERS,
    BESIDE_OTHERS_S,
    PUT_OFF,
    Present,
    Turns,
    may_take,
    require_places,
)
from assistant.engine.kv_cache import MOST_COPIED, CacheSlot, shared_length
from assistant.engine.load import open_network
from assistant.engine.model_runner import SequenceChunk
from assistant.engine.prefill_budget import ALONE, LEAST, PrefillBudget
from assistant.engine.request import Busy, EngineError, Generation, OnToken, Who
from assistant.engine.sampling.beam_search import Search
from assistant.engine.sampling.grammar import Grammars
from assistant.engine.sampling.params import Sampling, Token
from assistant.engine.sampling.sampler import SamplerState, sample
from assistant.models.adapter import AdapterCard, LoadedAdapter, read_adapter
from assistant.models.base_model import Base, one_line
from assistant.models.chat_template import end_ids
from feedback.errors import Refused

MOST_ROWS = 32  # answered at once
MOST_WAITING = 64
MEMORY = 1 << 30  # bytes of keys and values, over all texts

log = logging.getLogger(__name__)


class Writing(Generation):
    """A reply in this engine; all that is here is the engine thread's alone."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: LoadedAdapter | None,
        forced: Sequence[int],
        who: Who,
        told: OnToken | None,
    ) -> None:
        super().__init__(prompt_ids, sampling, adapter, forced, who, told)
        self.written = 0
        self.rows: list[CacheSlot] = []  # one, or one for each beam
        self.next: list[int] = []  # the token that each row reads next, once the prompt is read
        self.search: Search | None = None
        self.drawer: SamplerState | None = None  # not of a forced reply, nor of one that beams write
        self.drive: Callable[[], None] | None = None  # a step of an engine that has no thread

    def take(self, timeout_s: float | None = None) -> list[Token] | None:
        """As `Generation.take`; where the engine has no thread, this one computes."""
        while self.drive is not None and self._tokens.empty() and not self._over:
            self.drive()
        return super().take(timeout_s)

    @property
    def lora_slot(self) -> Any:
        """Where its adapter's factors lie; None: the base."""
        return self.adapter.lora_slot if self.adapter else None

    @property
    def reading(self) -> bool:
        """Whether some of the prompt is still to be read."""
        return not self.next

    @property
    def unread(self) -> int:
        """How many tokens of the prompt are still to be read."""
        return len(self.prompt_ids) - self.rows[0].length

    @property
    def keys(self) -> int:
        """How many keys its next token reads, over its rows."""
        return sum(row.length for row in self.rows)

    @property
    def room(self) -> int:
        """How many tokens each of its rows may come to hold."""
        return len(self.prompt_ids) + (len(self.forced) or self.sampling.max_tokens)


class Engine:
    """The network and the thread that runs it. Share one between all chats."""

    def __init__(
        self,
        base: Base,
        number_format: str,
        device: str,
        tokenizer: Any,
        memory: int = MEMORY,
        driven: bool = False,
    ) -> None:
        """Load a base model; `number_format` as `load.open_network` takes it. Raises `Refused` where it cannot.

        One that is `driven` has no thread: it computes in the thread that takes its tokens. Then nobody waits while
        others are answered, and the same requests give the same numbers every time.
        """
        self.base = base
        self.network = run_in_background(open_network, base, number_format, device)
        gc.collect()
        gc.freeze()  # what is loaded stays: collecting garbage need not look at it again, step after step
        self.cache = self.network.new_cache(memory)
        self.number_format = self.network.number_format
        self.tolerance = self.network.tolerance
        self.end_ids = end_ids(tokenizer, self.network)
        self.window = self.network.window
        self.grammars = Grammars(tokenizer, self.end_ids, self.network.vocabulary)
        self.tokens_written = 0
        self._pace = PrefillBudget(self.network.few_rows)
        self._present = Present()
        self._turns = Turns()
        self._put_off = 0  # steps in a row in which somebody's prompt waited for that of one who holds less
        self._threads = torch.get_num_threads()
        self._waiting: deque[Writing] = deque()
        self._active: list[Writing] = []
        self._retired: list[LoadedAdapter] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        if not driven:
            self._start()

    @property
    def alive(self) -> bool:
        """Whether the engine can answer."""
        return not self._closing and (self._thread is None or self._thread.is_alive())

    @property
    def active(self) -> int:
        """How many replies are being written."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return len(self._waiting)

    def require_places(self, who: Who, count: int) -> None:
        """Raises `Busy` where `count` more requests of a person would be too many, of all people's or their own."""
        with self._changed:
            require_places(who, count, [each.who for each in self._waiting if not each.forced], MOST_WAITING)

    def submit(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: LoadedAdapter | None = None,
        forced: Sequence[int] = (),
        *,
        who: Who = None,
        told: OnToken | None = None,
    ) -> Writing:
        """Ask for a reply to a prompt; with `forced` token ids it is read instead of written, for its log-probs.

        `told` gets the tokens in the engine's thread; otherwise they are taken from the reply.

        Raises `Refused` when the prompt does not fit the model's window or the JSON schema cannot be followed, `Busy`
        when too many are waiting, of all people's or of this one's.
        """
        room = self.window - len(prompt_ids)
        if room < max(1, len(forced)):
            raise Refused(f"the prompt has {len(prompt_ids):,} tokens, and the model takes at most {self.window:,}")
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(63))
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        writing = Writing(prompt_ids, sampling, adapter, forced, who, told)
        writing.drive = self.step if self._thread is None else None
        if forced:
            pass
        elif sampling.beams > 1:
            writing.search = Search(sampling.beams, self.end_ids)
        else:
            writing.drawer = SamplerState(sampling, prompt_ids, self.grammars)
        with self._changed:
            if self._closing:
                raise Busy("the assistant is shutting down")
            if adapter is not None and not self.network.holds(adapter.lora_slot):
                raise Busy(f"the adapter {adapter.id} was let go a moment ago; try again")
            if forced:  # a swap waits for it, and all who will be answered after the swap
                self._waiting.appendleft(writing)
            else:
                self.require_places(who, 1)
                self._waiting.append(writing)
            self._changed.notify()
        return writing

    def score(self, prompt_ids: Sequence[int], reply_ids: Sequence[int], adapter: LoadedAdapter | None) -> Writing:
        """Read a given reply as if it were being written; its tokens come with their log-probs."""
        return self.submit(prompt_ids, Sampling(temperature=0), adapter, forced=reply_ids)

    def load(self, directory: Path) -> LoadedAdapter:
        """Read an adapter from disk and get ready to answer with it. Raises `AdapterRefused` with the reason."""
        card, lora_slot = run_in_background(self._read, directory)
        return LoadedAdapter(directory.name, card, lora_slot)

    def _read(self, directory: Path) -> tuple[AdapterCard, Any]:
        card, factors = read_adapter(directory, self.base.sha256, self.network.shapes)
        return card, self.network.add(factors)

    def unload(self, adapter: LoadedAdapter) -> None:
        """Give an adapter's memory back, once the replies it is writing are finished."""
        with self._changed:
            self._retired.append(adapter)
            self._changed.notify()

    @torch.inference_mode()
    def distributions(self, token_ids: Sequence[int], first: int = 1) -> torch.Tensor:
        """The log-probs (T - first, V) that the tokens from `first` on would be drawn from at temperature 1.

        Computed as replies are: what comes before in one go, then token by token. For measurements, while nobody is
        answered.
        """
        row = self.cache.take(len(token_ids), "distributions")
        logits = [self.network.forward([SequenceChunk(row, list(token_ids[:first]))])]
        logits += [self.network.forward([SequenceChunk(row, [token])]) for token in token_ids[first:-1]]
        self.cache.free(row)
        self.cache.forget("distributions")
        return torch.log_softmax(torch.cat(logits), dim=-1)

    def close(self) -> None:
        """Stop: replies being written end as cancelled."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout=30)
        gc.unfreeze()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        """Run until closed. Whatever ends the thread before that fails its replies, and another thread goes on."""
        try:
            torch.set_num_threads(self._threads)  # the first threads that compute keep the processor to themselves
            self._run()
        except BaseException as error:
            log.exception("the engine failed in a step")
            self._fail(EngineError(f"the assistant failed while answering ({one_line(error)}); try again"))
            if not self._closing:
                self._start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._active or self._retired or self._closing)
            if self._closing:
                break
            self.step()
        for writing in [*self._active, *self._waiting]:
            self._end(writing, "cancelled")

    def _fail(self, error: EngineError) -> None:
        """Tell everyone who is being answered; those who wait are answered next."""
        failed, self._active = self._active, []
        for writing in failed:
            writing.put(error)
        self.cache.clear()

    def step(self) -> None:
        """One token for everyone who is being answered, and some of the prompts of those who come next."""
        # 1. those who left make room for those who wait
        self._let_go_of_retired()
        for writing in [each for each in self._active if each.cancelled]:
            self._end(writing, "cancelled")
        self._admit()

        # 2. what each row reads next: its last token, or more of its prompt while the step has room for it
        self._present.see(each.who for each in self._active if not each.forced)
        self._turns.begin({each.who: each.keys for each in sorted(self._active, key=lambda each: each.keys)})
        reading = self._in_fair_order([each for each in self._active if each.reading])
        growing = self._taking_turns([each for each in self._active if not each.reading], reading)
        portions = self._portions(growing, reading)
        parts = [SequenceChunk(row, [token], each.lora_slot) for each in growing for row, token in _pairs(each)]
        parts += [SequenceChunk(writing.rows[0], tokens, writing.lora_slot) for writing, tokens in portions]
        advanced = [*growing, *(writing for writing, _ in portions)]
        if not parts:
            return

        # 3. one pass of the network over all of them
        started = time.perf_counter()
        logits = self.network.forward(parts)

        # 4. a token for each whose prompt is read
        self._take(advanced, logits)
        self._pace.took(time.perf_counter() - started, len(growing), sum(len(tokens) for _, tokens in portions))

    def _take(self, advanced: Sequence[Writing], logits: torch.Tensor) -> None:
        """Go on with each reply by its rows of logits (rows, V), where its prompt is read."""
        drawn: list[tuple[Writing, int]] = []
        at = 0
        for writing in advanced:
            rows = slice(at, at + len(writing.rows))
            at = rows.stop
            if writing.rows[0].length < len(writing.prompt_ids):
                continue
            if writing.search is not None:
                self._grow_beams(writing, writing.search, logits[rows])
            elif writing.forced:
                token = writing.forced[writing.written]
                logprob = float(torch.log_softmax(logits[rows.start], dim=-1)[token])
                self._write(writing, Token(token, logprob, logprob))
            else:
                drawn.append((writing, rows.start))
        if drawn:
            rows_of = [row for _, row in drawn]
            own = logits if len(rows_of) == len(logits) else logits[rows_of]
            drawers = [writing.drawer for writing, _ in drawn if writing.drawer is not None]
            for (writing, _), drawn_token in zip(drawn, sample(own, drawers), strict=True):
                self._write(writing, drawn_token)

    def _write(self, writing: Writing, token: Token) -> None:
        """Hand a reply its next token."""
        writing.put(token)
        writing.written += 1
        self.tokens_written += 1
        writing.next = [token.id]
        ended = token.id in self.end_ids and not writing.forced and not writing.sampling.ignore_end
        if writing.drawer is not None and writing.drawer.failure:
            writing.put(EngineError(f"the reply could not go on as its schema wants: {writing.drawer.failure}"))
            self._end(writing, "cancelled")
        elif ended:
            self._end(writing, "stop")
        elif writing.written == (len(writing.forced) or writing.sampling.max_tokens):
            self._end(writing, "length")

    def _grow_beams(self, writing: Writing, search: Search, logits: torch.Tensor) -> None:
        """One step of beam search from logits (beams, V); the reply comes whole at the end."""
        parents = search.advance(logits)
        writing.written += 1
        self.tokens_written += 1
        if search.done or writing.written == writing.sampling.max_tokens:
            beam, ended = search.best()
            for token, logprob in zip(beam.token_ids, beam.logprobs, strict=True):
                writing.put(Token(token, logprob, 0.0))
            self._end(writing, "stop" if ended else "length")
            return
        # A row that one beam goes on with is kept; one that several go on with is copied for the others.
        old, rows = writing.rows, []
        for parent in parents:
            row = old[parent]
            rows.append(self.cache.fork(row) if row in rows else row)
        for row in old:
            if row not in rows:
                self.cache.free(row)
        writing.rows, writing.next = rows, [beam.token_ids[-1] for beam in search.running]

    def _admit(self) -> None:
        """Give waiting requests a place, while rows and memory last."""
        with self._changed:
            for writing in [each for each in self._waiting if each.cancelled]:
                self._waiting.remove(writing)
                self._end(writing, "cancelled")
            while (found := self._next()) is not None:
                self._waiting.remove(found)
                found.rows = [self.cache.take(found.room, found.lora_slot)]
                self._active.append(found)

    def _next(self) -> Writing | None:
        """The request that gets a place now: the first of whoever holds least. None: nobody's can."""
        firsts: dict[Who, Writing] = {}
        for writing in self._waiting:
            if writing.forced:
                return writing
            firsts.setdefault(writing.who, writing)
        held = self._rows_held()
        passed = False  # one who waits for more room than there is
        for who in sorted(firsts, key=lambda each: held[each]):
            first, beams = firsts[who], firsts[who].sampling.beams
            if not self._active:
                return first
            if passed and held[who]:
                return None  # only who has nothing yet goes before one who was passed
            if held.total() + beams > MOST_ROWS or not self.cache.fits(first.room, beams):
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
        if not self.cache.fits(writing.room, beams, share=0.75):
            return False
        return held[who] + beams <= BESIDE_OTHERS or self._present.is_alone(who)

    def _rows_held(self) -> Counter[Who]:
        """How many rows each person's replies have, those that are only scored among the machine's own."""
        held: Counter[Who] = Counter()
        for each in self._active:
            held[each.who] += each.sampling.beams
        return held

    def _taking_turns(self, growing: Sequence[Writing], reading: Sequence[Writing]) -> list[Writing]:
        """Those of these replies that go on in this step: of one person's the oldest, while others are there."""
        held = self._rows_held()
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

    def _in_fair_order(self, reading: Sequence[Writing]) -> list[Writing]:
        """Prompts in the order in which they are read: first those of whoever holds least, then has least to read."""
        held, least = self._rows_held(), _least_unread(reading)
        people = sorted(least, key=lambda who: (held[who], least[who]))
        return sorted(reading, key=lambda each: people.index(each.who))

    def _portions(self, growing: Sequence[Writing], reading: Sequence[Writing]) -> list[tuple[Writing, list[int]]]:
        """What the step reads of which prompts: as much of each person's, as far as they have it.

        A prompt's last few tokens are read at once, where they take no other format: each step costs something
        however little it reads, and the first token comes after the last of them.
        What another text has computed of a prompt, or is about to, is not read but copied.
        """
        budget, few = self._budget(growing, reading), self.network.few_rows - len(growing)
        people = self._who_reads(_least_unread(reading))
        portions = []
        for at, who in enumerate(people):
            left = min(budget, max(LEAST, budget // (len(people) - at)))
            for writing in reading:
                if writing.who != who:
                    continue
                row = writing.rows[0]
                if left <= 0 or self._copies_much(row, writing.prompt_ids) or self._will_be_read(writing):
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
        return self.cache.reuse(row, prompt_ids) and row.length - before == MOST_COPIED

    def _who_reads(self, least: Mapping[Who, int]) -> list[Who]:
        """Of these, in fair order, those who hold least and have about as little to read as the first.

        Their first token is next. Others wait for a few steps.
        """
        held, people = self._rows_held(), list(least)
        lightest = [
            who for who in people if held[who] == held[people[0]] and least[who] <= ABOUT_AS_LITTLE * least[people[0]]
        ]
        self._put_off = self._put_off + 1 if len(lightest) < len(people) else 0
        if self._put_off > PUT_OFF:
            self._put_off = 0
            return people
        return lightest

    def _budget(self, growing: Sequence[Writing], reading: Sequence[Writing]) -> int:
        """How many tokens of prompts this step may read."""
        if self._thread is None:
            return ALONE
        if all(each.forced for each in reading) and not all(each.forced for each in growing):
            return LEAST  # nobody waits for what is only scored
        tokens = self._pace.prompt_tokens(len(growing), len(reading))
        if not reading or self._present.is_alone(reading[0].who):
            return tokens
        return min(tokens, self._pace.tokens_within(BESIDE_OTHERS_S, len(growing)))

    def _will_be_read(self, writing: Writing) -> bool:
        """Whether one who reads before it is about to compute more of its prompt than it could by itself."""
        row, ids = writing.rows[0], writing.prompt_ids
        for other in self._active:
            if other is writing:
                return False
            if other.reading and other.lora_slot is writing.lora_slot and other.rows[0].key == row.key:
                shared = min(shared_length(other.prompt_ids, ids), len(ids) - 1)
                if shared >= row.length + self.cache.worth_waiting:
                    return True
        return False

    def _let_go_of_retired(self) -> None:
        with self._changed:
            retired = self._retired
            used = {each.adapter for each in [*self._active, *self._waiting]}
            self._retired = [adapter for adapter in retired if adapter in used]
            for adapter in set(retired) - used:
                self.cache.forget(adapter.lora_slot)
                self.network.remove(adapter.lora_slot)

    def _end(self, writing: Writing, finish: str) -> None:
        """Close a reply and free its rows."""
        writing.finish = finish
        for row in writing.rows:
            self.cache.free(row)
        writing.rows = []
        if writing in self._active:
            self._active.remove(writing)
        writing.put(None)


def _least_unread(reading: Sequence[Writing]) -> dict[Who, int]:
    """How much each person's shortest prompt still has to be read, in the order in which they come."""
    least: dict[Who, int] = {}
    for each in reading:
        least[each.who] = min(least.get(each.who, each.unread), each.unread)
    return least


def _pairs(writing: Writing) -> list[tuple[CacheSlot, int]]:
    return list(zip(writing.rows, writing.next, strict=True))
