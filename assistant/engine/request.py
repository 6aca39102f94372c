"""A reply being written, as every engine hands it out, and the contract that every engine keeps.

Three engines keep it: one in this process (`engine`), one in a process of its own (`engine_process`), and one behind
HTTP (`vllm.engine`).
"""

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from assistant.engine.sampling.params import Sampling, Token
from assistant.models.adapter import LoadedAdapter
from assistant.models.base_model import Base
from feedback.errors import Refused

Who = int | None  # a person's id; None: the machine's own work, and everybody's if there are no accounts


class Busy(Refused):
    """The queue is full, or one person's share of it; the message says how long it is."""


class Ending(Busy):
    """The server is about to end and begins no more replies."""

    def __init__(self, words: str = "the server is shutting down; ask again once it is back") -> None:
        super().__init__(words)


class EngineError(Exception):
    """The engine could not go on with this reply; the message says why."""


class Generation:
    """A reply being written. Its tokens come through a queue; `finish` is set when the last has come."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: LoadedAdapter | None,
        forced: Sequence[int] = (),
        who: Who = None,
        told: "OnToken | None" = None,
    ) -> None:
        """With `told`, the tokens are passed to it in the engine's thread instead of being taken from here."""
        self.who = who
        self._told = told
        self.prompt_ids = list(prompt_ids)
        self.sampling = sampling
        self.adapter = adapter
        self.forced = list(forced)  # scored instead of written, for their log-probs
        self.finish: str | None = None  # "stop", "length" or "cancelled"
        self.cancelled = False
        self.submitted_at = time.perf_counter()
        self._tokens: queue.SimpleQueue[Token | EngineError | None] = queue.SimpleQueue()
        self._unread: deque[Token] = deque()  # taken by a reader who stopped before
        self._over = False

    def cancel(self) -> None:
        """Ask the engine to stop writing; tokens already written still come."""
        self.cancelled = True

    def take(self, timeout_s: float | None = None) -> list[Token] | None:
        """Take the tokens written since last time, waiting up to `timeout_s` for at least one. None: there are no more.

        Raises `EngineError` if the reply cannot be finished.
        """
        if self._unread:
            tokens, self._unread = list(self._unread), deque()
            return tokens
        tokens = []
        try:
            while not self._over:
                item = self._tokens.get(block=not tokens, timeout=timeout_s)
                if isinstance(item, EngineError):
                    self._over = True
                    raise item
                if item is None:
                    self._over = True
                else:
                    tokens.append(item)
        except queue.Empty:
            return tokens
        return tokens or None

    def __iter__(self) -> Iterator[Token]:
        while (tokens := self.take()) is not None:
            self._unread.extend(tokens)
            while self._unread:  # whoever stops reading leaves the rest to the next reader
                yield self._unread.popleft()

    def put(self, item: Token | EngineError | None) -> None:
        """Hand a token, the end (None) or a failure to the reader; only the engine calls this."""
        if self._told is not None:
            self._told(self, item)
        else:
            self._tokens.put(item)


OnToken = Callable[[Generation, Token | EngineError | None], None]


class EngineProtocol(Protocol):
    """What a chat requires of an engine. Safe to share between threads."""

    base: Base
    window: int  # tokens of prompt and reply together
    tolerance: float  # nats per token by which its log-probs may differ from a trainer's, in its number format
    end_ids: frozenset[int]  # each ends a turn

    @property
    def tokens_written(self) -> int:
        """The number of tokens written since it was opened."""

    @property
    def alive(self) -> bool:
        """Whether it can answer."""

    @property
    def active(self) -> int:
        """The number of replies being written."""

    @property
    def waiting(self) -> int:
        """The number of requests waiting for a place."""

    def load(self, directory: Path) -> LoadedAdapter:
        """Load an adapter from disk and get ready to answer with it. Raises `AdapterRefused` with the reason."""

    def unload(self, adapter: LoadedAdapter) -> None:
        """Free an adapter's memory once the replies it is writing are finished."""

    def require_places(self, who: Who, count: int) -> None:
        """Raise `Busy` if `count` more requests by a person would be too many, in total or for that person."""

    def submit(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: LoadedAdapter | None = None, *, who: Who = None
    ) -> Generation:
        """Request a reply. Raises `Refused` if the prompt does not fit the window, `Busy` if too many requests wait."""

    def score(self, prompt_ids: Sequence[int], reply_ids: Sequence[int], adapter: LoadedAdapter | None) -> Generation:
        """Score a given reply: its tokens come with their log-probs, computed as if it were being written."""

    def close(self) -> None:
        """Stop: replies being written end as cancelled."""
