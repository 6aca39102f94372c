"""The OpenAI-compatible chat endpoint, through which any client of OpenAI's API can chat and rate the replies.

A completion's id is a reply's id. When a client disconnects, its replies stop at once and are kept as far as they got.
An unsupported parameter that would change the meaning of a request is refused, not ignored.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from anyio import CancelScope
from fastapi import APIRouter
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from assistant.chat.assistant import Assistant
from assistant.chat.chat import SERVING, start_reply
from assistant.chat.reply import ReplyStream
from assistant.engine.request import EngineError
from assistant.engine.sampling.params import Sampling
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import NotFound, Refused
from feedback.records import adapters
from feedback.records.adapters import BASE
from ui.accounts.auth import Person
from ui.accounts.dependencies import TheAssistant, TheStore
from ui.api.api import record, when_gone
from ui.api.generating import Share
from ui.api.openai.request import Completion
from ui.api.openai.response import Answer
from ui.refusals import Unknown

NIGHTSCHOOL = "nightschool"  # as a model's name: what serves now
LOOK_EVERY_S = 0.05  # how often to look at the other choices while waiting for one

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]

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


def shown(model: str, made_at: str | None = None) -> dict[str, Any]:
    """A model in OpenAI's format."""
    created = int(datetime.fromisoformat(made_at).timestamp()) if made_at else 0
    return {"id": model, "object": "model", "created": created, "owned_by": NIGHTSCHOOL}


@router.post("/chat/completions", response_model=None)
async def complete(body: Completion, request: Request, user: Person, share: Share, assistant: TheAssistant) -> Response:
    """Replies to a conversation; their ids can be voted on, corrected and compared under /api."""
    generating = request.app.state.generating

    async def in_thread(work: Callable[[], Any]) -> Any:
        return await generating.go_on(share, work)

    replies = await generating.begin(share, lambda: begin(assistant, user, body))
    watching = asyncio.create_task(when_gone(request, lambda: stop(replies)))

    async def finish() -> None:
        """Stop and record every reply, also if the client has left; a second call does nothing."""
        watching.cancel()
        stop(replies)
        with CancelScope(shield=True):
            await in_thread(lambda: end(replies))

    answer = Answer(assistant, replies, bool(body.logprobs), body.wants_usage)
    try:
        await in_thread(lambda: grow(replies))
        if body.stream:  # the status is sent from here on, so later errors go into the stream
            chunks = stream(answer, replies, in_thread, finish)
            return StreamingResponse(chunks, media_type="text/event-stream", background=BackgroundTask(finish))
        while not all(each.over for each in replies):
            await in_thread(lambda: grow(replies))
        whole = answer.whole()
    except BaseException:
        await finish()
        raise
    await finish()
    return JSONResponse(whole)


# One person's requests take their places one after another: at once, each might get only some of those it needs.
BEGINNING = [threading.Lock() for _ in range(64)]


def begin(assistant: Assistant, user: User, body: Completion) -> list[ReplyStream]:
    """Record the conversation and begin its replies. Raises `Refused` on a bad request, before anything is recorded."""
    body.require_supported()
    adapter = adapter_of(assistant.store, body.model)
    if adapter != SERVING:
        assistant.adapters.get(adapter)
    samplings, messages = body.samplings(), body.conversation()
    require_tokens(assistant, samplings[0])
    replies = list[ReplyStream]()
    with BEGINNING[user.id % len(BEGINNING)]:
        parent, prompt_ids = record(assistant, user, "api", messages, samplings[0], len(samplings))
        try:
            for sampling in samplings:
                replies.append(start_reply(assistant, user, parent, sampling, adapter, prompt_ids))
        except Refused:
            stop(replies)
            raise
    return replies


def adapter_of(store: Database, model: str) -> str | None:
    """The adapter that a model's name stands for. Raises `Unknown`."""
    if model in (NIGHTSCHOOL, BASE):
        return SERVING if model == NIGHTSCHOOL else None
    try:
        return adapters.adapter(store, model).id
    except NotFound:
        raise Unknown(f"there is no model {model!r}; GET /v1/models lists those there are") from None


def require_tokens(assistant: Assistant, sampling: Sampling) -> None:
    """Raises `Refused` when a bias names a token that the model does not have."""
    count = len(assistant.tokenizer)
    for token, _ in sampling.logit_bias:
        if token >= count:
            raise Refused(f"logit_bias names token {token}, and the model has {count:,}, from 0")


def stop(replies: Sequence[ReplyStream]) -> None:
    """Stop the replies that are still being written."""
    for each in replies:
        if not each.over:
            each.stop()


def grow(replies: Sequence[ReplyStream]) -> None:
    """Wait until one of the replies has grown or ended. Raises `EngineError`."""
    before = state(replies)
    while state(replies) == before and not all(each.over for each in replies):
        going = [each for each in replies if not each.over]
        for at, each in enumerate(going):
            # The engine writes them in step: when the first has grown, so have the others.
            each.advance(None if len(going) == 1 else LOOK_EVERY_S if at == 0 else 0)


def state(replies: Sequence[ReplyStream]) -> list[tuple[int, bool]]:
    """The number of tokens of each reply, and whether it is over."""
    return [(len(each.tokens), each.over) for each in replies]


def end(replies: Sequence[ReplyStream]) -> None:
    """Stop and record the replies that are still being written."""
    for each in replies:
        with suppress(EngineError):  # reported already, or nobody is left to report to
            if not each.over:
                each.finish_now()


async def stream(
    answer: Answer, replies: Sequence[ReplyStream], in_thread: InThread, finish: Callable[[], Awaitable[None]]
) -> AsyncGenerator[str, None]:
    """The replies as server-sent events; closed early, it stops and records them."""
    try:
        for event in answer.opening():
            yield event
        while True:
            over = all(each.over for each in replies)
            for event in answer.news():
                yield event
            if over:
                break
            await in_thread(lambda: grow(replies))
        for event in answer.closing():
            yield event
    except (Refused, EngineError) as error:
        yield answer.failed(str(error))
    finally:
        await finish()
