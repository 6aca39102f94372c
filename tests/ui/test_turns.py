"""A reply's events, asked for again from where a reader left off."""

import json
import threading
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from assistant.chat.chat import add_user_message, start_reply
from assistant.chat.reply import ReplyStream
from assistant.engine.sampling.params import Sampling
from feedback.accounts import users
from feedback.chats import conversations
from feedback.database.database import Database
from tests.conftest import two_replies
from tests.helpers.over_http import DRAWN, HERE, assistant, loaded, token_of, web
from ui.api import keep_alive
from ui.app import create_app

__all__ = ["assistant", "loaded", "web"]  # fixtures
LONG_ENOUGH = Sampling(max_tokens=60, seed=3)


def events(
    web: TestClient, reply: str, since: int | None = None, **headers: str
) -> list[tuple[str, dict[str, object]]]:
    """The kinds and the data of a reply's events."""
    answer = web.get(f"/api/turns/{reply}/events", params={} if since is None else {"from": since}, headers=headers)
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/event-stream"), answer.text
    assert answer.headers["x-accel-buffering"] == "no"
    told = [dict(line.split(": ", 1) for line in each.splitlines()) for each in answer.text.split("\n\n") if each]
    assert all(each.get("id") == str(json.loads(each["data"])["until"]) for each in told if each["event"] != "error")
    return [(each["event"], json.loads(each["data"])) for each in told]


def text_of(told: list[tuple[str, dict[str, object]]]) -> str:
    """The text that events carry, each beginning where the one before it ended."""
    parts = [data for kind, data in told if kind == "text"]
    assert [each["from"] for each in parts[1:]] == [each["until"] for each in parts[:-1]]
    return "".join(str(each["text"]) for each in parts)


@pytest.fixture
def begun(assistant: Assistant) -> Iterator[ReplyStream]:
    """A reply that has begun and is read by nobody yet."""
    owner = users.local_owner(assistant.store)
    message = add_user_message(assistant, owner, None, None, "Tell me a story.")
    reply = start_reply(assistant, owner, message, LONG_ENOUGH)
    yield reply
    reply.finish_now()


def test_a_reply_being_written_is_told_as_it_grows_and_afterwards_the_rest_is_one_event(
    web: TestClient, begun: ReplyStream
) -> None:
    while not begun.text:
        begun.advance()
    had = len(begun.text)
    writing = threading.Thread(target=lambda: list(begun))
    writing.start()
    live = events(web, begun.id, had)
    writing.join()

    node = conversations.node(web.app.state.assistant.store, begun.id)  # type: ignore[attr-defined]
    assert text_of(live) == node.content[had:]
    assert live[-1] == ("end", {"until": len(node.content), "finish": begun.finish})
    assert events(web, begun.id) == [
        ("text", {"from": 0, "until": len(node.content), "text": node.content}),
        ("end", {"until": len(node.content), "finish": begun.finish}),
    ]
    assert text_of(events(web, begun.id, 5)) == node.content[5:]
    assert (
        events(web, begun.id, 2, **{"Last-Event-ID": "9"})[0][1]["from"] == 9
    )  # as a browser's EventSource comes back
    assert [kind for kind, _ in events(web, begun.id, len(node.content))] == ["end"]


def test_a_stream_says_at_each_chunk_where_to_go_on(web: TestClient) -> None:
    answer = web.post("/v1/chat/completions", json=DRAWN | {"stream": True})
    chunks = [json.loads(each[6:]) for each in answer.text.splitlines() if each.startswith("data: {")]
    text = ""
    for chunk in chunks:
        (choice,) = chunk["choices"]
        text += choice["delta"].get("content", "")
        assert choice["until"] == len(text)
        whole = events(web, chunk["id"], choice["until"])
    assert whole[-1][0] == "end"
    half = len(text) // 2
    assert text[:half] + text_of(events(web, chunks[0]["id"], half)) == text


def test_a_number_beyond_the_reply_or_no_number_is_refused(web: TestClient, store: Database) -> None:
    _, left, _ = two_replies(store, users.local_owner(store))
    for since, status, says in (
        (999, 400, "15 characters"),
        (-1, 422, "greater than or equal to 0"),
        ("x", 422, "integer"),
    ):
        answer = web.get(f"/api/turns/{left}/events?from={since}")
        assert (answer.status_code, says in answer.json()["error"]) == (status, True), answer.text
    assert web.get("/api/turns/nothing/events").status_code == 404


def test_a_reply_is_told_to_whose_chat_it_is_and_to_nobody_else(assistant: Assistant) -> None:
    store = assistant.store
    ada, bob = (token_of(store, name, "operator") for name in ("Ada", "Bob"))
    user = users.find_user(store, "Ada")
    assert user is not None
    reply = start_reply(assistant, user, add_user_message(assistant, user, None, None, "A secret."), LONG_ENOUGH)
    with TestClient(create_app(assistant), base_url=HERE) as web:
        for _ in range(2):  # while it is being written, and once it is kept
            for headers, status in ((bob, 404), ({}, 401)):
                answer = web.get(f"/api/turns/{reply.id}/events", headers=headers)
                assert answer.status_code == status
                assert reply.parent not in answer.text
            list(reply)
        assert text_of(events(web, reply.id, **ada)) == reply.text


def test_a_reader_of_a_reply_that_fails_hears_why(web: TestClient, begun: ReplyStream) -> None:
    from assistant.engine.request import EngineError

    begun._generation.put(EngineError("the disk with the weights is gone"))

    def write() -> None:
        with pytest.raises(EngineError):
            list(begun)

    later = threading.Timer(0.5, write)
    later.start()
    told = events(web, begun.id)
    later.join()
    assert told[-1] == ("error", {"error": "the disk with the weights is gone"})


def test_a_silent_connection_gets_a_comment_now_and_then(
    web: TestClient, begun: ReplyStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep_alive, "QUIET_S", 0.1)
    later = threading.Timer(0.5, begun.finish_now)
    later.start()
    answer = web.get(f"/api/turns/{begun.id}/events").text
    assert answer.startswith(keep_alive.COMMENT * 2)
    assert "event: end" in answer
