"""What is asked next, of whom, and with what chance."""

import random
from collections import Counter

import numpy as np
import pytest
import sqlite_utils

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.database.migrations import steps
from feedback.errors import NotFound, Refused
from feedback.kinds.comparison import compare
from feedback.kinds.ranking import rank
from feedback.messages import Message
from feedback.raters import agreement, questions
from feedback.raters.questions import EVENLY, Item, chances, next_question
from feedback.records import settings
from tests.conftest import BY_BASE, two_replies


def rater(store: Database, name: str, role: str = "rater") -> User:
    user = users.add_user(store, name, role, None)
    users.set_consent(store, user, True)
    return user


def test_a_question_is_answered_once_and_keeps_its_chance(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    ann = rater(store, "ann")
    asked = next_question(store, ann)
    assert asked is not None
    assert (asked.kind, asked.messages, asked.propensity) == ("comparison", (Message("user", "hello"),), 1.0)
    assert {reply for reply, _ in asked.replies} == {left, right}
    assert next_question(store, ann) == asked  # until it is answered
    compare(store, ann, asked.replies[0][0], asked.replies[1][0], "left", shown_s=2.5)
    (row,) = store.rows("SELECT question, shown_s FROM comparisons")
    assert row == {"question": asked.id, "shown_s": 2.5}
    again = next_question(store, ann)
    assert again is not None
    assert again.why == "repeat"  # nothing else is left


def test_others_replies_may_be_rated_only_where_a_question_shows_them(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    leaf = conversations.own_conversation(store, consenting, conversations.node(store, left).conversation)["leaf"]
    ann = rater(store, "ann")
    with pytest.raises(NotFound):
        compare(store, ann, left, right, "left")
    assert next_question(store, ann)
    compare(store, ann, left, right, "left")
    assert (
        conversations.own_conversation(store, consenting, conversations.node(store, left).conversation)["leaf"] == leaf
    )


def test_nobody_is_shown_what_its_owner_keeps_to_themselves(store: Database, owner: User) -> None:
    message, _, _ = two_replies(store, owner)
    ann, chatter = rater(store, "ann"), rater(store, "chatter", "chatter")
    assert next_question(store, ann) is None
    users.set_consent(store, owner, True)
    assert next_question(store, chatter) is None
    users.set_conversation_consent(store, owner, conversations.node(store, message).conversation, False)
    assert next_question(store, ann) is None
    assert next_question(store, owner) is not None  # one's own, always


def test_three_replies_are_ranked(store: Database, consenting: User) -> None:
    message, _, _ = two_replies(store, consenting)
    conversations.add_reply(store, message, "good evening", BY_BASE)
    asked = next_question(store, consenting)
    assert asked is not None
    assert (asked.kind, len(asked.replies)) == ("ranking", 3)
    rank(store, consenting, [reply for reply, _ in asked.replies], [1, 2, 3])
    assert store.rows("SELECT question FROM rankings") == [{"question": asked.id}]


def test_an_item_is_asked_until_enough_people_have_answered(store: Database, consenting: User) -> None:
    two_replies(store, consenting)
    settings.set_setting(store, None, "raters_per_question", 2)
    for number in (1, 2):
        user = rater(store, f"rater {number}")
        asked = next_question(store, user)
        assert asked is not None
        compare(store, user, *(reply for reply, _ in asked.replies), "left")
    third = rater(store, "rater 3")
    assert next_question(store, third) is None
    settings.set_setting(store, None, "raters_per_question", 3)
    assert next_question(store, third) is not None
    with pytest.raises(Refused, match="whole number of people from 1"):
        settings.set_setting(store, None, "raters_per_question", 0)


def test_the_sides_are_drawn_and_left_is_met_as_often(store: Database, consenting: User) -> None:
    _, left, _ = two_replies(store, consenting)
    settings.set_setting(store, None, "raters_per_question", 99)
    first = Counter(
        next_question(store, rater(store, f"rater {n}"), random.Random(n)).replies[0][0] == left  # type: ignore[union-attr]
        for n in range(60)
    )
    assert 15 < first[True] < 45


def test_chances_sum_to_one_favour_what_teaches_and_leave_nothing_out() -> None:
    items = [
        Item("plain", ("a", "b"), 3, False),
        Item("unrated", ("a", "b"), 0, False),
        Item("torn", ("a", "b"), 0, True, disagreement=1.5, margin=0.0),
        Item("clear", ("a", "b"), 0, True, disagreement=0.1, margin=4.0),
    ]
    found = dict(zip((item.parent for item in items), chances(items), strict=True))
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= EVENLY / len(items)
    assert found["torn"] > found["clear"] > found["unrated"] > found["plain"]


def test_what_is_drawn_is_drawn_as_often_as_its_propensity_says(store: Database, consenting: User) -> None:
    for text in "abcd":
        two_replies(store, consenting, text)
    scored = store.rows("SELECT m.id FROM messages m JOIN messages p ON p.id = m.parent WHERE p.content = 'a'")
    for row, mean in zip(scored, (0.1, 0.0), strict=True):
        store.insert("reward_scores", {"reply": row["id"], "mean": mean, "deviation": 1.0, "at": "now"})
    drawn, told = Counter[str](), {}
    for seed in range(400):
        asked = next_question(store, consenting, random.Random(seed))
        assert asked is not None
        drawn[asked.messages[0].content] += 1
        told[asked.messages[0].content] = asked.propensity
        with store.transaction() as db:  # as if it had never been asked
            db.conn.execute("DELETE FROM questions")
    assert sum(told.values()) == pytest.approx(1)
    for text, count in drawn.items():
        assert count / 400 == pytest.approx(told[text], abs=4 * (told[text] / 400) ** 0.5)
    assert drawn["a"] > max(drawn[text] for text in "bcd")


def test_scores_are_of_what_may_be_asked_and_the_newest_stand(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    conversation = conversations.node(store, left).conversation
    assert questions.newest(store, 10) == [[left, right]]
    questions.keep_scores(store, {left: (0.5, 0.1), right: (-0.5, 0.2)})
    questions.keep_scores(store, {left: (1.0, 3.0), right: (0.0, 1.0)})
    (item,), _ = questions.items(store, consenting, 1)
    assert (item.margin, item.disagreement) == (1.5, pytest.approx(0.5))  # 1 and 2 apart
    users.set_conversation_consent(store, consenting, conversation, False)
    assert questions.newest(store, 10) == []


def test_reward_models_disagree_by_the_spread_of_their_margins(store: Database, consenting: User) -> None:
    """Each of five models likes all replies to a prompt more or less, which is no preference."""
    chance = np.random.default_rng(0)
    scores, truth, independent = {}, {}, {}
    for number in range(40):
        message, *replies = two_replies(store, consenting, f"question {number}")
        own = chance.normal(0, chance.uniform(0, 0.5), (2, 5)) + chance.normal(0, 1, (2, 1))
        given = own + chance.normal(0, 2, 5)
        scores |= dict(zip(replies, given.tolist(), strict=True))
        truth[message] = (given[0] - given[1]).std()
        independent[message] = np.hypot(*given.std(1))
    questions.keep_scores(store, scores)
    items, _ = questions.items(store, consenting, 1)
    assert {each.parent: each.disagreement for each in items} == pytest.approx(truth)
    assert min(independent[each] / truth[each] for each in truth) > 2
    by_rank = [np.argsort(np.argsort([one[each] for each in truth])) for one in (truth, independent)]
    assert abs(np.corrcoef(*by_rank)[0, 1]) < 0.5


def test_scores_of_before_each_models_were_kept_are_still_read(tmp_path) -> None:
    old = sqlite_utils.Database(tmp_path / "nightschool.db")
    steps.apply(old, stop_before="m0010_members_scores")
    old.close()
    store = Database(tmp_path)
    me = users.local_owner(store)
    users.set_consent(store, me, True)
    _, left, right = two_replies(store, me)
    for reply, mean, deviation in ((left, 1.0, 0.3), (right, 0.0, 0.4)):
        store.insert("reward_scores", {"reply": reply, "mean": mean, "deviation": deviation, "at": "then"})
    (item,), _ = questions.items(store, me, 1)
    assert (item.margin, item.disagreement) == (1.0, pytest.approx(0.5))
    store.close()


def test_agreement_with_oneself_is_counted_on_repeats(store: Database, consenting: User) -> None:
    two_replies(store, consenting)
    chosen = []
    for _ in range(3):
        asked = next_question(store, consenting)
        assert asked is not None
        left, right = (reply for reply, _ in asked.replies)
        better = min(left, right) if len(chosen) < 2 else max(left, right)
        chosen.append(better)
        compare(store, consenting, left, right, "left" if better == left else "right")
    found = agreement.consistency(store)
    assert (found.part, found.whole) == (1, 2)


def test_the_queue_is_empty_where_nothing_can_be_asked(store: Database, consenting: User) -> None:
    assert next_question(store, consenting) is None
    assert questions.items(store, consenting, 1) == ([], [])
    with pytest.raises(Refused):
        users.add_user(store, "", "rater", None)
