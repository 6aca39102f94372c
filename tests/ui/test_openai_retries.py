"""A client that asks again: one conversation, the same replies, whether they are written already or still being."""

import asyncio
import time
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from tests.helpers.over_http import GREEDY, HELLO, answering, assistant, events, key, loaded, rows, web, with_store
from ui.api.openai import attempts, routes
from ui.app import create_app

__all__ = ["assistant", "loaded", "web"]  # fixtures
PATH = "/v1/chat/completions"
NO_END = {"0": -100, "2": -100}
LONG = {"messages": HELLO, "max_tokens": 200, "seed": 5, "logit_bias": NO_END}
DRAWN = {"messages": HELLO, "max_tokens": 12, "temperature": 1.5, "logprobs": True, "top_logprobs": 2}


def text_of(told: list[Any]) -> str:
    """The text of a stream's events."""
    return "".join(each["choices"][0]["delta"].get("content", "") for each in told[:-1])


@pytest.mark.parametrize("n", [1, 2])
def test_the_same_key_gets_the_same_replies_and_leaves_one_conversation(
    web: TestClient, store: Database, n: int
) -> None:
    asked, named = DRAWN | {"n": n}, key()
    first = web.post(PATH, json=asked, headers=named)
    kept = rows(store)
    again = web.post(PATH, json=asked, headers=named)
    assert (first.status_code, again.json() | {"created": 0}) == (200, first.json() | {"created": 0})
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert rows(store) == kept
    other = web.post(PATH, json=asked | {"n": 3}, headers=named)
    assert (other.status_code, other.headers["x-should-retry"]) == (409, "false")
    assert other.json()["error"]["message"].startswith("this Idempotency-Key was used for a different request")
    for bad in ("", "x" * 201):
        assert web.post(PATH, json=asked, headers={"Idempotency-Key": bad}).status_code == 400
    assert rows(store) == kept
    assert web.post(PATH, json=asked, headers=key()).json()["id"] != first.json()["id"]


def test_a_stream_under_a_key_is_told_again(web: TestClient, store: Database) -> None:
    asked, named = DRAWN | {"stream": True, "stream_options": {"include_usage": True}}, key()
    told = [events(web.post(PATH, json=asked, headers=named)) for _ in range(2)]
    assert text_of(told[0][:-1]) == text_of(told[1][:-1])
    assert told[0][0]["id"] == told[1][0]["id"]
    assert told[0][-2]["usage"] == told[1][-2]["usage"]
    assert rows(store)["conversations"] == 1


def test_a_key_is_remembered_by_the_next_server(loaded: Assistant, store: Database) -> None:
    answers, named = [], key()
    for _ in range(2):
        with TestClient(create_app(with_store(loaded, store)), base_url="http://127.0.0.1") as web:
            answers.append(web.post(PATH, json=GREEDY | {"logprobs": True}, headers=named).json())
    first, again = answers
    for each in answers:
        each["created"] = 0
        for token in each["choices"][0]["logprobs"]["content"]:
            token["logprob"] = round(token["logprob"], 4)  # the ledger keeps single precision
    assert first == again
    assert rows(store)["conversations"] == 1


def test_a_retry_joins_what_is_still_being_written(assistant: Assistant, store: Database, owner: User) -> None:
    asked, named = LONG | {"temperature": 1.0}, key()

    async def both(url: str) -> tuple[Any, Any, Any]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(PATH, json=asked, headers=named, timeout=0.1)
            first, second = await asyncio.gather(
                client.post(PATH, json=asked, headers=named), client.post(PATH, json=asked, headers=named)
            )
            return first, second, await client.post(PATH, json=asked, headers=named)

    with answering(create_app(assistant)) as url:
        answers = asyncio.run(both(url))
    told = [each.json()["choices"][0]["message"]["content"] for each in answers]
    assert len(set(told)) == 1
    assert {each.json()["id"] for each in answers} == {store.rows("SELECT message FROM replies")[0]["message"]}
    assert (rows(store)["conversations"], rows(store)["replies"]) == (1, 1)


def test_streams_under_one_key_tell_the_same_while_it_is_written(
    assistant: Assistant, store: Database, owner: User
) -> None:
    asked, named = LONG | {"stream": True}, key()

    async def read(client: httpx.AsyncClient, wait_s: float) -> list[Any]:
        await asyncio.sleep(wait_s)
        return events(await client.post(PATH, json=asked, headers=named))

    async def three(url: str) -> list[list[Any]]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(read(client, each) for each in (0.0, 0.05, 0.1)))

    with answering(create_app(assistant)) as url:
        told = asyncio.run(three(url))
    assert len({text_of(each) for each in told}) == 1
    assert [each[-1] for each in told] == ["[DONE]"] * 3
    assert (rows(store)["conversations"], rows(store)["replies"]) == (1, 1)
    assert text_of(told[0]) == conversations.node(store, told[0][0]["id"]).content


def test_clients_that_count_their_retries_need_no_key(assistant: Assistant, store: Database, owner: User) -> None:
    async def three(url: str) -> Any:
        async with httpx.AsyncClient(base_url=url) as client:
            for tried in range(2):
                with pytest.raises(httpx.ReadTimeout):
                    await client.post(PATH, json=LONG, headers={attempts.RETRIES: str(tried)}, timeout=0.1)
                await asyncio.sleep(0.05)
            return await client.post(PATH, json=LONG, headers={attempts.RETRIES: "2"}, timeout=60)

    with answering(create_app(assistant)) as url:
        answer = asyncio.run(three(url))
        assert (answer.status_code, answer.headers["idempotent-replayed"]) == (200, "true")
        assert (rows(store)["conversations"], rows(store)["replies"]) == (1, 1)
        # The same words, asked anew, are another conversation; also by a client that repeats itself without a reason.
        for tried in (0, 0, 1):
            headers = {attempts.RETRIES: str(tried)}
            assert httpx.post(url + PATH, json=LONG | {"max_tokens": 4}, headers=headers).status_code == 200
    assert rows(store)["conversations"] == 4


def test_a_retry_joins_an_attempt_that_was_given_up_before_it_began(
    assistant: Assistant, store: Database, owner: User
) -> None:
    async def ask(url: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            with ExitStack() as busy:
                for place in routes.BEGINNING:
                    busy.enter_context(place)
                with pytest.raises(httpx.ReadTimeout):
                    await client.post(PATH, json=LONG, headers={attempts.RETRIES: "0"}, timeout=0.2)
                retry = asyncio.create_task(client.post(PATH, json=LONG, headers={attempts.RETRIES: "1"}))
                await asyncio.sleep(0.3)
            return await retry

    with answering(create_app(assistant)) as url:
        answer = asyncio.run(ask(url))
    assert (answer.status_code, answer.headers["idempotent-replayed"]) == (200, "true")
    assert (rows(store)["conversations"], rows(store)["replies"]) == (1, 1)


def test_what_nobody_asks_for_again_is_stopped_and_a_late_retry_stays_in_its_conversation(
    assistant: Assistant, store: Database, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "WAY_S", 0.0)
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.1)
    forever = LONG | {"max_tokens": 600}
    with answering(create_app(assistant)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + PATH, json=forever, headers={attempts.RETRIES: "0"}, timeout=0.2)
        until = time.monotonic() + 5
        while assistant.engine.active or not rows(store)["replies"]:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert store.rows("SELECT finish FROM replies")[0]["finish"] == "cancelled"
        late = httpx.post(url + PATH, json=forever, headers={attempts.RETRIES: "1"}, timeout=60)
    assert late.status_code == 200
    assert (rows(store)["conversations"], rows(store)["messages"], rows(store)["replies"]) == (1, 3, 2)
