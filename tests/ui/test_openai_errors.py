"""What goes wrong under /v1, in the words, the codes and the statuses that OpenAI's clients know."""

import gzip
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from feedback.accounts import users
from feedback.chats import conversations
from feedback.database.database import Database
from tests.helpers.over_http import GREEDY, HELLO, assistant, loaded, rows, web

__all__ = ["assistant", "loaded", "web"]  # fixtures
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = {"Content-Type": "application/json"}
DEEP = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
INVALID = "invalid_request_error"

# A change to a request that is right, then: status, code and param of the error.
BODIES = [
    ({"model": "gpt-4"}, 404, "model_not_found", "model"),
    ({"model": 7}, 400, "invalid_type", "model"),
    ({"messages": "hello"}, 400, "invalid_type", "messages"),
    ({"messages": HELLO * 2_001}, 400, "array_above_max_length", "messages"),
    ({"messages": [{"content": "x"}]}, 400, "missing_required_parameter", "messages[0].role"),
    ({"messages": [*HELLO, {"role": "ghost", "content": "x"}]}, 400, "invalid_value", "messages[1].role"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "invalid_value", "messages[0].content"),
    ({"messages": [{"role": "user", "content": ""}]}, 400, "invalid_value", "messages"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "invalid_value", "messages"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}, *HELLO]}, 400, "invalid_value", "messages[0].tool_calls"),
    ({"messages": [{"role": "user", "content": "word " * 9_000}]}, 400, "context_length_exceeded", "messages"),
    ({"messages": [{"role": "user", "content": "x" * 2_000_000}]}, 400, "context_length_exceeded", "messages"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "invalid_value", "messages"),
    ({"temperature": 3}, 400, "invalid_value", "temperature"),
    ({"temperature": "hot"}, 400, "invalid_type", "temperature"),
    ({"top_p": 0}, 400, "invalid_value", "top_p"),
    ({"max_tokens": 1e6}, 400, "invalid_type", "max_tokens"),
    ({"max_tokens": 10**6}, 400, "invalid_value", "max_tokens"),
    ({"max_completion_tokens": 0}, 400, "invalid_value", "max_completion_tokens"),
    ({"seed": -1}, 400, "invalid_value", "seed"),
    ({"n": 0}, 400, "invalid_value", "n"),
    ({"stop": 7}, 400, "invalid_value", "stop"),
    ({"logit_bias": {"9" * 5_000: 1}}, 400, "invalid_value", "logit_bias"),
    ({"logit_bias": {"5": 101}}, 400, "invalid_value", "logit_bias"),
    ({"top_logprobs": 2}, 400, "invalid_value", "top_logprobs"),
    ({"response_format": {"type": "xml"}}, 400, "invalid_value", "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, 400, "invalid_value",
     "response_format"),
    ({"tools": [{"type": "function"}]}, 400, "invalid_value", "tools"),
    ({"reasoning_effort": "high"}, 400, "invalid_value", "reasoning_effort"),
    ({"truncation": "some"}, 400, "invalid_value", "truncation"),
]  # fmt: skip


def error_of(answer: Any) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's shape and nothing else."""
    body = answer.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    assert body["error"]["message"]
    return dict(body["error"])


def test_every_wrong_parameter_is_named_with_openais_code_and_nothing_is_kept(web: TestClient, store: Database) -> None:
    web.get("/v1/models")  # makes the owner
    before = rows(store)
    for change, status, code, param in BODIES:
        # Not by the client's own JSON, which would refuse half a character.
        answer = web.post(CHAT, content=json.dumps(GREEDY | change), headers=JSON)
        error, case = error_of(answer), str(change)[:60]
        assert (case, answer.status_code, error["code"], error["param"]) == (case, status, code, param), error
        assert (case, error["type"]) == (case, INVALID)
        assert (case, rows(store)) == (case, before)


def test_a_body_that_cannot_be_read_is_refused_with_the_reason(web: TestClient) -> None:
    body = json.dumps(GREEDY).encode()
    for content, headers, words in (
        (b"{", JSON, "is not JSON"),
        (b"", JSON, "the body is missing"),
        (b"[]", JSON, "the body: "),
        (b'"x"', JSON, "the body: "),
        (b"\xff\xfe{", JSON, "UTF-8"),
        (b'{"messages": "\xe9"}', JSON, "UTF-8"),
        (DEEP, JSON, "nested too deeply"),
        (body, {"Content-Type": "text/plain"}, "with Content-Type: text/plain"),
        (body, {"Content-Type": "application/x-www-form-urlencoded"}, "send the header Content-Type: application/json"),
        (body, {}, "without a Content-Type"),
        (gzip.compress(body), JSON | {"Content-Encoding": "gzip"}, "is compressed (Content-Encoding: gzip)"),
        (b"\x00\x01", JSON | {"Content-Encoding": "br"}, "is compressed (Content-Encoding: br)"),
    ):
        for path in (CHAT, TEXT):
            answer = web.post(path, content=content, headers=headers)
            error, case = error_of(answer), (path, content[:20], words)
            assert (case, answer.status_code, error["type"]) == (case, 400, INVALID)
            assert (case, words in error["message"]) == (case, True), error
    plain = web.post("/api/votes", content=b"\xff", headers=JSON | {"Idempotency-Key": "x"})
    assert (plain.status_code, plain.json()) == (400, {"error": "the body is not UTF-8"})


def test_what_is_not_there_is_said_in_openais_shape_too(web: TestClient) -> None:
    for method, path, status, code, allowed in (
        ("GET", "/v1", 404, "unknown_url", None),
        ("POST", "/v1", 404, "unknown_url", None),
        ("GET", "/v1/", 404, "unknown_url", None),
        ("POST", "/v1/embeddings", 404, "unknown_url", None),
        ("POST", "/v1/responses", 404, "unknown_url", None),
        ("GET", "/v1/chat", 404, "unknown_url", None),
        ("GET", "/v1/models/gone", 404, "model_not_found", None),
        ("GET", CHAT, 405, "method_not_supported", "POST"),
        ("DELETE", CHAT, 405, "method_not_supported", "POST"),
        ("PUT", f"{CHAT}/", 405, "method_not_supported", "POST"),
        ("POST", "/v1/models", 405, "method_not_supported", "GET, HEAD"),
        ("TRACE", "/v1/models", 405, "method_not_supported", "GET, HEAD"),
        ("PURGE", "/v1/models/base", 405, "method_not_supported", "GET, HEAD"),
        ("OPTIONS", "/v1/nothing", 404, "unknown_url", None),
    ):
        answer = web.request(method, path)
        error, case = error_of(answer), (method, path)
        assert (case, answer.status_code, error["type"], error["code"]) == (case, status, INVALID, code)
        assert (case, answer.headers.get("allow")) == (case, allowed)
    for method, path in (
        ("GET", "/chat/completions"),
        ("POST", "/chat/completions"),
        ("DELETE", "/x"),
        ("GET", "/v1x"),
    ):
        answer = web.request(method, path)
        assert (path, answer.status_code, set(answer.json())) == (path, 404, {"error"})
    assert web.get("/api/votes").status_code == 405
    asked = web.options(CHAT)
    assert (asked.status_code, asked.headers["allow"], asked.content) == (204, "POST", b"")
    foreign = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    answer = web.options(CHAT, headers=foreign)
    assert (answer.status_code, error_of(answer)["type"]) == (403, "permission_error")
    assert "access-control-allow-origin" not in answer.headers


def test_a_slash_at_the_end_and_head_are_no_mistake(web: TestClient) -> None:
    assert web.get("/v1/models/").json() == web.get("/v1/models").json()
    assert web.post(f"{CHAT}/", json=GREEDY).status_code == 200
    for path in ("/v1/models", "/v1/models/nightschool"):
        head = web.head(path)
        assert (head.status_code, head.headers["content-type"]) == (200, "application/json")
    assert web.head("/v1/models/gone").status_code == 404


def test_who_is_not_known_has_no_valid_key(web: TestClient, store: Database) -> None:
    users.add_user(store, "ada", "chatter", "a hash that no password has")
    for headers in ({}, {"Authorization": "Bearer sk-wrong"}):
        for path in (CHAT, "/v1/models", "/v1", "/v1/nothing"):
            answer = web.post(path, json=GREEDY, headers=headers)
            assert (path, answer.status_code, error_of(answer)["code"]) == (path, 401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"


# What is accepted, though a strict reader would not


@pytest.mark.parametrize("field", ["content", None])
def test_an_assistant_that_said_nothing_may_stand_in_a_history(web: TestClient, store: Database, field: Any) -> None:
    silent = {"role": "assistant"} | ({field: None} if field else {}) | {"refusal": None, "tool_calls": []}
    said = [{"role": "developer", "content": "Be kind."}, *HELLO, silent, *HELLO]
    answer = web.post(CHAT, json=GREEDY | {"messages": said})
    assert answer.status_code == 200, answer.text
    path = conversations.path(store, answer.json()["id"])
    expected = [("system", "Be kind."), ("user", HELLO[0]["content"]), ("assistant", ""), ("user", HELLO[0]["content"])]
    assert [(each.role, each.content) for each in path[:4]] == expected


def test_tools_that_may_not_be_used_change_nothing(web: TestClient) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    plain = web.post(CHAT, json=GREEDY).json()["choices"][0]["message"]
    for change in ({"tools": [tool], "tool_choice": "none"}, {"tools": []}, {"tools": None, "tool_choice": "auto"}):
        answer = web.post(CHAT, json=GREEDY | change)
        assert (answer.status_code, answer.json()["choices"][0]["message"]) == (200, plain)
    for choice in ("auto", "required", {"type": "function", "function": {"name": "look"}}):
        assert web.post(CHAT, json=GREEDY | {"tools": [tool], "tool_choice": choice}).status_code == 400


# A history that does not fit


def history(turns: int) -> list[dict[str, str]]:
    """A long conversation, as a program sends it."""
    said = [{"role": "system", "content": "Be brief."}]
    for at in range(turns):
        said += [{"role": "user", "content": f"{at} " + "word " * 300}, {"role": "assistant", "content": "yes " * 100}]
    return [*said, *HELLO]


def test_a_history_that_does_not_fit_is_refused_unless_it_may_be_cut(
    web: TestClient, store: Database, assistant: Assistant
) -> None:
    long, before = GREEDY | {"messages": history(30)}, rows(store)
    error = error_of(web.post(CHAT, json=long))
    assert error["code"] == "context_length_exceeded"
    window = f"This model's maximum context length is {assistant.engine.window} tokens"
    assert (window in error["message"], '"truncation": "auto"' in error["message"]) == (True, True), error
    assert rows(store) | {"users": 0} == before | {"users": 0}

    answer = web.post(CHAT, json=long | {"truncation": "auto"})
    told = answer.json()
    left_out = told["truncated_messages"]
    assert 0 < left_out < 61
    assert answer.headers["x-truncated-messages"] == str(left_out)
    assert told["usage"]["prompt_tokens"] <= assistant.longest_prompt
    assert len(conversations.path(store, told["id"])) == 63  # all of it is kept
    with web.stream("POST", CHAT, json=long | {"truncation": "auto", "stream": True}) as streamed:
        assert streamed.headers["x-truncated-messages"] == str(left_out)
        first = next(line for line in streamed.iter_lines() if line.startswith("data: "))
    assert json.loads(first.removeprefix("data: "))["truncated_messages"] == left_out

    whole = web.post(CHAT, json=GREEDY | {"truncation": "auto"})
    assert (whole.json()["truncated_messages"], whole.headers["x-truncated-messages"]) == (0, "0")
    assert "truncated_messages" not in web.post(CHAT, json=GREEDY | {"truncation": "disabled"}).json()
    alone = {"messages": [{"role": "user", "content": "word " * 30_000}], "truncation": "auto"}
    assert error_of(web.post(CHAT, json=alone))["code"] == "context_length_exceeded"


def test_two_replies_to_compare_say_what_they_do_not_know(web: TestClient) -> None:
    asked = {"messages": history(30), "max_tokens": 4, "seed": 1}
    pair = web.post("/api/pairs", json=asked, headers={"Idempotency-Key": "long"}).json()
    assert 0 < pair["left_out"] < 61
