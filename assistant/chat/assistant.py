"""Everything needed to answer, opened once per process."""

import logging
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Histogram

from assistant.chat.adapter_manager import AdapterManager
from assistant.chat.writing import RepliesInWriting
from assistant.engine.engine import MEMORY, Engine
from assistant.engine.request import EngineProtocol
from assistant.models import chat_template
from assistant.models.base_model import Base, find_base, load_tokenizer, pick_device, require_room
from assistant.models.remarks import remarks
from feedback.database.database import Database

WAITS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LEAST_ROOM = 512  # tokens of the window kept free for the reply (a quarter of a small window)

log = logging.getLogger(__name__)


def first_token_histogram() -> Histogram:
    """How long people waited for a reply's first token, in seconds, since the program started."""
    told = "Seconds from asking to a reply's first token, since the start."
    return Histogram("nightschool_first_token_seconds", told, buckets=WAITS_S, registry=None)


@dataclass
class Assistant:
    """Everything needed to answer, opened once per process."""

    store: Database
    base: Base
    engine: EngineProtocol
    adapters: AdapterManager
    tokenizer: Any
    template_sha256: str
    first_token_waits: Histogram = field(default_factory=first_token_histogram)
    writing: RepliesInWriting = field(default_factory=RepliesInWriting, init=False)

    @property
    def longest_prompt(self) -> int:
        """The most tokens of a conversation that the model is shown."""
        return self.engine.window - min(LEAST_ROOM, self.engine.window // 4)

    def close(self) -> None:
        """Stop answering; the database stays open."""
        self.engine.close()


def open_assistant(
    store: Database,
    model: str = "embedded",
    dtype: str = "auto",
    device: str = "auto",
    engine_url: str | None = None,
    memory: int = MEMORY,
    apart: bool = False,
) -> Assistant:
    """Load a base model and get ready to answer; takes seconds. Raises `Refused` on an unusable model or dtype.

    `memory` bounds the KV cache, in bytes. With `engine_url`, the model server at that address answers, computing in
    `dtype`. With `apart`, the engine runs in a process of its own.
    """
    base = find_base(model)
    device = pick_device() if device == "auto" else device
    tokenizer = load_tokenizer(base)
    require_room(base, tokenizer)
    for sentence in remarks(base, tokenizer):
        log.warning(sentence)
    engine: EngineProtocol
    if engine_url:
        from assistant.engine.vllm.engine import RemoteEngine

        engine = RemoteEngine(engine_url, base, tokenizer, dtype)
    elif apart:
        from assistant.engine.engine_process import EngineApart

        engine = EngineApart(base, dtype, device, memory)
    else:
        engine = Engine(base, dtype, device, tokenizer, memory)
    return Assistant(
        store, base, engine, AdapterManager(store, engine), tokenizer, chat_template.template_sha256(tokenizer)
    )
