"""The OpenAI-compatible endpoints, through which any client of OpenAI's API can chat and rate the replies.

A completion's id is a reply's id. When a client disconnects, its replies stop at once, or when it may ask again after a
while (`ui.api.openai.attempts`), and are kept as far as they got; or they are written to their end, if it asked for a
stream that it can come back to (`ui.api.turns`).
An unsupported parameter that would change the meaning of a request is refused, not ignored.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from anyio import CancelScope
from fastapi import APIRouter
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from assistant.chat.assistant import Assistant
from assistant.chat.chat import SERVING, start_reply
from assistant.engine.request import EngineError
from assistant.engine.sampling.params import Sampling
from assistant.models.chat_template import Prompt
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import NotFound, Refused, TooLong
from feedback.messages import Message
from feedback.records import adapters
from feedback.records.adapters import BASE
from ui.accounts.auth import Person
from ui.accounts.dependencies import REPLAYED, TheAssistant, TheStore
from ui.api import keep_alive
from ui.api.api import readable, when_gone
from ui.api.generating import Share
from ui.api.openai.attempts import Attempt, KeptReply, Writing, attempt_of, kept_replies, recorded, stop
from ui.api.openai.request import ChatAsked, TextAsked
from ui.api.openai.response import CHAT, DONE, TEXT, Answer, Reply, Shape, failed
from ui.openai_errors import ContextTooLong, Unknown
from ui.refusals import FAILED, status_of

NIGHTSCHOOL = "nightschool"  # as a model's name: what serves now
CUT = "X-Truncated-Messages"  # the number of messages left out, where that was asked for

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])


@router.get("/models")
def models(user: Person, store: TheStore) -> dict[str, Any]:
    """What may be named as a model: `nightschool` (what serves now), `base`, and every adapter."""
    made = {each.id: each.created_at for each in adapters.adapters(store) if each.verdict != "refused"}
    listed = [shown(NIGHTSCHOOL), shown(BASE), *(shown(name, at) for name, at in made.items())]
    return {"object": "list", "data": listed}


@router.get("/models/{model}")
def model(model: str, user: Person, store: TheStore) -> dict[str, Any]:
    """One of them."""
    adapter = adapter_of(store, model)
    if adapter in (SERVING, None):
        return shown(model)
    return shown(model, adapters.adapter(store, model).created_at)


router.add_api_route("/models", models, methods=["HEAD"], include_in_schema=False)
router.add_api_route("/models/{model}", model, methods=["HEAD"], include_in_schema=False)


def shown(model: str, made_at: str | None = None) -> dict[str, Any]:
    """A model in OpenAI's format."""
    created = int(datetime.fromisoformat(made_at).timestamp()) if made_at else 0
    return {"id": model, "object": "model", "created": created, "owned_by": NIGHTSCHOOL}


@router.post("/chat/completions", response_model=None)
async def complete(body: ChatAsked, request: Request, user: Person, share: Share, assistant: TheAssistant) -> Response:
    """Replies to a conversation; their ids can be voted on, corrected and compared under /api."""
    return await answered(Asking(body, CHAT, request, user, share, assistant))


@router.post("/completions", response_model=None)
async def complete_text(
    body: TextAsked, request: Request, user: Person, share: Share, assistant: TheAssistant
) -> Response:
    """Replies to one text or several, each as if it had been said in a chat of its own."""
    return await answered(Asking(body, TEXT, request, user, share, assistant))


@dataclass(frozen=True)
class Asking:
    """A request for completions, and who sent it."""

    body: ChatAsked | TextAsked
    shape: Shape
    request: Request
    user: User
    share: int | None
    assistant: Assistant

    async def begin(self, attempt: Attempt, parents: list[str]) -> Writing:
        """Begin its replies, in the conversations of an earlier attempt if there are any. Raises as `begin` does."""
        generating = self.request.app.state.generating

        async def in_thread(work: Callable[[], Any]) -> Any:
            return await generating.go_on(self.share, work)

        work = partial(begin, self.assistant, self.body, attempt, parents)
        parents, replies = await generating.begin(self.share, work)
        return Writing(parents, replies, in_thread, attempt.lingers_s)


async def answered(asking: Asking) -> Response:
    """The response to a request for completions, whole or as a stream."""
    body, request = asking.body, asking.request
    act = f"{request.method} {request.url.path}"
    attempt = attempt_of(request.headers, asking.user, act, body)
    gone = asyncio.create_task(when_gone(request, lambda: None))
    try:
        writing, is_known = await request.app.state.attempts.join(
            attempt, gone, lambda parents: asking.begin(attempt, parents)
        )
    except BaseException:
        gone.cancel()
        raise
    has_left = False

    async def leave() -> None:
        """Let the reader go; a second call does nothing."""
        nonlocal has_left
        if not has_left:
            has_left = True
            gone.cancel()
            with CancelScope(shield=True):
                await writing.leave(gone)

    answer = Answer(
        asking.assistant, writing.replies, asking.shape, body.wants_logprobs, body.wants_usage, body.may_be_cut
    )
    is_repeated = is_known or isinstance(writing.replies[0], KeptReply)
    headers = {REPLAYED: "true"} if is_repeated else {}
    if body.may_be_cut:
        headers[CUT] = str(writing.replies[0].left_out)
    if body.stream:  # the status is sent now, so later errors go into the stream
        chunks = stream(answer, writing, gone, leave)
        return StreamingResponse(chunks, 200, headers, "text/event-stream", BackgroundTask(leave))
    try:
        return await whole(answer, writing, gone, headers)
    finally:
        await leave()


async def whole(answer: Answer, writing: Writing, gone: "asyncio.Task[None]", headers: dict[str, str]) -> Response:
    """The replies as one object, once they are written. Raises why they could not be."""
    while not (writing.is_over or gone.done()):
        await either(writing.more(), gone)
    if writing.error is not None:
        raise writing.error
    if gone.done():
        return Response(status_code=499)  # to nobody
    writing.is_taken = True
    return JSONResponse(answer.whole(), headers=headers)


async def stream(
    answer: Answer, writing: Writing, gone: "asyncio.Task[None]", leave: Callable[[], Awaitable[None]]
) -> AsyncGenerator[str, None]:
    """The replies as server-sent events, with a comment now and then while there is nothing to tell."""
    loop = asyncio.get_running_loop()
    try:
        for event in answer.opening():
            yield event
        told_at = loop.time()
        while True:
            is_over = writing.is_over
            for event in answer.news() if writing.error is None else ():
                yield event
                told_at = loop.time()
            if is_over:
                break
            if loop.time() - told_at >= keep_alive.QUIET_S:
                yield keep_alive.COMMENT
                told_at = loop.time()
            await either(writing.more(keep_alive.QUIET_S), gone)
            if gone.done():
                return
        if writing.error is not None:
            raise writing.error
        for event in answer.closing():
            yield event
        writing.is_taken = not gone.done()
    except (Refused, EngineError) as error:
        yield failed(status_of(error), error)
        yield DONE
    except Exception:
        yield failed(500, Exception(FAILED))
        yield DONE
        raise
    finally:
        await leave()


async def either(one: Awaitable[None], other: "asyncio.Task[None]") -> None:
    """Wait for one of the two; the first may be given up."""
    first = asyncio.ensure_future(one)
    try:
        await asyncio.wait({first, other}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        first.cancel()


# One person's requests take their places one after another: at once, each might get only some of those it needs.
BEGINNING = [threading.Lock() for _ in range(64)]


def begin(
    assistant: Assistant, body: ChatAsked | TextAsked, attempt: Attempt, parents: list[str]
) -> tuple[list[str], list[Reply]]:
    """Record the conversations, if no earlier attempt has, and begin their replies; the messages that these answer.

    With a key, replies that an earlier attempt got are not written again. Raises `Refused` on a bad request, before
    anything is recorded.
    """
    store, user = assistant.store, attempt.user
    body.require_supported()
    adapter = adapter_of(store, body.model)
    if adapter != SERVING:
        assistant.adapters.get(adapter)
    samplings, messages = body.samplings(), body.conversations()
    require_tokens(assistant, samplings[0])
    with BEGINNING[user.id % len(BEGINNING)], about(body.content_param):
        prompts = read(assistant, user, body, messages, samplings)
        if not parents:
            parents, repeated = recorded(store, attempt, lambda: record(store, user, messages))
            if repeated:
                pairs = zip(parents, prompts, strict=True)
                kept = [kept_replies(assistant, parent, prompt, len(samplings)) for parent, prompt in pairs]
                if all(kept):
                    return parents, [reply for each in kept for reply in each]
        replies = list[Reply]()
        try:
            for parent, prompt in zip(parents, prompts, strict=True):
                for sampling in samplings:
                    replies.append(start_reply(assistant, user, parent, sampling, adapter, prompt))
        except Refused:
            stop(replies)
            raise
    return parents, replies


def read(
    assistant: Assistant,
    user: User,
    body: ChatAsked | TextAsked,
    messages: list[list[Message]],
    samplings: list[Sampling],
) -> list[Prompt]:
    """The conversations as the model reads them. Raises `ContextTooLong`, and as `readable` does."""
    count = len(messages) * len(samplings)
    try:
        return [readable(assistant, user, each, samplings[0], count, body.may_be_cut) for each in messages]
    except TooLong as error:
        facts = (assistant.engine.window, assistant.longest_prompt, body.content_param, body.may_be_cut)
        raise ContextTooLong(error, *facts) from error


@contextmanager
def about(param: str) -> Iterator[None]:
    """Within it, a `Refused` that names no parameter is about this one."""
    try:
        yield
    except Refused as error:
        if type(error) is Refused:  # not `Busy` and the like
            error.param = error.param or param
        raise


def record(store: Database, user: User, messages: list[list[Message]]) -> list[str]:
    """Record conversations that a program sent; the ids of their last messages. Raises `Refused`."""
    return [conversations.record_messages(store, user, "api", each) for each in messages]


def adapter_of(store: Database, model: str) -> str | None:
    """The adapter that a model's name stands for. Raises `Unknown`."""
    if model in (NIGHTSCHOOL, BASE):
        return SERVING if model == NIGHTSCHOOL else None
    try:
        return adapters.adapter(store, model).id
    except NotFound:
        raise Unknown(f"there is no model {model!r}; GET /v1/models lists those there are", "model") from None


def require_tokens(assistant: Assistant, sampling: Sampling) -> None:
    """Raises `Refused` when a bias names a token that the model does not have."""
    count = len(assistant.tokenizer)
    for token, _ in sampling.logit_bias:
        if token >= count:
            raise Refused(f"logit_bias names token {token}, and the model has {count:,}, from 0", "logit_bias")
