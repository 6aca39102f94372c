"""OpenAI's own client for Python against a real server: what it sends, understands and raises."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from assistant.chat.assistant import Assistant
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.kinds.vote import standing_vote, vote
from tests.helpers.over_http import HELLO, answering, assistant, loaded, make_adapter, rows
from ui.app import create_app

__all__ = ["assistant", "loaded"]  # fixtures
GREEDY: Any = {"model": "nightschool", "messages": HELLO, "temperature": 0, "max_tokens": 12}
NO_END = {"0": -100, "2": -100}


@pytest.fixture
def client(assistant: Assistant, owner: User) -> Iterator[openai.OpenAI]:
    with answering(create_app(assistant)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as opened:
        yield opened


def test_it_chats_whole_and_as_a_stream(client: openai.OpenAI, store: Database, owner: User) -> None:
    whole = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2)
    choice = whole.choices[0]
    assert choice.message.role == "assistant"
    assert choice.logprobs is not None
    assert "".join(each.token for each in choice.logprobs.content or []) == choice.message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(choice.logprobs.content or [])
    vote(store, owner, whole.id, 1)
    assert standing_vote(store, owner, whole.id) is not None

    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    assert "".join(each.choices[0].delta.content or "" for each in chunks[:-1]) == choice.message.content
    assert chunks[-1].usage == whole.usage
    with client.chat.completions.stream(**GREEDY) as events:
        assert "".join(each.delta for each in events if each.type == "content.delta") == choice.message.content
    raw = client.chat.completions.with_raw_response.create(**GREEDY, n=2, user="u", store=False, metadata={"a": "b"})
    assert [each.message.content for each in raw.parse().choices] == [choice.message.content] * 2


def test_it_reads_a_reply_into_a_schema(client: openai.OpenAI) -> None:
    class Fruit(BaseModel):
        name: Literal["apple", "pear"]
        sweet: bool

    answer = client.chat.completions.parse(**GREEDY | {"max_tokens": 150}, response_format=Fruit)
    assert isinstance(answer.choices[0].message.parsed, Fruit)


def test_it_lists_models(client: openai.OpenAI, assistant: Assistant) -> None:
    name = make_adapter(assistant, "third")
    assert [each.id for each in client.models.list()] == ["nightschool", "base", name]
    assert client.models.retrieve(name).owned_by == "nightschool"


def test_text_completions_are_turns_like_any_other(client: openai.OpenAI, store: Database, owner: User) -> None:
    asked: Any = {"model": "nightschool", "temperature": 0, "max_tokens": 6}
    one = client.completions.create(prompt=HELLO[0]["content"], **asked)
    chat = client.chat.completions.create(**GREEDY | {"max_tokens": 6})
    assert (one.object, one.choices[0].text) == ("text_completion", chat.choices[0].message.content)
    path = conversations.path(store, one.id)
    assert [(each.role, each.content) for each in path] == [
        ("user", HELLO[0]["content"]),
        ("assistant", one.choices[0].text),
    ]
    vote(store, owner, one.id, -1)

    before = rows(store)["conversations"]
    many = client.completions.create(prompt=["red", "green"], n=2, logprobs=2, seed=3, **asked | {"temperature": 1.0})
    assert [each.index for each in many.choices] == [0, 1, 2, 3]
    assert rows(store)["conversations"] == before + 2
    parents = [conversations.path(store, each.reply)[0].content for each in many.choices]  # type: ignore[attr-defined]
    assert parents == ["red", "red", "green", "green"]
    assert many.usage is not None
    assert many.usage.completion_tokens <= 24
    for choice in many.choices:
        told = choice.logprobs
        assert told is not None
        assert told.tokens is not None
        assert told.text_offset is not None
        assert len(told.tokens) == len(told.token_logprobs or []) == len(told.top_logprobs or [])
        assert all(len(each) == 2 for each in told.top_logprobs or [])
        if "�" not in "".join(told.tokens):
            assert "".join(told.tokens) == choice.text
            for offset, token in zip(told.text_offset, told.tokens, strict=True):
                assert choice.text[offset:].startswith(token)

    chunks = list(client.completions.create(prompt=HELLO[0]["content"], stream=True, **asked))
    assert "".join(each.choices[0].text for each in chunks) == one.choices[0].text
    assert chunks[-1].choices[0].finish_reason == one.choices[0].finish_reason
    unbounded = client.completions.create(model="nightschool", prompt="hi", logit_bias=NO_END)
    assert unbounded.usage is not None
    assert unbounded.usage.completion_tokens == 16  # as OpenAI has it

    wrong = [{"echo": True}, {"suffix": "x"}, {"best_of": 3}, {"logprobs": 6}, {"n": 9}]
    for change in (*wrong, *({"prompt": each} for each in ([1, 2], [[1]], [], ["x"] * 9))):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**{"prompt": "x"} | asked | change)
        assert refused.value.param == next(iter(change))
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(prompt="word " * 10_000, **asked)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")


def test_it_raises_what_it_raises_at_openai(client: openai.OpenAI, store: Database) -> None:
    def error(kind: type[openai.APIStatusError], **change: Any) -> openai.APIStatusError:
        with pytest.raises(kind) as raised:
            client.chat.completions.create(**GREEDY | change)
        return raised.value

    long = error(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 10_000}])
    assert (long.code, long.param, long.type) == ("context_length_exceeded", "messages", "invalid_request_error")
    assert error(openai.NotFoundError, model="gpt-4").code == "model_not_found"
    assert error(openai.BadRequestError, temperature="hot").param == "temperature"
    with pytest.raises(openai.BadRequestError) as raised:
        list(client.chat.completions.create(**GREEDY | {"n": 9}, stream=True))
    assert raised.value.param == "n"
    cut = client.chat.completions.create(
        **GREEDY | {"messages": [*HELLO, {"role": "assistant", "content": "word " * 10_000}, *HELLO]},
        extra_body={"truncation": "auto"},
    )
    assert cut.model_extra == cut.model_extra | {"truncated_messages": 2}
    users.add_user(store, "ada", "chatter", "a hash that no password has")
    assert error(openai.AuthenticationError).code == "invalid_api_key"


def test_its_retries_after_time_outs_leave_one_conversation(client: openai.OpenAI, store: Database) -> None:
    asked = GREEDY | {"max_tokens": 250, "logit_bias": NO_END}
    hasty = client.with_options(timeout=0.2, max_retries=6)
    answer = hasty.chat.completions.create(**asked)
    assert answer.choices[0].message.content
    assert (rows(store)["conversations"], rows(store)["replies"]) == (1, 1)
    named = client.with_options(timeout=0.05, max_retries=0)
    key = {"Idempotency-Key": "mine"}
    with pytest.raises(openai.APITimeoutError):
        named.chat.completions.create(**asked, extra_headers=key)
    again = client.chat.completions.create(**asked, extra_headers=key)
    assert again.choices[0].finish_reason == "length"
    assert (rows(store)["conversations"], rows(store)["replies"]) == (2, 2)
    assert json.loads(again.model_dump_json())["usage"]["completion_tokens"] == 250
