"""OpenAI's endpoints, through the whole application over a real assistant: what they do, and what they refuse."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from assistant.chat.chat import start_reply
from assistant.chat.reply import ReplyStream
from assistant.engine.engine import MOST_WAITING
from assistant.engine.request import Busy, Generation
from assistant.engine.sampling.params import Sampling
from assistant.engine.scheduling.scheduler import MOST_ROWS
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.kinds.comparison import compare
from feedback.kinds.vote import standing_vote
from feedback.messages import Message
from tests.helpers.over_http import (
    GREEDY,
    HELLO,
    LONG,
    assistant,
    events,
    key,
    loaded,
    loaded_talking,
    make_adapter,
    rows,
    talking,
    web,
)
from ui.app import create_app

__all__ = ["assistant", "loaded", "loaded_talking", "talking", "web"]  # fixtures
PATH = "/v1/chat/completions"
SEA = GREEDY | {"messages": [{"role": "user", "content": "Write a haiku about the sea."}], "max_tokens": 40}
FRUIT = {
    "type": "object",
    "properties": {"fruit": {"type": "string", "maxLength": 20}, "sweet": {"type": "boolean"}},
    "required": ["fruit", "sweet"],
    "additionalProperties": False,
}


def posted(web: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a completion."""
    answer = web.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(web: TestClient, body: dict[str, Any]) -> list[Any]:
    """The events of a completion."""
    with web.stream("POST", PATH, json=body | {"stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return events(answer)


def content(completion: dict[str, Any], at: int = 0) -> str:
    return completion["choices"][at]["message"]["content"]


# The shape


def test_a_completion_has_the_shape_that_clients_expect(talking: TestClient, store: Database) -> None:
    answer = posted(talking, GREEDY | {"logprobs": True})
    choice, usage = answer["choices"][0], answer["usage"]
    assert (answer["object"], choice["index"], choice["message"]["role"]) == ("chat.completion", 0, "assistant")
    assert choice["finish_reason"] in ("stop", "length")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    tokens = choice["logprobs"]["content"]
    assert "".join(each["token"] for each in tokens) == choice["message"]["content"]
    assert all(each["logprob"] <= 0 for each in tokens)
    kept = conversations.provenance(store, answer["id"])
    assert [each["logprob"] for each in tokens] == pytest.approx(kept.logprobs[: len(tokens)])
    assert conversations.node(store, answer["id"]).content == choice["message"]["content"]


def test_a_stream_says_the_same_as_a_whole_completion_and_ends_with_done(talking: TestClient) -> None:
    asked = GREEDY | {"logprobs": True, "top_logprobs": 2}
    whole = posted(talking, asked)
    *chunks, usage, done = streamed(talking, asked | {"stream_options": {"include_usage": True}})
    assert done == "[DONE]"
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["usage"] is None for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(each["delta"].get("content", "") for each in choices) == content(whole)
    told = [token for each in choices if each["logprobs"] for token in each["logprobs"]["content"]]
    in_whole = whole["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in told] == [each["token"] for each in in_whole]
    assert [each["logprob"] for each in told] == pytest.approx([each["logprob"] for each in in_whole], abs=1e-4)
    waits = False  # half a character, for its other half
    for each in choices:  # each chunk tells of the tokens that it brings
        said = "".join(token["token"] for token in (each["logprobs"] or {"content": []})["content"])
        assert waits or "�" in said or said == each["delta"].get("content", "")
        waits = "�" in said
    assert [each["finish_reason"] for each in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_the_likeliest_tokens_are_told_in_each_place(talking: TestClient) -> None:
    tokens = posted(talking, GREEDY | {"logprobs": True, "top_logprobs": 3})["choices"][0]["logprobs"]["content"]
    for token in tokens:
        likeliest = token["top_logprobs"]
        assert likeliest[0] == {name: token[name] for name in ("token", "logprob", "bytes")}  # greedy took it
        assert [each["logprob"] for each in likeliest] == sorted((each["logprob"] for each in likeliest), reverse=True)
        assert len({each["token"] for each in likeliest}) == 3


def test_a_completions_id_can_be_voted_on(web: TestClient, store: Database, owner: User) -> None:
    reply = web.post("/v1/chat/completions", json=GREEDY).json()["id"]
    assert web.post("/api/votes", json={"reply": reply, "value": 1}, headers=key()).status_code == 200
    assert standing_vote(store, owner, reply) is not None


def test_a_seed_gives_the_same_reply(web: TestClient) -> None:
    asked = GREEDY | {"temperature": 1.5, "seed": 11}
    texts = {web.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"] for _ in range(2)}
    assert len(texts) == 1


def test_content_may_come_in_parts_and_harmless_parameters_are_ignored(web: TestClient, store: Database) -> None:
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": "me"}]
    harmless = {"user": "u", "n": 1, "stop": None, "tools": [], "presence_penalty": 0, "top_logprobs": None}
    answer = web.post("/v1/chat/completions", json=GREEDY | {"messages": messages} | harmless)
    path = conversations.path(store, answer.json()["id"])
    assert [(each.role, each.content) for each in path[:2]] == [("system", "Be brief."), ("user", "Say hello.")]


def test_models_are_what_serves_the_base_and_every_adapter(web: TestClient, assistant: Assistant) -> None:
    name = make_adapter(assistant, "third")
    listed = web.get("/v1/models").json()["data"]
    assert [each["id"] for each in listed] == ["nightschool", "base", name]
    assert web.get(f"/v1/models/{name}").json() == listed[2]
    assert listed[2]["created"] > listed[0]["created"]
    assert web.get("/v1/models/gone").json()["error"]["code"] == "model_not_found"


# Several choices


def test_each_choice_is_a_reply_of_its_own(web: TestClient, store: Database, owner: User) -> None:
    asked = GREEDY | {"temperature": 1.5, "seed": 11, "n": 3}
    answer = posted(web, asked)
    choices = answer["choices"]
    assert [each["index"] for each in choices] == [0, 1, 2]
    assert choices[0]["reply"] == answer["id"]
    texts = [content(answer, at) for at in range(3)]
    assert len(set(texts)) == 3
    nodes = [conversations.node(store, each["reply"]) for each in choices]
    assert [each.content for each in nodes] == texts
    assert len({each.parent for each in nodes}) == 1
    counts = [len(conversations.provenance(store, each["reply"]).token_ids) for each in choices]
    assert answer["usage"]["completion_tokens"] == sum(counts)
    assert [conversations.provenance(store, each["reply"]).sampling["seed"] for each in choices] == [11, 12, 13]
    compare(store, owner, choices[0]["reply"], choices[1]["reply"], "left")


def test_greedy_choices_are_all_alike(talking: TestClient) -> None:
    three = posted(talking, GREEDY | {"n": 3})
    assert {content(three, at) for at in range(3)} == {content(posted(talking, GREEDY))}


def test_a_stream_of_several_choices_tells_each_as_it_is_recorded(web: TestClient, store: Database) -> None:
    *chunks, done = streamed(web, GREEDY | {"temperature": 1.5, "n": 3})
    assert done == "[DONE]"
    for at in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == at]
        (reply,) = {each["reply"] for each in own}
        assert "".join(each["delta"].get("content", "") for each in own) == conversations.node(store, reply).content
        assert own[-1]["finish_reason"] == conversations.provenance(store, reply).finish
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["choices"][0]["reply"]}


# Where the reply ends


def test_a_reply_ends_before_a_stop_string(talking: TestClient, store: Database) -> None:
    text = content(posted(talking, SEA))
    at = len(text) // 2
    stop = text[at : at + 7]  # begins and ends within tokens
    expected = text[: text.index(stop)]
    answer = posted(talking, SEA | {"stop": ["never said", stop], "logprobs": True})
    assert (content(answer), answer["choices"][0]["finish_reason"]) == (expected, "stop")
    assert conversations.node(store, answer["id"]).content == expected
    by = conversations.provenance(store, answer["id"])
    assert by.finish == "stop"
    assert len(by.token_ids) == len(by.logprobs) == answer["usage"]["completion_tokens"]
    told = "".join(each["token"] for each in answer["choices"][0]["logprobs"]["content"])
    assert told.startswith(expected)  # and ends with the token in which the string begins


def test_a_stream_never_sends_a_part_of_a_stop_string(talking: TestClient) -> None:
    text = content(posted(talking, SEA))
    for at in range(3, len(text) - 12, 25):
        stop = text[at : at + 9]
        expected = text[: text.index(stop)]
        *chunks, _ = streamed(talking, SEA | {"stop": stop})
        choices = [chunk["choices"][0] for chunk in chunks]
        assert "".join(each["delta"].get("content", "") for each in choices) == expected
        assert choices[-1]["finish_reason"] == "stop"


def test_what_only_began_like_a_stop_string_is_sent_in_the_end(talking: TestClient) -> None:
    text = content(posted(talking, SEA))
    *chunks, _ = streamed(talking, SEA | {"stop": [text[-5:] + "!", text[5:9] + "\t"]})
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text


# How it is drawn


def test_what_is_asked_of_the_drawing_reaches_it(web: TestClient, store: Database, assistant: Assistant) -> None:
    greedy = content(posted(web, GREEDY))
    assert content(posted(web, GREEDY | {"temperature": 1, "top_k": 1})) == greedy
    assert content(posted(web, GREEDY | {"temperature": 1, "min_p": 1.0, "top_k": -1})) == greedy
    (token,) = assistant.tokenizer.encode("!", add_special_tokens=False)
    forced = posted(web, GREEDY | {"logit_bias": {str(token): 100}})
    assert content(forced) == "!" * 12
    # A presence penalty does not outweigh the bias; a repetition penalty on a biased token does nothing but shrink it.
    banned = posted(web, GREEDY | {"logit_bias": {str(token): -100}})
    assert token not in conversations.provenance(store, banned["id"]).token_ids
    spread = posted(web, GREEDY | {"frequency_penalty": 2, "presence_penalty": 2, "repetition_penalty": 1.5})
    ids, plain = (conversations.provenance(store, each["id"]).token_ids for each in (spread, posted(web, GREEDY)))
    assert len(set(ids)) >= len(set(plain))
    assert conversations.provenance(store, spread["id"]).sampling["frequency_penalty"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_keeps_to_a_json_schema(talking: TestClient, stream: bool) -> None:
    messages = [{"role": "user", "content": "Name a fruit, and is it sweet? Answer in JSON."}]
    wanted = {"type": "json_schema", "json_schema": {"name": "fruit", "schema": FRUIT, "strict": True}}
    asked = {"messages": messages, "temperature": 0.8, "seed": 5, "max_tokens": 60, "response_format": wanted}
    if stream:
        chunks = streamed(talking, asked)[:-1]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        finish = chunks[-1]["choices"][0]["finish_reason"]
    else:
        answer = posted(talking, asked)
        text, finish = content(answer), answer["choices"][0]["finish_reason"]
    fruit = json.loads(text)
    assert finish == "stop"
    assert set(fruit) == {"fruit", "sweet"}
    assert isinstance(fruit["sweet"], bool)


def test_any_json_object_can_be_asked_for(talking: TestClient) -> None:
    messages = [{"role": "user", "content": "Describe an apple as a small JSON object."}]
    wanted = {"response_format": {"type": "json_object"}, "temperature": 0, "max_tokens": 60}
    answer = posted(talking, {"messages": messages} | wanted)
    text = content(answer)
    assert text.startswith("{")
    if answer["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


# Who waits, and who goes away


def test_a_full_queue_is_told_with_the_position_and_when_to_come_again(
    web: TestClient, store: Database, assistant: Assistant, owner: User
) -> None:
    before, held = rows(store), filled(assistant)
    answer = web.post(PATH, json=GREEDY)
    for each in held:
        each.cancel()
    assert all(each.id >= 0 for generation in held for each in generation)  # none is left behind
    assert answer.status_code == 429
    error = answer.json()["error"]
    assert (error["type"], "busy, position " in error["message"]) == ("rate_limit_error", True), error
    assert int(answer.headers["Retry-After"]) > 0
    assert rows(store) == before


def filled(assistant: Assistant) -> list[Generation]:
    """Requests that take every place and every place in the queue."""
    engine, prompt_ids, held = assistant.engine, assistant.tokenizer.encode("hello"), []
    while engine.active < MOST_ROWS or engine.waiting < MOST_WAITING:
        try:
            held.append(engine.submit(prompt_ids, Sampling(max_tokens=1900, ignore_end=True)))
        except Busy:
            time.sleep(0.01)
    return held


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_replies_which_are_kept(
    assistant: Assistant, store: Database, owner: User, stream: bool
) -> None:
    asked = {"messages": HELLO, "max_tokens": 1900, "n": 2, "stream": stream, "logit_bias": {"0": -100, "2": -100}}
    asyncio.run(leave_early(assistant, asked))
    kept = store.rows("SELECT message, finish FROM replies")
    assert [each["finish"] for each in kept] == ["cancelled"] * 2
    assert all(0 < len(conversations.provenance(store, each["message"]).token_ids) < 1900 for each in kept)
    assert (assistant.engine.active, assistant.engine.waiting) == (0, 0)


async def leave_early(assistant: Assistant, body: dict[str, Any]) -> None:
    """Send a request as a server does, and be gone when some tokens are written."""
    sent, start = asyncio.Event(), assistant.engine.tokens_written
    parts = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        while assistant.engine.tokens_written < start + 20:
            await asyncio.sleep(0.01)
        sent.set()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn says
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 7860),
        "state": {},
    }
    await asyncio.wait_for(create_app(assistant)(scope, receive, send), timeout=60)
    assert sent.is_set()


# What is refused


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "wanted", "schema": schema}}


REFUSED = [
    ({"model": "gpt-4"}, 404, "there is no model 'gpt-4'"),
    ({"model": None}, 400, "model: "),
    ({"messages": []}, 400, "the last message must be the user's"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "a message's role is one of"),
    ({"messages": [{"role": "user", "content": ""}]}, 400, "an empty message says nothing"),
    ({"messages": [{"role": "user", "content": LONG}]}, 400, "Please reduce the length of the messages"),
    ({"messages": [{"role": "user", "content": "word " * 19_000}]}, 400, "maximum context length is"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "is text, not 'image_url'"),
    ({"n": 9}, 400, "n is a whole number from 1 to 8, not 9"),
    ({"n": 0}, 400, "n is a whole number from 1 to 8, not 0"),
    ({"stop": ["a"] * 5}, 400, "stop is a list of at most 4 strings"),
    ({"stop": 7}, 400, "stop is a list of at most 4 strings"),
    ({"best_of": 2}, 400, "best_of = '2' cannot be done here"),
    ({"tools": [{"type": "function"}]}, 400, "tools = "),
    ({"response_format": {"type": "xml"}}, 400, "response_format is {type: text}, "),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format is {type: text}, "),
    ({"response_format": json_schema({"type": "strang"})}, 400, "cannot be followed: Invalid type: strang"),
    ({"top_k": -2}, 400, "top_k is a whole number from 0"),
    ({"min_p": 2}, 400, "min_p is a number from 0 to 1"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty is a number above 0"),
    ({"presence_penalty": 3}, 400, "presence_penalty is a number from -2 to 2"),
    ({"frequency_penalty": "much"}, 400, "frequency_penalty: "),
    ({"logit_bias": {"x": 1}}, 400, "token ids, whole numbers from 0, and 'x' is none"),
    ({"logit_bias": {"5": 101}}, 400, "logit_bias of token 5 is a number from -100 to 100"),
    ({"logit_bias": {"49152": 1}}, 400, "logit_bias names token 49152, and the model has 49,152"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs is a whole number from 0 to 20"),
    ({"top_logprobs": 2}, 400, "top_logprobs goes with logprobs: true"),
    ({"temperature": 3}, 400, "temperature is a number from 0 to 2"),
    ({"top_p": 0}, 400, "top_p is a number above 0"),
    ({"max_tokens": -1}, 400, "max_tokens is a whole number"),
    ({"seed": -1}, 400, "a seed is a whole number"),
    ({"stream": "yes"}, 400, "stream: "),
]


def test_a_completion_that_cannot_be_done_is_refused_in_openais_shape(
    web: TestClient, store: Database, owner: User
) -> None:
    before = rows(store)
    for change, status, sentence in REFUSED:
        answer = web.post("/v1/chat/completions", json=GREEDY | change)
        error, case = answer.json()["error"], str(change)[:80]
        assert (case, answer.status_code, set(error)) == (case, status, {"message", "type", "param", "code"})
        assert (case, sentence in error["message"]) == (case, True), error["message"]
        assert (case, rows(store)) == (case, before)


def test_two_threads_that_wait_for_one_reply_both_hear_its_end_and_it_is_recorded_once(
    assistant: Assistant, store: Database, owner: User
) -> None:
    for _ in range(5):  # which of the two hears it first is chance
        parent = conversations.record_messages(store, owner, "api", [Message("user", "Tell me a long story.")])
        reply = start_reply(assistant, owner, parent, Sampling(max_tokens=400, ignore_end=True))
        assert reply.advance()

        def wait(reply: ReplyStream = reply) -> None:
            while reply.advance():
                pass

        threads = [threading.Thread(target=each, daemon=True) for each in (wait, wait, reply.finish_now)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(10)
        assert [each.is_alive() for each in threads] == [False] * 3
        assert [each.id for each in conversations.children(store, parent)] == [reply.id]
