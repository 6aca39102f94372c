"""Streams as they travel: what goes out at once, what keeps the connection alive, and how one breaks off."""

import json
import time
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant, open_assistant
from assistant.engine.engine import MOST_WAITING
from assistant.engine.request import Busy, Generation
from assistant.engine.sampling.params import Sampling
from assistant.engine.scheduling.scheduler import MOST_ROWS
from assistant.models.base_model import Base
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from tests.helpers.over_http import (
    GREEDY,
    HELLO,
    act_on_page,
    answering,
    assistant,
    events,
    loaded,
    web,
)
from ui.api import keep_alive
from ui.app import create_app

__all__ = ["assistant", "loaded", "web"]  # fixtures
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def taken(assistant: Assistant) -> list[Generation]:
    """Requests that take every place, so that the next waits in the queue."""
    engine, prompt_ids, held = assistant.engine, assistant.tokenizer.encode("hello"), []
    while engine.active < MOST_ROWS:
        try:
            held.append(engine.submit(prompt_ids, Sampling(max_tokens=1900, ignore_end=True)))
        except Busy:
            time.sleep(0.01)
    assert len(held) < MOST_ROWS + MOST_WAITING
    return held


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_headers_and_the_role_go_out_at_once_and_comments_while_a_request_waits(
    assistant: Assistant, owner: User, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(keep_alive, "QUIET_S", 0.2)
    asked = {"stream": True, "max_tokens": 3} | ({"messages": HELLO} if path == CHAT else {"prompt": "hello"})
    with answering(create_app(assistant)) as url:
        held = taken(assistant)
        lines: list[str] = []
        with httpx.stream("POST", url + path, json=asked, timeout=30) as answer:
            assert assistant.engine.active == MOST_ROWS  # so it waits
            assert answer.headers["x-accel-buffering"] == "no"
            assert "no-cache" in answer.headers["cache-control"]
            for line in answer.iter_lines():
                lines += [line] if line else []
                if lines.count(": waiting") == 2:
                    for each in held:
                        each.cancel()
        for each in held:
            assert all(token.id >= 0 for token in each)
    if path == CHAT:
        opening = json.loads(lines[0].removeprefix("data: "))["choices"][0]
        assert (opening["delta"], opening["finish_reason"]) == ({"role": "assistant", "content": ""}, None)
    first_text = next(at for at, line in enumerate(lines) if at > 0 and line.startswith("data: "))
    assert lines[first_text - 1] == ": waiting"
    assert lines[-1] == "data: [DONE]"


def test_every_stream_of_events_says_that_it_must_not_be_held_back(web: TestClient) -> None:
    act_on_page(web, "", "open", {})  # the queue of a page answers
    body = {"fn_index": 0, "session_hash": "abc", "data": []}
    for method, path, more in (
        ("POST", CHAT, {"json": GREEDY | {"stream": True}}),
        ("POST", TEXT, {"json": {"prompt": "hello", "stream": True, "max_tokens": 2}}),
        ("GET", "/gradio_api/queue/data?session_hash=abc", {}),
    ):
        if method == "GET":
            web.post("/gradio_api/queue/join", json=body)
        with web.stream(method, path, **more) as answer:
            kind, caching = answer.headers["content-type"], answer.headers["cache-control"]
            assert (path, kind.startswith("text/event-stream"), "no-cache" in caching) == (path, True, True)
            assert answer.headers.get_list("x-accel-buffering") == ["no"]
    assert web.get("/v1/models").headers["cache-control"] == "no-store"


def test_an_error_after_the_headers_is_an_event_in_openais_shape(tiny: Base, store: Database, owner: User) -> None:
    asked = {"messages": HELLO, "stream": True, "max_tokens": 1900, "logit_bias": {"0": -100, "2": -100}}
    own = open_assistant(store, tiny.name, dtype="float32")
    with answering(create_app(own)) as url, httpx.stream("POST", url + CHAT, json=asked, timeout=30) as answer:
        told = []
        for line in answer.iter_lines():
            told += [line] if line else []
            if len(told) == 5:
                own.close()  # its replies end as cancelled
    broken = [json.loads(line.removeprefix("data: ")) for line in told if '"error"' in line]
    assert [set(each) for each in broken] == [{"error"}]
    assert set(broken[0]["error"]) == {"message", "type", "param", "code"}
    assert broken[0]["error"]["type"] == "server_error"


# Where a reply ends inside a character


def cut_at(web: TestClient, most: int, more: dict[str, Any]) -> dict[str, Any]:
    """A reply of 漢字 and emojis, which are several tokens each, cut after so many tokens."""
    schema = {"type": "json_schema", "json_schema": {"schema": {"const": "😀漢字🎉👩‍👩‍👧‍👦안녕"}}}
    asked = {"messages": HELLO, "temperature": 0, "max_tokens": most, "response_format": schema, "logprobs": True}
    return asked | more


def test_a_reply_cut_inside_a_character_tells_every_token_and_ends_with_a_whole_one(
    web: TestClient, store: Database
) -> None:
    inside = 0
    for most in range(2, 11):
        answer = web.post(CHAT, json=cut_at(web, most, {"top_logprobs": 1})).json()
        choice = answer["choices"][0]
        text, tokens = choice["message"]["content"], choice["logprobs"]["content"]
        assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", most)
        assert (most, "�" in text, len(tokens)) == (most, False, most)
        inside += tokens[-1]["bytes"] is None
        assert conversations.node(store, answer["id"]).content == text
        with web.stream("POST", CHAT, json=cut_at(web, most, {"stream": True})) as streamed:
            chunks = [each["choices"][0] for each in events(streamed)[:-1]]
        assert "".join(each["delta"].get("content", "") for each in chunks) == text
        told = [token for each in chunks if each["logprobs"] for token in each["logprobs"]["content"]]
        assert [each["token"] for each in told] == [each["token"] for each in tokens]
    assert inside > 3


# Clients that go away


def test_a_reader_of_a_stream_that_leaves_frees_the_place_at_once(
    assistant: Assistant, store: Database, owner: User
) -> None:
    asked = {"messages": HELLO, "stream": True, "max_tokens": 1900, "logit_bias": {"0": -100, "2": -100}}
    with answering(create_app(assistant)) as url:
        for count, headers in enumerate(({}, {"x-stainless-retry-count": "0"}), start=1):
            with httpx.stream("POST", url + CHAT, json=asked, headers=headers, timeout=30) as answer:
                lines = filter(None, answer.iter_lines())
                assert all("[DONE]" not in next(lines) for _ in range(4))  # the role, and some text
            until = time.monotonic() + 3
            while assistant.engine.active or len(store.rows("SELECT finish FROM replies")) < count:
                assert time.monotonic() < until
                time.sleep(0.01)
    assert {each["finish"] for each in store.rows("SELECT finish FROM replies")} == {"cancelled"}
