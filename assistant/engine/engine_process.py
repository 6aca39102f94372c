"""The same contract as `engine`, kept by an engine in a process of its own.

Python runs one thread at a time: in the server's process, an engine would wait for pages, logins and long bodies
between any two of a step's thousand products, and they would wait for it. Apart, each has its own processor, and load
on the server slows the engine little. A process that dies is started again, with the adapters it had, unless it lived
less than a minute.
"""

import contextlib
import itertools
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from assistant.engine.engine_server import Facts, Opening
from assistant.engine.request import Busy, Ending, EngineError, Generation, Who
from assistant.engine.sampling.params import Sampling
from assistant.models.adapter import AdapterCard, LoadedAdapter
from assistant.models.base_model import Base

STARTED_ANEW_AFTER_S = 60.0  # one that lived for less would only die again
GOODBYE_S = 30.0
ENDED = "the assistant's engine ended while answering; try again"

log = logging.getLogger(__name__)


class Distant(Generation):
    """A reply that another process writes."""

    tell_cancelled: Callable[[], object] | None = None  # set once the other process has the request

    def cancel(self) -> None:
        """Ask the engine to stop writing; tokens already written still come."""
        super().cancel()
        if self.tell_cancelled is not None:
            self.tell_cancelled()


class EngineApart:
    """An engine in a process of its own. Share one between all chats."""

    def __init__(self, base: Base, number_format: str, device: str, memory: int) -> None:
        """Start the process and load a base model, as `Engine` does. Raises `Refused` if that fails."""
        self.base = base
        self._opening = Opening(base, number_format, device, memory)
        self._numbers = itertools.count(1)
        self._changed = threading.Lock()
        self._sending = threading.Lock()  # never held while hearing, which the other process may be waiting for
        self._calls: dict[int, Future[Any]] = {}
        self._replies: dict[int, Distant] = {}
        self._loaded: dict[int, tuple[Path, AdapterCard]] = {}
        self._closing = False
        self._answers = True  # False from the death of one process until the next is ready
        self._written = 0  # tokens, by processes that died
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
        """The number of replies being written."""
        return self._count()[0]

    @property
    def waiting(self) -> int:
        """The number of requests waiting for a place."""
        return self._count()[1]

    @property
    def tokens_written(self) -> int:
        """The number of tokens written since the server started."""
        return self._written + self._count()[2]

    def require_places(self, who: Who, count: int) -> None:
        """Raise `Busy` if `count` more requests by a person would be too many, in total or for that person."""
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
        """Load an adapter from disk and get ready to answer with it. Raises `AdapterRefused` with the reason."""
        lora_slot = next(self._numbers)
        card = self._ask("load", lora_slot, directory)
        with self._changed:
            self._loaded[lora_slot] = (directory, card)
        return LoadedAdapter(directory.name, card, lora_slot)

    def unload(self, adapter: LoadedAdapter) -> None:
        """Free an adapter's memory once the replies it is writing are finished."""
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
        """Replies being written, waiting requests and tokens written; if the process is gone, the last it reported."""
        with contextlib.suppress(Busy, EngineError):
            self._counts = self._ask("counts")
        return self._counts

    def _ask(self, what: str, *arguments: Any) -> Any:
        """Ask the other process. Raises what it raises; if it is gone, `EngineError`, or `Ending` while closing."""
        number, answer = next(self._numbers), Future[Any]()
        with self._changed:
            self._calls[number] = answer
        if not self._tell(what, *arguments, call=number):
            with self._changed:
                self._calls.pop(number, None)
            raise Ending if self._closing else EngineError(ENDED)
        return answer.result()

    def _tell(self, what: str, *arguments: Any, call: int = 0) -> bool:
        """Send the other process a message; return whether that succeeded."""
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
                "-P",
                "-c",
                f"from assistant.engine.engine_server import main; main({theirs.fileno()})",
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
        """Pass on what the other process says, and start another one when it dies."""
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
        """End all open calls and replies, as the other process is gone."""
        self._answers = False
        with self._changed:
            calls, self._calls = self._calls, {}
            replies, self._replies = self._replies, {}
        for call in calls.values():
            call.set_exception(Ending() if self._closing else EngineError(ENDED))
        for reply in replies.values():
            if self._closing:
                reply.finish = "cancelled"
                reply.put(None)
            else:
                reply.put(EngineError(ENDED))
