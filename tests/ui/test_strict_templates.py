"""Over HTTP, a base whose template refuses system turns and repeated roles answers all the same, or says why not."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant, open_assistant
from assistant.models.base_model import Base
from feedback.database.database import Database
from tests.helpers.over_http import assistant, rows, web
from tests.helpers.templates import GEMMA_2, with_template

__all__ = ["assistant", "web"]  # fixtures
SYSTEM, USER, REPLY = (
    {"role": role, "content": words}
    for role, words in (("system", "Be kind."), ("user", "Hello."), ("assistant", "Good day."))
)


@pytest.fixture(scope="module")
def loaded(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assistant]:
    """A small model with Gemma 2's kind of template."""
    folder = tmp_path_factory.mktemp("strict")
    store = Database(folder / "data")
    opened = open_assistant(store, str(with_template(tiny, folder / "base", GEMMA_2).path), dtype="float32")
    yield opened
    opened.close()
    store.close()


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [USER, USER], [SYSTEM, USER, REPLY, REPLY, USER, USER]])
def test_any_usual_conversation_is_answered(web: TestClient, messages: list[dict[str, str]]) -> None:
    answer = web.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 4})
    assert answer.status_code == 200, answer.text
    said = sum(len(each["content"].split()) for each in messages)
    assert answer.json()["usage"]["prompt_tokens"] > said


@pytest.mark.parametrize("streamed", [False, True])
def test_a_conversation_that_the_template_cannot_take_is_the_caller_s_fault_and_told(
    web: TestClient, assistant: Assistant, streamed: bool
) -> None:
    before = rows(assistant.store) | {"users": 1}  # the owner comes with the first request
    answer = web.post("/v1/chat/completions", json={"messages": [REPLY, USER], "stream": streamed})
    assert answer.status_code == 400
    assert "chat template does not take this conversation" in answer.json()["error"]["message"]
    assert rows(assistant.store) == before
