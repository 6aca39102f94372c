"""One account that asks for all it can get, through the whole application: what it is refused, and what others get."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from assistant.engine.engine import MOST_WAITING
from assistant.engine.request import Busy
from assistant.engine.scheduling.scheduler import MOST_ROWS
from feedback.accounts import users
from feedback.database.database import Database
from tests.helpers.over_http import GREEDY, HELLO, assistant, key, loaded, rows, token_of, web
from ui.api.api import MOST_CHARACTERS, MOST_MESSAGES
from ui.api.generating import Generating
from ui.app import create_app

__all__ = ["assistant", "loaded", "web"]  # fixtures
PATH = "/v1/chat/completions"
CUT = {"truncation": "auto"}  # the oldest messages may be left out
FOREVER = {"messages": HELLO, "max_tokens": 1900, "logit_bias": {"0": -100, "2": -100}}


@pytest.fixture
def url(assistant: Assistant) -> Iterator[str]:
    """The application behind a real socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(assistant), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)


async def several(url: str, path: str, body: dict[str, Any], count: int, **headers: str) -> list[asyncio.Task[Any]]:
    """So many requests under way at once."""
    client = httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None))
    return [asyncio.create_task(client.post(path, json=body, headers=headers)) for _ in range(count)]


async def over(tasks: list[asyncio.Task[Any]]) -> None:
    """Go away from what is still under way."""
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until(holds: Any, within_s: float = 8.0) -> bool:
    start = time.monotonic()
    while not holds() and time.monotonic() - start < within_s:
        await asyncio.sleep(0.02)
    return bool(holds())


def test_beside_twenty_requests_of_eight_another_accounts_reply_is_written_and_the_greedy_one_is_told(
    url: str, assistant: Assistant, store: Database
) -> None:
    chad, cora = token_of(store, "chad", "chatter"), token_of(store, "cora", "chatter")

    async def run() -> tuple[httpx.Response, list[httpx.Response]]:
        held = await several(url, PATH, FOREVER | {"n": 8}, 20, **chad)
        assert await until(lambda: sum(each.done() for each in held) >= 13 and assistant.engine.active >= 16)
        async with httpx.AsyncClient(base_url=url, timeout=8) as client:
            answer = await client.post(PATH, json=GREEDY | {"max_tokens": 4}, headers=cora)
        refused = [each.result() for each in held if each.done()]
        assert len(refused) < 20  # its own are still being written
        await over(held)
        assert await until(lambda: (assistant.engine.active, assistant.engine.waiting) == (0, 0))
        return answer, refused

    answer, refused = asyncio.run(run())
    assert answer.status_code == 200, answer.text
    assert {each.status_code for each in refused} == {429}
    assert all(int(each.headers["Retry-After"]) > 0 for each in refused)
    assert all("of yours wait already" in each.json()["error"]["message"] for each in refused)


@pytest.mark.parametrize("stream", [False, True])
def test_rows_of_a_client_that_is_gone_are_free_soon_after(
    url: str, assistant: Assistant, store: Database, stream: bool
) -> None:
    async def run() -> None:
        held = await several(url, PATH, FOREVER | {"n": 2, "stream": stream}, 2)
        assert await until(lambda: assistant.engine.active == 4)
        await over(held)
        assert await until(lambda: assistant.engine.active == 0, within_s=3)
        assert await until(lambda: store.rows("SELECT 1 FROM replies"))  # written down a moment later

    asyncio.run(run())
    assert {each["finish"] for each in store.rows("SELECT finish FROM replies")} == {"cancelled"}


def test_a_pair_that_nobody_waits_for_any_more_is_not_written_to_its_end(url: str, assistant: Assistant) -> None:
    async def run() -> None:
        held = await several(url, "/api/pairs", {"messages": HELLO, "max_tokens": 1900, "temperature": 2.0}, 1, **key())
        assert await until(lambda: assistant.engine.active == 2)
        written = assistant.engine.tokens_written
        await over(held)
        assert await until(lambda: assistant.engine.active == 0, within_s=3)
        assert assistant.engine.tokens_written - written < 1500

    asyncio.run(run())


def test_one_account_cannot_take_every_thread_that_waits_for_tokens() -> None:
    async def run() -> None:
        places, over = MOST_ROWS + MOST_WAITING, threading.Event()
        generating = Generating(places)
        held = [asyncio.create_task(generating.begin(1, over.wait)) for _ in range(places)]
        await asyncio.sleep(0.2)
        refused = [each for each in held if each.done()]
        assert len(refused) == places // 2
        assert all(isinstance(each.exception(), Busy) for each in refused)
        assert await asyncio.wait_for(generating.begin(2, lambda: "done"), timeout=5) == "done"
        over.set()
        await asyncio.gather(*held, return_exceptions=True)
        assert await generating.begin(1, lambda: "again") == "again"

    asyncio.run(run())


def test_a_request_has_so_many_messages_and_characters_at_most(web: TestClient, store: Database) -> None:
    users.local_owner(store)
    before = rows(store)
    many = [{"role": ("user", "assistant")[at % 2], "content": "x"} for at in range(MOST_MESSAGES + 1)]
    large = [{"role": "user", "content": "word " * 120}] * (MOST_CHARACTERS // 600 + 1)
    for messages, sentence in (
        (many, "messages has at most 2,000 entries, this one has more"),
        (large, "a conversation has at most 1,000,000 characters, this one has 1,000,200"),
    ):
        for path, error, more in ((PATH, ("error", "message"), CUT), ("/api/pairs", ("error",), {})):
            answer = web.post(path, json={"messages": messages, "max_tokens": 4} | more, headers=key())
            said = answer.json()
            for name in error:
                said = said[name]
            assert (answer.status_code, said) == (400, sentence)
    assert rows(store) == before


def test_the_most_messages_that_are_taken_are_answered(web: TestClient) -> None:
    most = [{"role": ("assistant", "user")[at % 2], "content": "one word"} for at in range(MOST_MESSAGES)]
    answer = web.post(PATH, json={"messages": most, "max_tokens": 2} | CUT)
    assert answer.status_code == 200, answer.text


def test_a_reply_longer_than_the_window_is_refused_and_one_as_long_is_not(
    web: TestClient, assistant: Assistant, store: Database
) -> None:
    users.local_owner(store)
    before, window = rows(store), assistant.engine.window
    for asked in (10**9, window + 1):
        sentence = f"max_tokens is at most {window:,}, which is all that the model takes"
        for name in ("max_tokens", "max_completion_tokens"):
            answer = web.post(PATH, json={"messages": HELLO, name: asked})
            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith(sentence)
        answer = web.post("/api/pairs", json={"messages": HELLO, "max_tokens": asked}, headers=key())
        assert (answer.status_code, answer.json()["error"].startswith(sentence)) == (400, True)
    assert rows(store) == before
    assert web.post(PATH, json=GREEDY | {"max_tokens": window, "stop": ["a", "e", "i", " "]}).status_code == 200
