"""Which feedback teaches, which says when to stop, and which judges."""

from pathlib import Path

import pytest

from feedback.accounts import users
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.database.openings import JUDGING, STOPPING
from feedback.example_types import Answer, Examples, PreferencePair, UnpairedExample
from feedback.examples.build import gather
from feedback.examples.filtering import PEOPLE
from feedback.examples.split import Places, judges, split
from feedback.kinds.comparison import compare
from feedback.messages import Message
from tests.conftest import BY_BASE, PLACES

QUESTIONS = (Path(__file__).parents[2] / "training" / "rehearsal" / "prompts.txt").read_text().splitlines()


def pair(question: str, user: int = 1) -> PreferencePair:
    return PreferencePair((Message("user", question),), Answer("yes"), Answer("no"), user=user)


def rate(store: Database, name: str, questions: list[str]) -> int:
    """A person who likes the first of two replies to each question; their number."""
    person = users.add_user(store, name, "rater", None)
    users.set_consent(store, person, True)
    for question in questions:
        parent = conversations.record_messages(store, person, "chat", [Message("user", question)])
        left, right = (conversations.add_reply(store, parent, text, BY_BASE) for text in ("yes", "no"))
        compare(store, person, left, right, "left")
    return person.id


def test_every_example_is_in_one_part_and_the_parts_have_their_shares():
    examples = Examples(tuple(pair(each) for each in QUESTIONS), left_out={"tie": 3})
    parts = split(examples, PLACES)
    sizes = [len(each) for each in (parts.training, parts.stopping, parts.held_out)]
    assert sum(sizes) == len(QUESTIONS)
    assert sizes[2] / len(QUESTIONS) == pytest.approx(JUDGING, abs=0.05)
    assert sizes[1] / len(QUESTIONS) == pytest.approx(STOPPING, abs=0.04)
    assert parts.training.left_out == {"tie": 3}


def test_a_conversation_stays_where_it_is_whatever_else_is_said():
    before = {each: PLACES.part_of(pair(each)) for each in QUESTIONS}
    assert {each: PLACES.part_of(pair(each, user=7)) for each in reversed(QUESTIONS)} == before
    for question, part in before.items():
        later = (Message("user", question), Message("assistant", "Hm."), Message("user", "And then?"))
        assert PLACES.part_of(PreferencePair(later, Answer("a"), Answer("b"))) == part
        assert PLACES.part_of(UnpairedExample(later, Answer("a"), True)) == part


def test_conversations_that_open_alike_go_together():
    assert {PLACES.part_of(pair(text)) for text in ("What is TEA?", " what is  tea?", "What is tea?")} == {
        PLACES.part_of(pair("what is tea?"))
    }


def test_below_five_people_nobody_is_kept_for_judging(store):
    for name in ("ann", "ben", "cat", "dan"):
        rate(store, name, QUESTIONS[:3])
    assert judges(store, gather(store), settle=True) == frozenset()


def test_from_five_people_on_newcomers_may_be_judges_and_nobody_ever_changes_sides(store):
    first = {rate(store, f"early {number}", QUESTIONS[:1]) for number in range(PEOPLE - 1)}
    assert judges(store, gather(store), settle=True) == frozenset()
    late = {rate(store, f"late {number}", QUESTIONS[:1]) for number in range(40)}

    found = judges(store, gather(store), settle=True)

    assert found
    assert found < late
    assert not found & first
    rate(store, "latest", QUESTIONS[:1])
    assert found <= judges(store, gather(store))
    assert judges(store, Examples(), settle=True) == found  # also when nobody's word stands any more


def test_looking_settles_nothing(store):
    for number in range(30):
        rate(store, f"person {number}", QUESTIONS[:1])
    judges(store, gather(store))
    assert store.rows("SELECT * FROM split_people") == []


def test_all_that_a_judge_says_judges():
    judging = Places(PLACES.secret, judges=frozenset({5}))
    for question in QUESTIONS[:50]:
        assert judging.part_of(pair(question, user=5)) == "held_out"
