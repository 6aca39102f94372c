"""A reply in the engine: its rows of the cache, and its progress."""

from collections.abc import Callable, Sequence
from typing import Any

from assistant.engine.kv_cache import CacheSlot
from assistant.engine.request import Generation, OnToken, Who
from assistant.engine.sampling.beam_search import Search
from assistant.engine.sampling.params import Sampling, Token
from assistant.engine.sampling.sampler import SamplerState
from assistant.models.adapter import LoadedAdapter


class Writing(Generation):
    """A reply in this engine. Everything here belongs to the engine's thread alone."""

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
        self.drawer: SamplerState | None = None  # None for a scored reply or beam search
        self.drive: Callable[[], None] | None = None  # runs a step of an engine that has no thread

    def take(self, timeout_s: float | None = None) -> list[Token] | None:
        """As `Generation.take`; if the engine has no thread, this one computes."""
        while self.drive is not None and self._tokens.empty() and not self._over:
            self.drive()
        return super().take(timeout_s)

    @property
    def lora_slot(self) -> Any:
        """Its adapter's LoRA slot; None: the base."""
        return self.adapter.lora_slot if self.adapter else None

    @property
    def reading(self) -> bool:
        """Whether part of the prompt is still to be read."""
        return not self.next

    @property
    def unread(self) -> int:
        """The number of prompt tokens still to be read."""
        return len(self.prompt_ids) - self.rows[0].length

    @property
    def keys(self) -> int:
        """The number of keys that its next token reads, over its rows."""
        return sum(row.length for row in self.rows)

    @property
    def room(self) -> int:
        """The most tokens that each of its rows may come to hold."""
        return len(self.prompt_ids) + (len(self.forced) or self.sampling.max_tokens)
