"""Conversations are trees, and belong to one person."""

import pytest

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import Conflict, NotFound, Refused
from feedback.kinds.comparison import compare
from feedback.kinds.correction import correct
from feedback.kinds.critique import critique
from feedback.kinds.ranking import rank
from feedback.kinds.tally import counts
from feedback.kinds.vote import UP, vote
from feedback.messages import Message
from tests.conftest import BY_BASE, two_replies


def test_an_edit_is_a_branch_and_overwrites_nothing(store: Database, owner: User) -> None:
    conversation = conversations.start_conversation(store, owner)
    first = conversations.add_message(store, conversation, None, "user", "hello")
    reply = conversations.add_reply(store, first, "hi", BY_BASE)
    second = conversations.add_message(store, conversation, reply, "user", "and now?")
    edited = conversations.add_message(store, conversation, reply, "user", "and then?")
    assert [each.content for each in conversations.path(store, edited)] == ["hello", "hi", "and then?"]
    assert [each.id for each in conversations.children(store, reply)] == [second, edited]
    assert conversations.own_conversation(store, owner, conversation)["leaf"] == edited


def test_a_retry_is_a_second_reply_to_the_same_message(store: Database, owner: User) -> None:
    message, left, right = two_replies(store, owner)
    assert [each.id for each in conversations.children(store, message)] == [left, right]


def test_the_chat_goes_on_from_the_chosen_reply(store: Database, owner: User) -> None:
    _, left, right = two_replies(store, owner)
    conversation = conversations.node(store, left).conversation
    compare(store, owner, left, right, "left")
    assert conversations.own_conversation(store, owner, conversation)["leaf"] == left


def test_chats_are_listed_newest_first_with_a_title_until_hidden(store: Database, owner: User) -> None:
    two_replies(store, owner, "the older one")
    two_replies(store, owner, "the  newer\none")
    listed = conversations.conversations(store, owner)
    assert [each["title"] for each in listed] == ["the newer one", "the older one"]
    conversations.hide(store, owner, listed[0]["id"])
    assert [each["title"] for each in conversations.conversations(store, owner)] == ["the older one"]


@pytest.mark.parametrize(
    ("text", "says"), [("", "empty"), (" \n", "empty"), ("x" * 100_001, "at most 100,000 characters")]
)
def test_an_unusable_message_is_refused_and_changes_nothing(store: Database, owner: User, text: str, says: str) -> None:
    conversation = conversations.start_conversation(store, owner)
    with pytest.raises(Refused, match=says):
        conversations.add_message(store, conversation, None, "user", text)
    assert store.row("SELECT count(*) AS n FROM messages") == {"n": 0}


def test_nobody_sees_or_rates_what_is_anothers(store: Database, owner: User) -> None:
    message, left, right = two_replies(store, owner)
    conversation = conversations.node(store, message).conversation
    other = users.add_user(store, "other", "operator", "x")
    for attempt in (
        lambda: conversations.own_conversation(store, other, conversation),
        lambda: conversations.own_node(store, other, message),
        lambda: conversations.go_to(store, other, left),
        lambda: conversations.hide(store, other, conversation),
        lambda: conversations.pair_of(store, other, left, right),
        lambda: vote(store, other, left, UP),
        lambda: compare(store, other, left, right, "tie"),
        lambda: rank(store, other, [left, right], [1, 2]),
        lambda: correct(store, other, left, "better"),
        lambda: critique(store, other, left, "rude"),
    ):
        with pytest.raises(NotFound):
            attempt()
    assert conversations.conversations(store, other) == []
    assert set(counts(store).values()) == {0}


def test_names_are_unique_whatever_their_case(store: Database) -> None:
    users.add_user(store, "Ada", "chatter", "x")
    with pytest.raises(Conflict):
        users.add_user(store, "ada", "rater", "x")
    with pytest.raises(Refused, match="a role is one of"):
        users.add_user(store, "Bob", "king", "x")


def test_a_token_is_its_persons_until_revoked(store: Database, owner: User) -> None:
    token = users.add_token(store, owner, "script")
    assert users.user_of_token(store, token) == owner
    assert token not in str(store.rows("SELECT * FROM tokens"))
    users.revoke_token(store, owner, "script")
    assert users.user_of_token(store, token) is None


def test_half_a_character_is_refused_wherever_text_is_said(store: Database, owner: User) -> None:
    _, left, _ = two_replies(store, owner)
    for attempt in (
        lambda: conversations.record_messages(store, owner, "api", [Message("user", "a\ud800")]),
        lambda: vote(store, owner, left, 1, words="\ud800"),
        lambda: correct(store, owner, left, "\ud800"),
    ):
        with pytest.raises(Refused, match="half of a character"):
            attempt()


def test_a_conversation_is_read_with_every_branch_and_every_beginning(store: Database, owner: User) -> None:
    message, left, right = two_replies(store, owner)
    conversation = conversations.node(store, message).conversation
    begun_anew = conversations.add_message(store, conversation, None, "user", "hello again")
    assert [each.id for each in conversations.tree(store, conversation)] == [message, left, right, begun_anew]
    assert [each.id for each in conversations.siblings(store, conversations.node(store, message))] == [
        message,
        begun_anew,
    ]
    assert [each.id for each in conversations.siblings(store, conversations.node(store, right))] == [left, right]
