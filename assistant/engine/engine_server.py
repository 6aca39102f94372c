"""The engine's own process: it does what it is asked over a connection, until told to end or disconnected."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from assistant.engine.request import Busy, EngineError, Generation, Who
from assistant.engine.sampling.params import Sampling, Token
from assistant.models.adapter import AdapterCard, LoadedAdapter
from assistant.models.base_model import Base, load_tokenizer

GIVES_WAY = 5  # its niceness above the server's, which computes little but must answer at once
SWITCH_S = 0.0005  # for Python's threads: the one that takes requests must not wait for the one that computes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opening:
    """The settings an engine is opened with."""

    base: Base
    number_format: str
    device: str
    memory: int


@dataclass(frozen=True)
class Facts:
    """The properties of an open engine that stay the same."""

    window: int
    tolerance: float
    end_ids: frozenset[int]
    number_format: str


class Answering:
    """An engine, and the connection to the server."""

    def __init__(self, connection: "Connection[Any, Any]", opening: Opening) -> None:
        """Open the engine and report its facts. Raises `Refused` if it cannot be opened."""
        from assistant.engine.engine import Engine

        tokenizer = load_tokenizer(opening.base)
        self._connection = connection
        self._sending = threading.Lock()
        self._engine = Engine(opening.base, opening.number_format, opening.device, tokenizer, opening.memory)
        self._lora_slots: dict[int, LoadedAdapter] = {}
        self._replies: dict[int, Generation] = {}
        self._slow = ThreadPoolExecutor(4)  # for what takes long: loading adapters, compiling schemas
        engine = self._engine
        self.send(Facts(engine.window, engine.tolerance, engine.end_ids, engine.number_format))

    def send(self, what: Any) -> None:
        """Send to the server; if it is gone, nothing happens."""
        try:
            with self._sending:
                self._connection.send(what)
        except OSError:
            pass

    def serve(self) -> None:
        """Do what is asked, until told to close or the server is gone."""
        try:
            while True:
                what, call, arguments = self._connection.recv()
                if what == "close":
                    break
                is_slow = what == "load" or (what == "submit" and arguments[2].json_schema)
                if is_slow:
                    self._slow.submit(self._do, what, call, arguments)
                else:
                    self._do(what, call, arguments)
        except (EOFError, OSError):
            pass
        self._engine.close()
        self._slow.shutdown(wait=False, cancel_futures=True)

    def _do(self, what: str, call: int, arguments: Sequence[Any]) -> None:
        try:
            answer = getattr(self, f"_{what}")(*arguments)
        except Exception as error:
            answer = error
            if not call:
                log.exception("%s failed", what)
        if call:
            self.send((call, answer, None, False))

    def _counts(self) -> tuple[int, int, int]:
        return self._engine.active, self._engine.waiting, self._engine.tokens_written

    def _require_places(self, who: Who, count: int) -> None:
        self._engine.require_places(who, count)

    def _submit(
        self, number: int, prompt_ids: list[int], sampling: Sampling, lora_slot: int | None, forced: list[int], who: Who
    ) -> Sampling:
        adapter = None if lora_slot is None else self._lora_slots.get(lora_slot)
        if lora_slot is not None and adapter is None:
            raise Busy("the adapter was let go a moment ago; try again")

        ended = threading.Event()

        def tell(reply: Generation, item: Token | EngineError | None) -> None:
            if item is None or isinstance(item, EngineError):
                ended.set()
                self._replies.pop(number, None)
            self.send((number, item, reply.finish, True))

        writing = self._engine.submit(prompt_ids, sampling, adapter, forced, who=who, told=tell)
        self._replies[number] = writing
        if ended.is_set():
            self._replies.pop(number, None)
        return writing.sampling

    def _cancel(self, number: int) -> None:
        reply = self._replies.get(number)
        if reply is not None:
            reply.cancel()

    def _load(self, lora_slot: int, directory: Path) -> AdapterCard:
        loaded = self._lora_slots[lora_slot] = self._engine.load(directory)
        return loaded.card

    def _read_again(self, lora_slot: int, directory: Path, proved: AdapterCard) -> None:
        """Load an adapter again, before anything else is answered, as requests for it follow at once.

        One that changed on disk since its proof never answers.
        """
        loaded = self._engine.load(directory)
        if loaded.card == proved:
            self._lora_slots[lora_slot] = loaded
        else:
            log.error("adapter %s was changed on disk since it was proved", proved.id)
            self._engine.unload(loaded)

    def _unload(self, lora_slot: int) -> None:
        loaded = self._lora_slots.pop(lora_slot, None)
        if loaded is not None:
            self._engine.unload(loaded)


def main(descriptor: int) -> None:
    """Run the engine's process; it ends when it is told to, and when the server is gone."""
    for each in (signal.SIGINT, signal.SIGTERM):  # meant for the server, which tells us when it is done
        signal.signal(each, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(GIVES_WAY)
    sys.setswitchinterval(SWITCH_S)
    connection: Connection[Any, Any] = Connection(descriptor)
    opening = connection.recv()
    try:
        answering = Answering(connection, opening)
    except Exception as error:
        connection.send(error)
        return
    answering.serve()
