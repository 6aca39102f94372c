"""The same contract as `engine`, kept by an engine in a process of its own.

Python runs one thread at a time: an engine in the server's process waits between any two of a step's thousand
products for pages, logins and long bodies, and those wait for it. Apart, each has its processor, and who loads the
server slows the engine little. One that dies is started anew, with the adapters it had.
"""

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from assistant.engine.request import Busy, EngineError, Generation, Who
from assistant.engine.sampling.params import Sampling, Token
from assistant.models.adapter import AdapterCard, LoadedAdapter
from assistant.models.base_model import Base, load_tokenizer

GIVES_WAY = 5  # how far it ranks behind the server, which hardly computes but shall answer at once
STARTED_ANEW_AFTER_S = 60.0  # one that lived shorter would die again
GOODBYE_S = 30.0
ENDED = "the assistant's engine ended while answering; try again"
SWITCH_S = 0.0005  # between two threads of it: the one that takes requests shall not wait for the one that computes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opening:
    """What an engine is opened with."""

    base: Base
    number_format: str
    device: str
    memory: int


@dataclass(frozen=True)
class Facts:
    """What stays the same of an engine that is open."""

    window: int
    tolerance: float
    end_ids: frozenset[int]
    number_format: str


class Distant(Generation):
    """A reply that another process writes."""

    tell_cancelled: Callable[[], object] | None = None  # from when the other process has it

    def cancel(self) -> None:
        """Ask the engine to stop writing; tokens already written still come."""
        super().cancel()
        if self.tell_cancelled is not None:
            self.tell_cancelled()


class EngineApart:
    """An engine in a process of its own. Share one between all chats."""

    def __init__(self, base: Base, number_format: str, device: str, memory: int) -> None:
        """Start it and load a base model, as `Engine` does. Raises `Refused` where it cannot."""
        self.base = base
        self._opening = Opening(base, number_format, device, memory)
        self._numbers = itertools.count(1)
        self._changed = threading.Lock()
        self._sending = threading.Lock()  # never held by who hears: the other process may wait for that one
        self._calls: dict[int, Future[Any]] = {}
        self._replies: dict[int, Distant] = {}
        self._loaded: dict[int, tuple[Path, AdapterCard]] = {}
        self._closing = False
        self._answers = True  # False from when one died until another one is there
        self._written = 0  # by those that died
        self._counts = (0, 0, 0)
        self._process, self._connection, facts = self._start()
        self.window, self.tolerance, self.end_ids = facts.window, facts.tolerance, facts.end_ids
        self.number_format = facts.number_format
        self._reader = threading.Thread(target=self._listen, name="engine", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether the engine can answer."""
        return self._answers and not self._closing and self._process.poll() is None

    @property
    def active(self) -> int:
        """How many replies are being written."""
        return self._count()[0]

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return self._count()[1]

    @property
    def tokens_written(self) -> int:
        """Since the server began."""
        return self._written + self._count()[2]

    def require_places(self, who: Who, count: int) -> None:
        """Raises `Busy` where `count` more requests of a person would be too many, of all people's or their own."""
        self._ask("require_places", who, count)

    def submit(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: LoadedAdapter | None = None,
        forced: Sequence[int] = (),
        *,
        who: Who = None,
    ) -> Distant:
        """As `Engine.submit`."""
        reply = Distant(prompt_ids, sampling, adapter, forced, who)
        lora_slot = adapter.lora_slot if adapter is not None else None
        number = next(self._numbers)
        with self._changed:
            self._replies[number] = reply
        try:
            asked = (reply.prompt_ids, sampling, lora_slot, reply.forced, who)
            reply.sampling = self._ask("submit", number, *asked)
        except BaseException:
            with self._changed:
                self._replies.pop(number, None)
            raise
        reply.tell_cancelled = partial(self._tell, "cancel", number)
        return reply

    def score(self, prompt_ids: Sequence[int], reply_ids: Sequence[int], adapter: LoadedAdapter | None) -> Distant:
        """As `Engine.score`."""
        return self.submit(prompt_ids, Sampling(temperature=0), adapter, forced=reply_ids)

    def load(self, directory: Path) -> LoadedAdapter:
        """Read an adapter from disk and get ready to answer with it. Raises `AdapterRefused` with the reason."""
        lora_slot = next(self._numbers)
        card = self._ask("load", lora_slot, directory)
        with self._changed:
            self._loaded[lora_slot] = (directory, card)
        return LoadedAdapter(directory.name, card, lora_slot)

    def unload(self, adapter: LoadedAdapter) -> None:
        """Give an adapter's memory back, once the replies it is writing are finished."""
        with self._changed:
            self._loaded.pop(adapter.lora_slot, None)
        self._tell("unload", adapter.lora_slot)

    def close(self) -> None:
        """Stop: replies being written end as cancelled."""
        self._closing = True
        self._tell("close")
        try:
            self._process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join(GOODBYE_S)

    def _count(self) -> tuple[int, int, int]:
        """Replies being written, requests that wait, and tokens written; of one that is gone, the last that it told."""
        with contextlib.suppress(Busy, EngineError):
            self._counts = self._ask("counts")
        return self._counts

    def _ask(self, what: str, *arguments: Any) -> Any:
        """What the other process answers. Raises what it raises, and `EngineError` where it is gone."""
        number, answer = next(self._numbers), Future[Any]()
        with self._changed:
            self._calls[number] = answer
        if not self._tell(what, *arguments, call=number):
            with self._changed:
                self._calls.pop(number, None)
            raise Busy("the assistant is shutting down") if self._closing else EngineError(ENDED)
        return answer.result()

    def _tell(self, what: str, *arguments: Any, call: int = 0) -> bool:
        """Whether it could be told."""
        try:
            with self._sending:
                self._connection.send((what, call, arguments))
        except OSError:
            return False
        return True

    def _start(self) -> tuple["subprocess.Popen[bytes]", "Connection[Any, Any]", Facts]:
        """Start the other process. Raises what opening the engine there raises."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [
                sys.executable,
                "-c",
                f"from assistant.engine.engine_process import main; main({theirs.fileno()})",
            ]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        connection: Connection[Any, Any] = Connection(ours.detach())
        connection.send(self._opening)
        try:
            facts = connection.recv()
        except EOFError:
            raise EngineError("the engine's process ended before it could answer") from None
        if isinstance(facts, BaseException):
            process.wait()
            raise facts
        return process, connection, facts

    def _listen(self) -> None:
        """Hand on what the other process says, and start another one when it dies."""
        while True:
            began = time.monotonic()
            try:
                while True:
                    self._hear(*self._connection.recv())
            except (EOFError, OSError):
                self._end_all()
            self._process.wait()
            if self._closing:
                return
            log.error("the engine's process ended with %s", self._process.returncode)
            if time.monotonic() - began < STARTED_ANEW_AFTER_S:
                return
            try:
                self._start_anew()
            except Exception:
                log.exception("the engine could not be started anew")
                return

    def _start_anew(self) -> None:
        process, connection, _ = self._start()
        with self._changed, self._sending:
            for lora_slot, (directory, card) in self._loaded.items():
                connection.send(("read_again", 0, (lora_slot, directory, card)))
                log.info("the engine reads adapter %s again", card.id)
            self._written += self._counts[2]
            self._process, self._connection = process, connection
        self._answers = True
        if self._closing:
            self._tell("close")

    def _hear(self, number: int, item: Any, finish: str | None, is_reply: bool) -> None:
        if not is_reply:
            with self._changed:
                answer = self._calls.pop(number, None)
            if answer is None:
                return
            if isinstance(item, BaseException):
                answer.set_exception(item)
            else:
                answer.set_result(item)
            return
        ended = item is None or isinstance(item, EngineError)
        with self._changed:
            reply = self._replies.pop(number, None) if ended else self._replies.get(number)
        if reply is not None:
            reply.finish = finish
            reply.put(item)

    def _end_all(self) -> None:
        """Nobody answers any more."""
        self._answers = False
        with self._changed:
            calls, self._calls = self._calls, {}
            replies, self._replies = self._replies, {}
        for call in calls.values():
            call.set_exception(Busy("the assistant is shutting down") if self._closing else EngineError(ENDED))
        for reply in replies.values():
            if self._closing:
                reply.finish = "cancelled"
                reply.put(None)
            else:
                reply.put(EngineError(ENDED))


# In the other process


class Answering:
    """The other process: an engine, and the connection to who asks."""

    def __init__(self, connection: "Connection[Any, Any]", opening: Opening) -> None:
        """Raises `Refused` where the engine cannot be opened."""
        from assistant.engine.engine import Engine

        tokenizer = load_tokenizer(opening.base)
        self._connection = connection
        self._sending = threading.Lock()
        self._engine = Engine(opening.base, opening.number_format, opening.device, tokenizer, opening.memory)
        self._lora_slots: dict[int, LoadedAdapter] = {}
        self._replies: dict[int, Generation] = {}
        self._slow = ThreadPoolExecutor(4)  # what takes long: adapters are read, schemas are compiled
        engine = self._engine
        self.send(Facts(engine.window, engine.tolerance, engine.end_ids, engine.number_format))

    def send(self, what: Any) -> None:
        """To who asks; nobody hears it any more where they are gone."""
        try:
            with self._sending:
                self._connection.send(what)
        except OSError:
            pass

    def serve(self) -> None:
        """Do what is asked until told to close, or nobody is there any more."""
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
        """Before anything else is answered: requests for it come right behind.

        What changed on disk since its proof never answers.
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
    """The other process: it ends when it is told to, and when who asks is gone."""
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
