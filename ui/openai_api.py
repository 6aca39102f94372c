"""OpenAI's chat endpoint, so that any client of theirs can talk to Nightschool and rate what it gets.

A completion's id is a reply's id. A client that goes away stops its reply, which is kept as far as it got. What
would change the meaning of a request and cannot be done is refused, not ignored.
Left out on purpose: reading the request (`openai_request`), and shaping the answer (`openai_answer`).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from anyio import CancelScope, to_thread
from fastapi import APIRouter
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from assistant.chat import SERVING, Assistant, Replying, answer
from assistant.generation import EngineError
from feedback import adapters
from feedback.people import User
from feedback.store import NotFound, Refused, Store, Unavailable
from ui.api import BASE, record
from ui.asked import TheAssistant, TheStore
from ui.auth import Person
from ui.openai_answer import DONE, Answer
from ui.openai_request import Completion
from ui.refusals import Unknown

NIGHTSCHOOL = "nightschool"  # as a model's name: what serves now

T = TypeVar("T")

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])


@router.get("/models")
def models(user: Person, store: TheStore) -> dict[str, Any]:
    """What may be named as a model: `nightschool` (what serves now), `base`, and every adapter."""
    names = [NIGHTSCHOOL, BASE, *(each.id for each in adapters.adapters(store) if each.verdict != "refused")]
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": NIGHTSCHOOL} for name in names]}


@router.get("/models/{model}")
def model(model: str, user: Person, store: TheStore) -> dict[str, Any]:
    """One of them."""
    adapter_of(store, model)
    return {"id": model, "object": "model", "owned_by": NIGHTSCHOOL}


@router.post("/chat/completions", response_model=None)
async def complete(body: Completion, request: Request, user: Person, assistant: TheAssistant) -> Response:
    """A reply to a conversation; its id can be voted on, corrected and compared under /api."""
    threads = request.app.state.generating

    async def in_thread(work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=threads)

    replying = await in_thread(lambda: begin(assistant, user, body))
    texts = iter(replying)
    shape = Answer(assistant, replying, with_logprobs=body.logprobs, with_usage=body.wants_usage)
    if body.stream:
        first = await while_listening(request, replying, in_thread(lambda: next(texts)))
        chunks = stream(shape, texts, first, in_thread)
        closing = BackgroundTask(chunks.aclose)  # also runs when the client has gone
        return StreamingResponse(chunks, media_type="text/event-stream", background=closing)
    await while_listening(request, replying, in_thread(lambda: [*texts]))
    require_whole(replying)
    return JSONResponse(shape.whole())


def begin(assistant: Assistant, user: User, body: Completion) -> Replying:
    """Record what was sent and begin the reply. Raises `Refused`; nothing is recorded then."""
    body.require_supported()
    adapter = adapter_of(assistant.store, body.model)
    if adapter != SERVING:
        assistant.roster.get(adapter)
    sampling, messages = body.sampling(), body.conversation()
    parent = record(assistant, user, "api", messages)
    return answer(assistant, user, parent, sampling, adapter)


def adapter_of(store: Store, model: str) -> str | None:
    """The adapter that a model's name stands for. Raises `Unknown`."""
    if model in (NIGHTSCHOOL, BASE):
        return SERVING if model == NIGHTSCHOOL else None
    try:
        return adapters.adapter(store, model).id
    except NotFound:
        raise Unknown(f"there is no model {model!r}; GET /v1/models lists those there are") from None


async def while_listening(request: Request, replying: Replying, work: Any) -> Any:
    """Do the work; stop the reply if its client goes away meanwhile."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        replying.stop()

    watching = asyncio.create_task(watch())
    try:
        return await work
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def stream(
    shape: Answer, texts: Iterator[str], first: str, in_thread: Callable[[Callable[[], Any]], Any]
) -> AsyncGenerator[str, None]:
    """A reply as server-sent events, from its first text on; closed early, it stops and records the reply."""
    try:
        yield shape.opening()
        text: str | None = first
        while text is not None:
            if delta := shape.grown(text):
                yield delta
            text = await in_thread(lambda: next(texts, None))
        require_whole(shape.replying)
        for event in shape.closing():
            yield event
        yield DONE
    except (Refused, EngineError) as error:  # the status is sent already
        yield shape.failed(str(error))
    finally:
        shape.replying.stop()
        with CancelScope(shield=True):
            await in_thread(texts.close)  # type: ignore[attr-defined]  # it is a generator


def require_whole(replying: Replying) -> None:
    """Raises `Unavailable` for a reply that was cut short by us, not by its client."""
    if replying.finish == "cancelled":
        raise Unavailable("the reply was cut short, for the assistant is shutting down")
