"""Batched inference: one network answers many chats, each with its own adapter, that join and leave between tokens.

A reply is written by one adapter from first token to last, whatever is promoted meanwhile: a request carries the
adapter itself, so a swap only means that later requests carry another. Long prompts are prefilled a little in every
step, so that no reply being written waits for them, and people have fair shares of rows and memory (`fair_shares`).
"""

import gc
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from assistant.engine.background import run_in_background
from assistant.engine.kv_cache import CacheSlot
from assistant.engine.load import open_network
from assistant.engine.model_runner import SequenceChunk
from assistant.engine.request import Busy, Ending, EngineError, OnToken, Who
from assistant.engine.sampling.beam_search import Search
from assistant.engine.sampling.grammar import Grammars
from assistant.engine.sampling.params import Sampling, Token
from assistant.engine.sampling.sampler import SamplerState, sample
from assistant.engine.scheduling.fair_shares import (
    require_places,
)
from assistant.engine.scheduling.scheduler import Scheduler
from assistant.engine.scheduling.writing import Writing
from assistant.models.adapter import AdapterCard, LoadedAdapter, read_adapter
from assistant.models.base_model import Base, one_line
from assistant.models.chat_template import end_ids
from feedback.errors import Refused

MOST_WAITING = 64
MEMORY = 1 << 30  # bytes of KV cache, over all sequences

log = logging.getLogger(__name__)


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
        """Load a base model; `number_format` as `load.open_network` takes it. Raises `Refused` if that fails.

        A `driven` engine has no thread of its own: it computes in the thread that takes its tokens. Its steps do not
        depend on timing, as nobody waits for a token meanwhile, so the same requests give the same numbers every time.
        """
        self.base = base
        self.network = run_in_background(open_network, base, number_format, device)
        gc.collect()
        gc.freeze()  # what is loaded stays, so garbage collection need not look at it in every step
        self.cache = self.network.new_cache(memory)
        self.number_format = self.network.number_format
        self.tolerance = self.network.tolerance
        self.end_ids = end_ids(tokenizer, self.network)
        self.window = self.network.window
        self.grammars = Grammars(tokenizer, self.end_ids, self.network.vocabulary)
        self.tokens_written = 0
        self._scheduler = Scheduler(self.cache, self.network.few_rows, driven)
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
        """The number of replies being written."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """The number of requests waiting for a place."""
        return len(self._waiting)

    def require_places(self, who: Who, count: int) -> None:
        """Raise `Busy` if `count` more requests by a person would be too many, in total or for that person."""
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
        """Request a reply to a prompt; with `forced` token ids, it is scored instead of written, for its log-probs.

        `told` gets the tokens in the engine's thread; without it, they are taken from the reply.

        Raises `Refused` if the prompt does not fit the model's window or the JSON schema cannot be followed, `Busy` if
        too many requests are waiting, in total or by this person, if the adapter was unloaded, or if the engine is
        closing.
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
                raise Ending
            if adapter is not None and not self.network.holds(adapter.lora_slot):
                raise Busy(f"the adapter {adapter.id} was let go a moment ago; try again")
            if forced:  # a swap waits for it, and so does everyone answered after the swap
                self._waiting.appendleft(writing)
            else:
                self.require_places(who, 1)
                self._waiting.append(writing)
            self._changed.notify()
        return writing

    def score(self, prompt_ids: Sequence[int], reply_ids: Sequence[int], adapter: LoadedAdapter | None) -> Writing:
        """Score a given reply: its tokens come with their log-probs, computed as if it were being written."""
        return self.submit(prompt_ids, Sampling(temperature=0), adapter, forced=reply_ids)

    def load(self, directory: Path) -> LoadedAdapter:
        """Load an adapter from disk and get ready to answer with it. Raises `AdapterRefused` with the reason."""
        card, lora_slot = run_in_background(self._read, directory)
        return LoadedAdapter(directory.name, card, lora_slot)

    def _read(self, directory: Path) -> tuple[AdapterCard, Any]:
        card, factors = read_adapter(directory, self.base.sha256, self.network.shapes)
        return card, self.network.add(factors)

    def unload(self, adapter: LoadedAdapter) -> None:
        """Free an adapter's memory once the replies it is writing are finished."""
        with self._changed:
            self._retired.append(adapter)
            self._changed.notify()

    @torch.inference_mode()
    def distributions(self, token_ids: Sequence[int], first: int = 1) -> torch.Tensor:
        """The log-probs (T - first, V) that the tokens from `first` on would be drawn from at temperature 1.

        Computed as replies are: what comes before in one prefill, then token by token. For measurements, while no reply
        is being written.
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
        """Run until closed. If an error ends the thread before that, its replies fail and another thread takes over."""
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
        """Fail every reply being written; requests that wait are answered next."""
        failed, self._active = self._active, []
        for writing in failed:
            writing.put(error)
        self.cache.clear()

    def step(self) -> None:
        """Write one token of each reply whose turn it is, and prefill some of the prompts that come next."""
        # 1. what has ended makes room for what waits
        self._let_go_of_retired()
        for writing in [each for each in self._active if each.cancelled]:
            self._end(writing, "cancelled")
        self._admit()

        # 2. the input of each row: its last token, or more of its prompt within the prefill budget
        growing, portions = self._scheduler.plan(self._active)
        parts = [SequenceChunk(row, [token], each.lora_slot) for each in growing for row, token in _pairs(each)]
        parts += [SequenceChunk(writing.rows[0], tokens, writing.lora_slot) for writing, tokens in portions]
        advanced = [*growing, *(writing for writing, _ in portions)]
        if not parts:
            return

        # 3. one pass of the network over all of them
        started = time.perf_counter()
        logits = self.network.forward(parts)

        # 4. the next token of each reply whose prompt is read
        self._take(advanced, logits)
        self._scheduler.took(time.perf_counter() - started, len(growing), sum(len(tokens) for _, tokens in portions))

    def _take(self, advanced: Sequence[Writing], logits: torch.Tensor) -> None:
        """Continue each reply whose prompt is read, from its rows of logits (rows, V)."""
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
        """Advance a beam search by one step, from logits (beams, V); the reply is delivered whole at the end."""
        parents = search.advance(logits)
        writing.written += 1
        self.tokens_written += 1
        if search.done or writing.written == writing.sampling.max_tokens:
            beam, ended = search.best()
            for token, logprob in zip(beam.token_ids, beam.logprobs, strict=True):
                writing.put(Token(token, logprob, 0.0))
            self._end(writing, "stop" if ended else "length")
            return
        # The first beam that continues a row keeps it; any others get a copy.
        old, rows = writing.rows, []
        for parent in parents:
            row = old[parent]
            rows.append(self.cache.fork(row) if row in rows else row)
        for row in old:
            if row not in rows:
                self.cache.free(row)
        writing.rows, writing.next = rows, [beam.token_ids[-1] for beam in search.running]

    def _admit(self) -> None:
        """Admit waiting requests while rows and memory last."""
        with self._changed:
            for writing in [each for each in self._waiting if each.cancelled]:
                self._waiting.remove(writing)
                self._end(writing, "cancelled")
            while (found := self._scheduler.next(self._waiting, self._active)) is not None:
                self._waiting.remove(found)
                found.rows = [self.cache.take(found.room, found.lora_slot)]
                self._active.append(found)

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


def _pairs(writing: Writing) -> list[tuple[CacheSlot, int]]:
    return list(zip(writing.rows, writing.next, strict=True))
