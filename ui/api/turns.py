"""A reply's text as events that may be asked for again, from where a reader left off.

A reader whose connection broke, or whose server was started again, has every character once: each event says which part
of the text it carries, and a request says how much its reader has. While a reply is being written it is told as it
grows; afterwards the rest is one event.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from assistant.chat.writing import BeingWritten
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import NotFound, Refused
from ui.accounts.auth import Person
from ui.accounts.dependencies import REFUSALS, TheAssistant
from ui.api import keep_alive

LOOK_EVERY_S = 0.05

router = APIRouter(prefix="/api", responses=REFUSALS, tags=["you"])


@router.get("/turns/{reply}/events", response_class=StreamingResponse)
async def events(
    reply: str,
    user: Person,
    assistant: TheAssistant,
    start: Annotated[int, Query(alias="from", ge=0, description="How many characters of the reply you have.")] = 0,
    last: Annotated[
        int | None, Header(alias="Last-Event-ID", ge=0, description="The same, as EventSource sends it.")
    ] = None,
) -> Response:
    """One of your replies from a number on, as server-sent events; its id is that of the completion or the choice.

    `text` events carry {"from", "until", "text"}, counted in characters, and `until` as their id. At last comes `end`,
    with {"until", "finish"}: stop, length or cancelled; or `error`, with a sentence.
    """
    start = start if last is None else last
    writing = assistant.writing.find(reply)
    if writing is not None:
        await to_thread.run_sync(require_own, assistant.store, user, writing)
        told = growing(writing, start)
    else:
        text, finish = await to_thread.run_sync(kept, assistant.store, user, reply)
        if start > len(text):
            raise Refused(f"this reply has {len(text):,} characters, so there is nothing from {start:,} on")
        told = whole(text, finish, start)
    return StreamingResponse(told, media_type="text/event-stream")


def require_own(store: Database, user: User, writing: BeingWritten) -> None:
    """Raises `NotFound` for a reply that is being written in another person's conversation."""
    try:
        conversations.own_node(store, user, writing.parent)
    except NotFound:
        raise NotFound(f"there is no reply {writing.id!r}") from None


def kept(store: Database, user: User, reply: str) -> tuple[str, str]:
    """The text of a recorded reply and how it ended. Raises `NotFound`, also if it is another person's."""
    found = conversations.own_reply(store, user, reply)
    try:
        return found.content, conversations.provenance(store, reply).finish or "stop"
    except NotFound:  # imported, or written by a person
        return found.content, "stop"


async def growing(writing: BeingWritten, sent: int) -> AsyncIterator[str]:
    """The events of a reply that is being written, until it is over."""
    clock = asyncio.get_running_loop().time
    quiet_since = clock()
    while True:
        is_over, text = writing.over, writing.text
        if len(text) > sent:
            yield part(text, sent)
            sent, quiet_since = len(text), clock()
        if is_over:
            break
        if clock() - quiet_since > keep_alive.QUIET_S:
            yield keep_alive.COMMENT
            quiet_since = clock()
        await asyncio.sleep(LOOK_EVERY_S)
    yield event("error", {"error": writing.failure}) if writing.failure else end(text, writing.finish or "cancelled")


async def whole(text: str, finish: str, sent: int) -> AsyncIterator[str]:
    """The events of a reply that is over."""
    if len(text) > sent:
        yield part(text, sent)
    yield end(text, finish)


def part(text: str, sent: int) -> str:
    """An event with what comes after the first `sent` characters."""
    return event("text", {"from": sent, "until": len(text), "text": text[sent:]}, len(text))


def end(text: str, finish: str) -> str:
    """The last event of a whole reply."""
    return event("end", {"until": len(text), "finish": finish}, len(text))


def event(kind: str, data: dict[str, Any], number: int | None = None) -> str:
    """One server-sent event."""
    told = "" if number is None else f"id: {number}\n"
    return f"{told}event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
