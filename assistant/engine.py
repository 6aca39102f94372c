"""Many chats answered at once by one network, each with its own adapter, joining and leaving between two tokens.

A reply is written by one adapter from first token to last, whatever is promoted meanwhile: a request carries the
adapter itself, so a swap is only that later requests carry another. Long prompts are read in chunks, so that nobody
who is being answered waits for them.
Left out on purpose: text (`chat`), which adapter serves (`roster`), and how the network computes rows (`layers`).
"""

import logging
import secrets
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from assistant.adapters import Loaded, load_adapter
from assistant.beam import Search
from assistant.generation import Busy, EngineError, Generation, Token
from assistant.layers import ATTENTION, Network, Part, Row, register_attention
from assistant.models import Base, load_model, one_line
from assistant.prompt import end_ids
from assistant.sampling import Sampling, draw
from feedback.store import Refused

MOST_ROWS = 32  # answered at once
MOST_WAITING = 64
PROMPT_CHUNK = 256  # prompt tokens read in one step
# Nats a token. fp32 on both sides differs by rounding and order of sums alone; bf16 keeps 8 bits of mantissa.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25}
CACHE_BYTES = 1 << 30  # of keys and values, over all rows

log = logging.getLogger(__name__)


class Writing(Generation):
    """A reply in this engine; all that is here is the engine thread's alone."""

    def __init__(self, prompt_ids: Sequence[int], sampling: Sampling, adapter: Loaded | None, forced: Sequence[int]):
        super().__init__(prompt_ids, sampling, adapter, forced)
        self.written = 0
        self.parts: list[Part] = []  # one, or one for each beam
        self.search: Search | None = None
        self.generator = torch.Generator()
        self.generator.manual_seed(sampling.seed or 0)


class Engine:
    """The network and the thread that runs it. Share one between all chats."""

    def __init__(self, base: Base, dtype: torch.dtype, device: str, tokenizer: Any) -> None:
        register_attention()
        self.base = base
        self.dtype = dtype
        self.tolerance = TOLERANCE[dtype]
        model: Any = load_model(base, dtype, device, attention=ATTENTION)
        self.network = Network(model)
        self.end_ids = end_ids(tokenizer, model)
        config = model.config.get_text_config()
        self.window: int = config.max_position_embeddings
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._token_bytes = 2 * config.num_hidden_layers * heads * width * dtype.itemsize
        self.tokens_written = 0
        self._waiting: deque[Writing] = deque()
        self._active: list[Writing] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine can answer."""
        return self._thread.is_alive() and not self._closing

    @property
    def active(self) -> int:
        """How many replies are being written."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return len(self._waiting)

    def submit(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: Loaded | None = None, forced: Sequence[int] = ()
    ) -> Writing:
        """Ask for a reply to a prompt; with `forced` token ids it is read instead of written, for its log-probs.

        Raises `Refused` when the prompt does not fit the model's window, `Busy` when too many are waiting.
        """
        room = self.window - len(prompt_ids)
        if room < max(1, len(forced)):
            raise Refused(f"the prompt has {len(prompt_ids):,} tokens, and the model takes at most {self.window:,}")
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(63))
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        generation = Writing(prompt_ids, sampling, adapter, forced)
        with self._changed:
            if self._closing:
                raise Busy("the assistant is shutting down")
            if len(self._waiting) >= MOST_WAITING:
                raise Busy(f"the assistant is busy: {len(self._waiting)} requests wait already; try again in a moment")
            if forced:  # a swap waits for it, and all who will be answered after the swap
                self._waiting.appendleft(generation)
            else:
                self._waiting.append(generation)
            self._changed.notify()
        return generation

    def score(self, prompt_ids: Sequence[int], reply_ids: Sequence[int], adapter: Loaded | None) -> Generation:
        """Read a given reply as if it were being written; its tokens come with their log-probs."""
        return self.submit(prompt_ids, Sampling(temperature=0), adapter, forced=reply_ids)

    def load(self, directory: Path) -> Loaded:
        """Read an adapter from disk and get ready to answer with it. Raises `AdapterRefused` with the reason."""
        return load_adapter(directory, self.base.sha256, self.network.layers)

    def unload(self, adapter: Loaded) -> None:
        """Give an adapter's memory back, once the replies it is writing are finished."""

    def close(self) -> None:
        """Stop: replies being written end as cancelled."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._active or self._closing)
                if self._closing:
                    break
            try:
                self.step()
            except Exception as error:  # whatever it was, the next request deserves a working engine
                log.exception("the engine failed in a step")
                for generation in self._active:
                    generation.put(EngineError(f"the assistant failed while answering ({one_line(error)}); try again"))
                self._active = []
        for generation in [*self._active, *self._waiting]:
            self._end(generation, "cancelled")

    def step(self) -> None:
        """One token for everyone who is being answered, and a chunk of the prompts of those who come next."""
        # 1. those who left make room for those who wait
        for generation in [each for each in self._active if each.cancelled]:
            self._end(generation, "cancelled")
        self._admit()

        # 2. what each row reads next: its last token, or more of its prompt while the step has room for it
        self._active.sort(key=lambda each: each.adapter.id if each.adapter else "")
        reading: list[tuple[Writing, list[Part]]] = []
        budget = PROMPT_CHUNK
        for generation in self._active:
            parts = [replace(part, token_ids=part.token_ids[: max(budget, 0)]) for part in generation.parts]
            if len(generation.parts[0].token_ids) == 1:
                parts = generation.parts
            elif budget <= 0:
                continue
            else:
                budget -= len(parts[0].token_ids)
            reading.append((generation, parts))
        if not reading:
            return

        # 3. one pass of the network over all of them
        logits = self.network.forward([part for _, parts in reading for part in parts])

        # 4. a token for each whose prompt is read
        at = 0
        for generation, parts in reading:
            own = logits[at : at + len(parts)]
            at += len(parts)
            for part, read in zip(generation.parts, parts, strict=True):
                part.token_ids = part.token_ids[len(read.token_ids) :] if part is not read else []
            if generation.parts[0].token_ids:
                continue
            if generation.search is not None:
                self._grow_beams(generation, generation.search, own)
            else:
                self._write(generation, own[0])

    def _admit(self) -> None:
        """Give waiting requests a place, in order, while rows and memory last."""
        with self._changed:
            while self._waiting:
                generation = self._waiting[0]
                rows = sum(each.sampling.beams for each in self._active) + generation.sampling.beams
                taken = sum(part.row.room for each in self._active for part in each.parts)
                room = len(generation.prompt_ids) + max(generation.sampling.max_tokens, len(generation.forced))
                fits = (taken + room * generation.sampling.beams) * self._token_bytes <= CACHE_BYTES
                if self._active and not generation.forced and not (rows <= MOST_ROWS and fits):
                    return
                self._waiting.popleft()
                if generation.cancelled:
                    self._end(generation, "cancelled")
                    continue
                factors = generation.adapter.factors if generation.adapter else None
                generation.parts = [Part(Row(room), list(generation.prompt_ids), factors)]
                if generation.sampling.beams > 1 and not generation.forced:
                    generation.search = Search(generation.sampling.beams, self.end_ids)
                self._active.append(generation)

    def _write(self, generation: Writing, logits: torch.Tensor) -> None:
        """The next token of an ordinary reply, from logits (V,); or, of a forced one, the token it must be."""
        logits = logits.cpu()
        if generation.forced:
            token = generation.forced[generation.written]
            logprob = float(torch.log_softmax(logits, dim=-1)[token])
            last, ended = generation.written + 1 == len(generation.forced), False
            generation.put(Token(token, logprob, logprob))
        else:
            token, logprob, sampled_logprob = draw(logits, generation.sampling, generation.generator)
            ended = token in self.end_ids
            last = generation.written + 1 == generation.sampling.max_tokens
            generation.put(Token(token, logprob, sampled_logprob))
        generation.written += 1
        self.tokens_written += 1
        if ended or last:
            self._end(generation, "stop" if ended else "length")
        else:
            generation.parts[0].token_ids = [token]

    def _grow_beams(self, generation: Writing, search: Search, logits: torch.Tensor) -> None:
        """One step of beam search from logits (beams, V); the reply comes whole at the end."""
        parents = search.advance(logits)
        generation.written += 1
        self.tokens_written += 1
        if search.done or generation.written == generation.sampling.max_tokens:
            beam, ended = search.best()
            for token, logprob in zip(beam.token_ids, beam.logprobs, strict=True):
                generation.put(Token(token, logprob, 0.0))
            self._end(generation, "stop" if ended else "length")
            return
        # A row that one beam goes on with is kept; one that several go on with is copied for the others.
        taken: set[int] = set()
        parts = []
        for parent, beam in zip(parents, search.running, strict=True):
            old = generation.parts[parent]
            row = old.row.fork() if parent in taken else old.row
            taken.add(parent)
            parts.append(replace(old, row=row, token_ids=[beam.token_ids[-1]]))
        generation.parts = parts

    def _end(self, generation: Writing, finish: str) -> None:
        """Close a reply and free its rows."""
        generation.finish = finish
        generation.parts = []
        if generation in self._active:
            self._active.remove(generation)
        generation.put(None)
