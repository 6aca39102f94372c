"""The same contract as `engine`, kept by a model server such as vLLM: it has the weights, we have the chat.

Each reply is one HTTP stream, all of them in one thread. A cancelled reply closes its stream, and the server stops
writing. An adapter is unloaded when nothing holds it and no reply is being written with it.
"""

import asyncio
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from assistant.engine.engine import MOST_WAITING
from assistant.engine.request import Busy, Ending, EngineError, Generation, Who
from assistant.engine.sampling.params import Sampling, Token
from assistant.engine.scheduling.fair_shares import require_places
from assistant.engine.scheduling.scheduler import MOST_ROWS
from assistant.engine.vllm import protocol
from assistant.engine.vllm.adapters import lend, place_for, take_back
from assistant.engine.vllm.handshake import ANSWER_S, CONNECT_S, headers, meet, read_settings
from assistant.models.adapter import LoadedAdapter, checked_card
from assistant.models.base_model import Base, one_line
from assistant.models.rounding import rounded_from
from feedback.errors import Refused

# Nats per token by which the server's log-probs may differ from the trainer's, by its number format. It does not report
# which that is, so unless the operator does, it may be the coarser one.
TOLERANCES = {"float32": 2e-3, "bfloat16": 0.2, "auto": 0.2}
TAKEN_ON_WITHIN_S = 10.0  # a server says at once that it is too busy; one that says nothing has not refused
HEALTHY_WITHIN_S = 3.0
GOODBYE_S = 5.0
MOST_OPEN = MOST_ROWS  # replies to one person at once: as many as this machine's own engine writes for everyone

log = logging.getLogger(__name__)


class Asked(Generation):
    """A reply that the server writes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: LoadedAdapter | None,
        forced: Sequence[int],
        who: Who = None,
    ) -> None:
        super().__init__(prompt_ids, sampling, adapter, forced, who)
        self.taken_on: Future[None] = Future()  # set once the server has taken the request on or refused it
        self.writes = False  # a first token has come
        self.task: asyncio.Task[None] | None = None
        self._loop = loop

    def cancel(self) -> None:
        """Stop writing: the stream is closed at once."""
        super().cancel()
        with suppress(RuntimeError):  # the engine is closed, and every reply over
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self.task:
            self.task.cancel()


class RemoteEngine:
    """The connection to a model server, and the thread that runs it. Share one between all chats."""

    def __init__(self, url: str, base: Base, tokenizer: Any, dtype: str = "auto") -> None:
        """`dtype` is the number format the server computes in. Raises `Refused` if it cannot answer for the base."""
        if dtype not in TOLERANCES:
            raise Refused(
                f"with a model server, dtype is {', '.join(TOLERANCES)} and what it computes in, not {dtype!r}"
            )
        stored = rounded_from(base)
        if stored and dtype == "float32":
            raise Refused(
                f"the weights of {base.name!r} are stored as {stored}, and training rounds them to bfloat16: start "
                "vLLM with --dtype bfloat16, which rounds them too, and say --dtype bfloat16 here"
            )
        self.server = meet(url, base, tokenizer)
        self.base = base
        self.tolerance = TOLERANCES[dtype]
        self.end_ids, self.window = read_settings(base, tokenizer)
        self.window = min(self.window, self.server.window or self.window)
        self.tokens_written = 0
        self._open: list[Asked] = []
        self._holders: Counter[str] = Counter()  # of each adapter, by its name in the server: loads and replies
        self._lock = threading.RLock()
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._client = httpx.AsyncClient(
            base_url=self.server.url,
            headers=headers(),
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=MOST_WAITING),
        )
        self._thread = threading.Thread(target=self._run, name="remote engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the server reports that it is healthy."""
        if self._closing or not self._thread.is_alive():
            return False
        try:
            return (
                self._await(self._client.get("/health", timeout=HEALTHY_WITHIN_S), HEALTHY_WITHIN_S).status_code == 200
            )
        except EngineError:
            return False

    @property
    def active(self) -> int:
        """The number of replies being written."""
        return sum(each.writes for each in self._open[:])

    @property
    def waiting(self) -> int:
        """The number of requests waiting for their first token."""
        return sum(not each.writes for each in self._open[:])

    def load(self, directory: Path) -> LoadedAdapter:
        """Check an adapter on disk and have the server load it; the server must see the directory under the same path.

        Raises `AdapterRefused` with the reason, and `EngineError` if the server is busy or cannot be reached.
        """
        directory = directory.resolve()
        card = checked_card(directory, self.base.sha256)
        place = place_for(directory, card)
        self._await(lend(self._client, place, card))
        with self._lock:
            self._holders[place.model] += 1
        return LoadedAdapter(directory.name, card, lora_slot=place)

    def unload(self, adapter: LoadedAdapter) -> None:
        """Have the server unload an adapter once the replies it is writing are finished."""
        self._let_go(adapter)

    def require_places(self, who: Who, count: int) -> None:
        """Raise `Busy` if `count` more requests by a person would be too many, in total or for that person.

        The server begins every reply that it has room for, so a person's own replies count from first token to last.
        """
        with self._lock:
            theirs = [each for each in self._open if not each.forced]
        require_places(who, count, [each.who for each in theirs if not each.writes], MOST_WAITING)
        if who is not None and (open_now := sum(each.who == who for each in theirs)) + count > MOST_OPEN:
            raise Busy(
                f"busy: {open_now} replies to you are being written, and one person may have {MOST_OPEN} at once"
            )

    def submit(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: LoadedAdapter | None = None, *, who: Who = None
    ) -> Generation:
        """Request a reply. Raises `Refused` if the prompt does not fit the window, `Busy` if too many requests wait."""
        room = self._room(prompt_ids, 1)
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(63))
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        generation = self._ask(Asked(self._loop, prompt_ids, sampling, adapter, (), who))
        with suppress(TimeoutError, EngineError):  # the reader of the reply will see
            generation.taken_on.result(timeout=TAKEN_ON_WITHIN_S)
        return generation

    def score(self, prompt_ids: Sequence[int], reply_ids: Sequence[int], adapter: LoadedAdapter | None) -> Generation:
        """Score a given reply: its tokens come with their log-probs, computed as if it were being written."""
        self._room(prompt_ids, len(reply_ids))
        return self._ask(Asked(self._loop, prompt_ids, Sampling(temperature=0), adapter, reply_ids))

    def close(self) -> None:
        """Stop: replies being written end as cancelled, and the server unloads our adapters."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        with suppress(EngineError):
            self._await(self._leave(), GOODBYE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=GOODBYE_S)

    # What follows runs in the callers' threads.

    def _room(self, prompt_ids: Sequence[int], least: int) -> int:
        """The tokens of the window that a prompt leaves. Raises `Refused` if they are fewer than `least`."""
        room = self.window - len(prompt_ids)
        if room < least:
            raise Refused(f"the prompt has {len(prompt_ids):,} tokens, and the model takes at most {self.window:,}")
        return room

    def _ask(self, generation: Asked) -> Asked:
        with self._lock:
            if self._closing:
                raise Ending
            if not generation.forced:
                self.require_places(generation.who, 1)
            self._open.append(generation)
            if generation.adapter:
                self._holders[generation.adapter.lora_slot.model] += 1
            self._loop.call_soon_threadsafe(self._begin, generation)
        return generation

    def _await(self, asking: Coroutine[Any, Any, Any], within_s: float = ANSWER_S) -> Any:
        """Run a coroutine in the engine's thread and return its result. Raises `EngineError` if the server is lost."""
        future = asyncio.run_coroutine_threadsafe(asking, self._loop)
        try:
            return future.result(within_s)
        except (httpx.HTTPError, TimeoutError) as error:
            future.cancel()
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> EngineError:
        return EngineError(f"the connection to the model server at {self.server.url} is lost ({one_line(error)})")

    def _let_go(self, adapter: LoadedAdapter) -> None:
        """Release one hold on an adapter; releasing the last one unloads it."""
        model = adapter.lora_slot.model
        with self._lock:
            self._holders[model] -= 1
            unused = self._holders[model] <= 0 and not self._closing
            if unused:
                del self._holders[model]
        if unused:
            asyncio.run_coroutine_threadsafe(take_back(self._client, model), self._loop)

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _begin(self, generation: Asked) -> None:
        generation.task = self._loop.create_task(
            self._read(generation) if generation.forced else self._write(generation)
        )
        generation.task.add_done_callback(lambda task: self._end(generation, task))
        if generation.cancelled:
            generation.task.cancel()

    def _end(self, generation: Asked, task: asyncio.Task[None]) -> None:
        """Close a reply, however it ended, and tell its reader."""
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            generation.finish = generation.finish or "cancelled"
        if isinstance(error, httpx.HTTPError):
            error = self._lost(error)
        elif error and not isinstance(error, (Refused, EngineError)):
            log.error("the model server's answer was not understood", exc_info=error)
            error = EngineError(f"the model server's answer was not understood ({one_line(error)})")
        with self._lock:
            self._open.remove(generation)
        if generation.adapter:
            self._let_go(generation.adapter)
        generation.put(EngineError(str(error)) if error else None)
        if not generation.taken_on.done():
            generation.taken_on.set_exception(error) if error else generation.taken_on.set_result(None)

    async def _write(self, generation: Asked) -> None:
        """Request one reply and pass its tokens on as they come."""
        adapter, sampling = generation.adapter, generation.sampling
        model = adapter.lora_slot.model if adapter else self.server.model
        body = protocol.writing(model, generation.prompt_ids, sampling, self.end_ids)
        finish = None
        async with aclosing(await self._answer(body, adapter)) as answer:
            generation.taken_on.set_result(None)
            async for part in protocol.parts(answer, body["stream"]):
                for token in protocol.written(part, sampling):
                    self._put(generation, token)
                finish = part.get("finish_reason") or finish
        if finish not in protocol.FINISHES:
            raise EngineError(f"the model server at {self.server.url} broke off in the middle of this reply; try again")
        generation.finish = finish

    async def _read(self, generation: Asked) -> None:
        """Request the log-probs of one given reply."""
        adapter, read = generation.adapter, list(generation.prompt_ids)
        model = adapter.lora_slot.model if adapter else self.server.model
        for start in range(0, len(generation.forced), protocol.SCORED_AT_ONCE):
            some = generation.forced[start : start + protocol.SCORED_AT_ONCE]
            async with aclosing(await self._answer(protocol.scoring(model, read, some), adapter)) as answer:
                await answer.aread()
            for token in protocol.scored(answer.json(), some):
                self._put(generation, token)
            read += some
        generation.finish = "length"

    def _put(self, generation: Asked, token: Token) -> None:
        generation.writes = True
        self.tokens_written += 1
        generation.put(token)

    async def _answer(self, body: dict[str, Any], adapter: LoadedAdapter | None) -> httpx.Response:
        """The response to a request, begun with status 200; a server that lost the adapter gets it again, once."""
        for may_lend in (adapter is not None, False):
            request = self._client.build_request("POST", "/v1/completions", json=body)
            answer = await self._client.send(request, stream=True)
            if answer.status_code == 200:
                return answer
            async with aclosing(answer):
                await answer.aread()
            if not (adapter and may_lend and answer.status_code == 404):
                break
            await lend(self._client, adapter.lora_slot, adapter.card)
        raise protocol.refusal(answer)

    async def _leave(self) -> None:
        for each in self._open[:]:
            if each.task:
                each.task.cancel()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
        for model in list(self._holders):
            await take_back(self._client, model)
        await self._client.aclose()
