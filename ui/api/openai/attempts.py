"""Attempts at one completion: a request that repeats another gets the same replies, and leaves one conversation.

A client that gave up waiting asks again, and says so: by an Idempotency-Key, or as OpenAI's clients do, which send none
but count their retries in a header. Such an attempt joins the replies still being written, or is answered from those
that were; where they were cut short, it has them written again in the same conversation.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

from starlette.datastructures import Headers

from assistant.chat.assistant import Assistant
from assistant.chat.reply import ReplyStream
from assistant.engine.request import EngineError
from assistant.engine.sampling.params import Token
from assistant.models import chat_template
from assistant.models.chat_template import Prompt
from feedback.accounts import idempotency
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import Conflict, NotFound, Refused
from feedback.numerals import natural
from ui.api.openai.request import ChatAsked, TextAsked
from ui.api.openai.response import Reply

RETRIES = "x-stainless-retry-count"  # of the clients by OpenAI; 0 in the first attempt
# How long those clients wait before they ask again: twice as long each time. A second more is for the way.
FIRST_WAIT_S, LONGEST_WAIT_S, WAY_S = 0.5, 8.0, 1.0
KEPT_S = 60.0  # how long an answer that nobody took is kept for the next attempt
LOOK_EVERY_S = 0.05  # how often to look at the other choices while waiting for one

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
Reader = asyncio.Task[None]  # one who waits for replies: a task that is done once their connection is


@dataclass(frozen=True)
class Attempt:
    """What tells whether a request repeats another one."""

    user: User
    asked: dict[str, Any]  # the request itself
    key: str | None
    tried: int | None  # how often before; None from clients that do not say
    streams: bool = False
    is_resumable: bool = False  # whether the replies are written to their end though their reader has left

    @cached_property
    def digest(self) -> str:
        """A hash of the request."""
        return idempotency.digest(self.asked)

    @property
    def name(self) -> tuple[int, str]:
        """What an attempt has in common with those that it repeats."""
        return self.user.id, f"key {self.key}" if self.key is not None else self.digest

    @property
    def lingers_s(self) -> float:
        """How long the replies go on being written after their reader has left, for the next attempt."""
        if self.key is not None or self.is_resumable:
            return math.inf
        if self.tried is None or self.streams:  # whose reader has had the headers, and will not ask again
            return 0.0
        return WAY_S + min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self.tried, 10))


def attempt_of(headers: Headers, user: User, act: str, body: ChatAsked | TextAsked) -> Attempt:
    """The attempt that a request is."""
    tried = natural(headers.get(RETRIES, ""))
    asked = {"act": act, "body": body.model_dump()}
    return Attempt(user, asked, headers.get("idempotency-key"), tried, bool(body.stream), body.is_resumable)


@dataclass
class KeptReply:
    """A reply that is in the ledger, as `ReplyStream` shows one that is being written."""

    id: str
    parent: str
    text: str
    finish: str
    adapter: str | None
    tokens: list[Token]
    prompt: Prompt
    tokenizer: Any = field(repr=False)
    over: bool = True

    @property
    def left_out(self) -> int:
        """The oldest messages, which did not fit into the prompt."""
        return self.prompt.left_out

    @property
    def usage(self) -> tuple[int, int]:
        """The number of tokens in the prompt, and in the reply."""
        return len(self.prompt.ids), len(self.tokens)

    def decoded(self, count: int) -> str:
        """The text of its first `count` tokens."""
        return chat_template.decode(self.tokenizer, [token.id for token in self.tokens[:count]])


def kept_replies(assistant: Assistant, parent: str, prompt: Prompt, count: int) -> list[KeptReply]:
    """The newest replies to a message that were not cut short; none if there are fewer than `count`."""
    found = []
    for node in conversations.children(assistant.store, parent):
        with suppress(NotFound):  # a message of a person's
            by = conversations.provenance(assistant.store, node.id)
            if by.finish != "cancelled":
                told = zip(by.token_ids, by.logprobs, by.sampled_logprobs, strict=True)
                tokens = [Token(*each) for each in told]
                facts = (node.id, parent, node.content, by.finish, by.adapter, tokens, prompt, assistant.tokenizer)
                found.append(KeptReply(*facts))
    return found[-count:] if len(found) >= count else []


class Writing:
    """The replies to one request, for its reader and those of later attempts. To be used from the event loop only."""

    def __init__(
        self, parents: Sequence[str], replies: Sequence[Reply], in_thread: InThread, lingers_s: float = 0.0
    ) -> None:
        self.parents = list(parents)  # the messages that they answer
        self.replies = list(replies)
        self.error: Exception | None = None  # why they could not be finished
        self.is_stopped = False
        self.is_taken = False  # whether a reader has had all of it
        self.digest = ""  # of the request
        self.ended_at = math.inf
        self.lingers_s = lingers_s  # how long it goes on without a reader
        self.readers = set[Reader]()
        self._in_thread = in_thread
        self._growing: asyncio.Task[None] | None = None
        self._lingering: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether they are all written, or cannot be."""
        return self.error is not None or all(each.over for each in self.replies)

    @property
    def is_awaited(self) -> bool:
        """Whether a reader is still connected."""
        return not all(each.done() for each in self.readers)

    @property
    def can_be_joined(self) -> bool:
        """Whether a later attempt can have these replies, too."""
        return not self.is_stopped and self.error is None

    def is_kept_at(self, now: float) -> bool:
        """Whether a later attempt may still come."""
        is_needed = self.lingers_s == math.inf or not self.is_taken  # else its client has it, and would not ask again
        return is_needed and now - self.ended_at < KEPT_S

    async def more(self, timeout_s: float | None = None) -> None:
        """Wait, at most so long, until one has grown or ended."""
        if self._growing is None or self._growing.done():
            self._growing = asyncio.create_task(self._grow())
        await asyncio.wait({self._growing}, timeout=timeout_s)

    async def leave(self, reader: Reader) -> None:
        """Let one reader go. After the last one, the replies are stopped and recorded, at once or after a while."""
        self.readers.discard(reader)
        if self.readers:
            return
        if self.is_over or not self.lingers_s:
            await self._end()
            return
        if self._lingering is not None:
            self._lingering.cancel()
        self._lingering = asyncio.create_task(self._linger())

    async def _linger(self) -> None:
        """Write on without a reader, for as long as another may come."""
        until = asyncio.get_running_loop().time() + self.lingers_s
        while not (self.is_over or self.readers):
            left_s = until - asyncio.get_running_loop().time()
            if left_s <= 0:
                break
            await self.more(min(left_s, KEPT_S))
        if not self.readers:
            await self._end()

    async def _grow(self) -> None:
        try:
            await self._in_thread(lambda: grow(self.replies))
        except Exception as error:
            self.error = error

    async def _end(self) -> None:
        self.is_stopped = self.is_stopped or not self.is_over
        stop(self.replies)
        while not self.is_over:
            await self.more()
        await self._in_thread(lambda: end(self.replies))
        self.ended_at = min(self.ended_at, asyncio.get_running_loop().time())


class Attempts:
    """What is being written for each request, and what was, for a while. To be used from the event loop only."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], list[Writing]] = {}
        self._locks: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()

    async def join(
        self, attempt: Attempt, reader: Reader, begin: Callable[[list[str]], Awaitable[Writing]]
    ) -> tuple[Writing, bool]:
        """The replies for an attempt, which `reader` now reads, and whether they are those of an earlier one.

        `begin` starts them, in the conversations that an earlier attempt has left, if it has. Raises what it raises.
        """
        if attempt.key is None and attempt.tried is None:
            writing = await begin([])
            writing.readers.add(reader)
            return writing, False
        lock = self._locks.setdefault(attempt.name, asyncio.Lock())
        async with lock:
            self._forget_old()
            earlier = self._repeated_by(attempt)
            found = next((each for each in reversed(earlier) if each.can_be_joined), None)
            writing = found or await begin(earlier[-1].parents if earlier else [])
            if found is None:
                writing.digest = attempt.digest
                self._known.setdefault(attempt.name, []).append(writing)
            writing.readers.add(reader)
            writing.lingers_s = attempt.lingers_s
        return writing, found is not None

    def _repeated_by(self, attempt: Attempt) -> list[Writing]:
        """What an attempt may repeat, oldest first. Raises `Conflict` on a key that was used for something else."""
        known = self._known.get(attempt.name, [])
        if attempt.key is not None:
            if any(each.digest != attempt.digest for each in known):
                raise Conflict(idempotency.USED)
            return known
        # Without a key, those of another request with the same words are told apart by their readers being there.
        return [each for each in known if not (each.is_awaited or each.is_taken)] if attempt.tried else []

    def _forget_old(self) -> None:
        now = asyncio.get_running_loop().time()
        for name in list(self._known):
            kept = [each for each in self._known[name] if each.readers or each.is_kept_at(now)]
            self._known[name] = kept
            if not kept:
                del self._known[name]


def recorded(store: Database, attempt: Attempt, record: Callable[[], list[str]]) -> tuple[list[str], bool]:
    """The messages to reply to, recorded once however often a request with a key is sent, and whether they were before.

    Raises what `record` and `idempotency.once` raise.
    """
    if attempt.key is None:
        with store.transaction():
            return record(), False
    answer, repeated = idempotency.once(store, attempt.user, attempt.key, attempt.asked, lambda: {"parents": record()})
    parents: list[str] | None = answer.get("parents")
    if parents is None:  # of somebody who was forgotten meanwhile
        raise Refused("what was asked with this Idempotency-Key is no longer kept; choose a new one")
    return parents, repeated


def stop(replies: Sequence[Reply]) -> None:
    """Stop the replies that are still being written."""
    for each in replies:
        if isinstance(each, ReplyStream) and not each.over:
            each.stop()


def grow(replies: Sequence[Reply]) -> None:
    """Wait until one of the replies has grown or ended. Raises `EngineError`."""
    before = state(replies)
    while state(replies) == before and not all(each.over for each in replies):
        going = [each for each in replies if isinstance(each, ReplyStream) and not each.over]
        for at, each in enumerate(going):
            # The engine writes them in step: when the first has grown, so have the others.
            each.advance(None if len(going) == 1 else LOOK_EVERY_S if at == 0 else 0)


def state(replies: Sequence[Reply]) -> list[tuple[int, bool]]:
    """The number of tokens of each reply, and whether it is over."""
    return [(len(each.tokens), each.over) for each in replies]


def end(replies: Sequence[Reply]) -> None:
    """Stop and record the replies that are still being written."""
    for each in replies:
        with suppress(EngineError):  # reported already, or nobody is left to report to
            if isinstance(each, ReplyStream) and not each.over:
                each.finish_now()
