"""A chat that has grown longer than what the model reads goes on, and its person is told what it no longer knows."""

import secrets

import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from assistant.chat.chat import add_user_message
from assistant.engine.sampling.params import Sampling
from assistant.models import chat_template
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import TooLong
from feedback.messages import Message
from tests.conftest import BY_BASE
from tests.helpers.over_http import assistant, blocks_of, loaded, web
from ui.cli import terminal

__all__ = ["assistant", "loaded", "web"]  # fixtures
OLDEST = "of this chat no longer fit into what the model reads, so it answers without them"


def long_chat(store: Database, user: User, turns: int = 20) -> tuple[str, str]:
    """A chat of so many turns, which are too many: its id, and its last reply's."""
    conversation, last = conversations.start_conversation(store, user), None
    for at in range(turns):
        message = conversations.add_message(store, conversation, last, "user", f"{at} " + "word " * 300)
        last = conversations.add_reply(store, message, "yes " * 100, BY_BASE)
    assert last is not None
    return conversation, last


def told_by_page(web: TestClient, store: Database, user: User, conversation: str, text: str) -> str:
    """All that the page is told when this text is sent in a chat, up to the end of the reply."""
    blocks, session, told = blocks_of(web, ""), secrets.token_hex(6), ""
    for name in ("send", "follow"):
        function = next(each for each in blocks.fns.values() if each.fn and each.name == name)
        data = [control.value for control in function.inputs]
        data[0] = conversation
        if name == "send":
            data[1] = text
        else:
            data[1] = conversations.own_conversation(store, user, conversation)["leaf"]
        trigger = next((each for each, _ in function.targets if each is not None), None)
        body = {"data": data, "fn_index": function._id, "session_hash": session, "trigger_id": trigger}
        assert web.post("/gradio_api/queue/join", json=body).status_code == 200
        told += web.get(f"/gradio_api/queue/data?session_hash={session}").text
    return told


def test_the_page_says_when_the_beginning_of_a_chat_no_longer_fits(
    web: TestClient, store: Database, owner: User
) -> None:
    conversation, _ = long_chat(store, owner)
    told = told_by_page(web, store, owner, conversation, "And now?")
    assert (told.count(OLDEST) >= 2, "The oldest " in told) == (True, True)  # while it is written, and afterwards
    short, _ = long_chat(store, owner, turns=1)
    assert OLDEST not in told_by_page(web, store, owner, short, "And now?")


def test_the_terminal_says_it_too(
    assistant: Assistant, store: Database, owner: User, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation, last = long_chat(store, owner)
    terminal.turn(assistant, owner, terminal.Talk(conversation, last), "And now?", Sampling(max_tokens=4))
    assert OLDEST in capsys.readouterr().out
    assert add_user_message(assistant, owner, conversation, last, "And again?")


def test_a_prompt_says_how_much_of_it_is_left_out_or_that_it_is_too_long(assistant: Assistant) -> None:
    tokenizer = assistant.tokenizer
    turns = [Message(role, f"{at} " + "word " * 50) for at in range(20) for role in ("user", "assistant")]
    said = [Message("system", "Be brief."), *turns, Message("user", "hello")]
    cut = chat_template.fitted(tokenizer, said, 500)
    assert cut.left_out % 2 == 0
    kept = [said[0], *said[1 + cut.left_out :]]
    assert cut == chat_template.Prompt(chat_template.whole(tokenizer, kept, 500).ids, cut.left_out)
    more = [said[0], *said[cut.left_out - 1 :]]
    with pytest.raises(TooLong):
        chat_template.whole(tokenizer, more, 500)
    assert chat_template.fitted(tokenizer, said, 10_000) == chat_template.whole(tokenizer, said, 10_000)
    exact = len(chat_template.whole(tokenizer, said, 10_000).ids)
    with pytest.raises(TooLong, match=f"too long: {exact:,} tokens"):
        chat_template.whole(tokenizer, said, exact - 1)
    with pytest.raises(TooLong, match=r"too long: more than [\d,]+ tokens"):
        chat_template.whole(tokenizer, [*said, Message("user", "word " * 20_000)], 500)
    spaces = [Message("user", " " * 40_000)]  # many characters a token: counted to the end
    counted = len(chat_template.whole(tokenizer, spaces, 100_000).ids)
    if counted < 2_000:
        assert len(chat_template.whole(tokenizer, spaces, 2_000).ids) == counted
