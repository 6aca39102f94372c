"""Answers to questions that were not drawn evenly, in estimates over all that might have been asked."""

import random

import pytest
import sqlite_utils

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import Database
from feedback.database.migrations import steps
from feedback.examples.build import gather
from feedback.kinds.comparison import compare
from feedback.messages import Message
from feedback.raters import leaderboard, propensity
from feedback.raters.leaderboard import Choice, board
from feedback.raters.questions import EVENLY, next_question
from feedback.records import settings
from tests.conftest import two_replies

ITEMS, TORN, ASKED = 40, 8, 200


def rater(store: Database, name: str) -> User:
    user = users.add_user(store, name, "rater", None)
    users.set_consent(store, user, True)
    return user


@pytest.fixture
def ledger(store: Database, consenting: User) -> Database:
    """Questions to many people, each drawn from all conversations: "kind" is preferred but where models are torn."""
    settings.set_setting(store, None, "raters_per_question", 1000)
    for number in range(ITEMS):
        parent = conversations.record_messages(store, consenting, "chat", [Message("user", f"question {number}")])
        torn = number < TORN
        for model, mean in (("kind", 0.0), ("rude", 0.0 if torn else 4.0)):
            by = Provenance(None, None, None, {"model": model})
            reply = conversations.add_reply(store, parent, f"{model} {'torn' if torn else 'clear'}", by)
            scored = {"reply": reply, "mean": mean, "deviation": 1.5 if torn else 0.01, "at": "now"}
            store.insert("reward_scores", scored)
    for number in range(ASKED):
        user = rater(store, f"rater {number}")
        asked = next_question(store, user, random.Random(number))
        assert asked is not None
        better = "rude torn" if any("torn" in text for _, text in asked.replies) else "kind clear"
        (left, first), (right, _) = asked.replies
        compare(store, user, left, right, "left" if first == better else "right")
    return store


def test_a_share_of_what_was_asked_is_that_of_what_might_have_been(ledger: Database) -> None:
    drawn = [(each.drawn, "torn" in each.chosen.text) for each in gather(ledger).pairs]
    assert len(drawn) == ASKED
    asked = sum(torn for _, torn in drawn) / ASKED
    weighed = sum(weight * torn for weight, torn in drawn) / sum(weight for weight, _ in drawn)
    assert asked > 0.5
    assert weighed == pytest.approx(TORN / ITEMS, abs=0.06)
    assert max(weight for weight, _ in drawn) <= propensity.MOST == 1 / EVENLY


def test_the_leaderboard_is_of_evenly_drawn_conversations(ledger: Database) -> None:
    made = leaderboard.choices(ledger)
    even = board([Choice("kind", "rude", float(number >= TORN)) for number in range(ITEMS)], draws=0, covariates=False)
    found = board(made, draws=0, covariates=False)
    asked = board([Choice(c.left, c.right, c.result) for c in made], draws=0, covariates=False)
    (truth,), (ours,), (theirs,) = (
        [each.strength for each in one.standings if each.name == "kind"] for one in (even, found, asked)
    )
    assert truth > 0.5
    assert theirs < 0  # among what was asked, the other one wins
    assert ours == pytest.approx(truth, abs=0.25)
    assert sum(each.weight for each in made) < ASKED  # uneven weights tell less than as many even ones


def test_a_repeat_weighs_as_its_first_asking_and_an_old_question_as_an_even_one(
    store: Database, consenting: User
) -> None:
    _, left, right = two_replies(store, consenting)
    row = {"user": consenting.id, "kind": "comparison", "parent": conversations.node(store, left).parent, "why": "even"}
    row |= {"asked_at": "now", "propensity": 0.5}
    store.insert("questions", row | {"id": "first", "replies": [left, right], "evenly": 0.25})
    store.insert("questions", row | {"id": "again", "replies": [right, left], "evenly": 0.5, "why": "repeat"})
    store.insert("questions", row | {"id": "far", "replies": [right], "evenly": 1.0, "propensity": 0.01})
    store.insert("questions", row | {"id": "old", "replies": [left]})
    assert propensity.weights(store) == {"first": 0.5, "again": 0.5, "far": 1 / EVENLY, "old": 1.0}


def test_weights_tell_as_much_as_their_effective_number() -> None:
    assert propensity.effective([1.0] * 7) == pytest.approx(7)
    assert propensity.effective([3.0, 1.0]) == pytest.approx(16 / 10)
    assert propensity.effective([]) == 0


def test_a_ledger_of_before_keeps_its_questions(tmp_path) -> None:
    old = sqlite_utils.Database(tmp_path / "nightschool.db")
    steps.apply(old, stop_before="m0009_drawn_evenly")
    old.conn.execute("INSERT INTO users (name, role, created_at) VALUES ('ada', 'rater', 'now')")
    old.conn.execute("PRAGMA foreign_keys = OFF")
    old.conn.execute(
        """INSERT INTO questions (id, user, kind, parent, replies, why, propensity, asked_at)
        VALUES ('q', 1, 'comparison', 'm', '["a", "b"]', 'even', 0.1, 'now')"""
    )
    old.conn.commit()
    old.close()
    store = Database(tmp_path)
    assert propensity.weights(store) == {"q": 1.0}
    store.close()
