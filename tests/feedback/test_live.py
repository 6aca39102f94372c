"""Choices between two adapters, as people meet them: whose count, how, and in what words."""

import pytest

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import Database
from feedback.kinds.comparison import compare
from feedback.messages import Message
from feedback.raters import evidence, live
from feedback.records import adapters
from feedback.records.adapters import Adapter


def person(store: Database, name: str, consents: bool = True) -> User:
    user = users.add_user(store, name, "chatter", None)
    users.set_consent(store, user, consents)
    return user


def by(adapter: str | None) -> Provenance:
    return Provenance(adapter=adapter, base_sha256="b" * 64, template_sha256="t" * 64, sampling={})


@pytest.fixture
def house(store: Database) -> Database:
    for name in ("one", "two"):
        adapters.add_adapter(store, Adapter(name, None, None, "dpo", "b", "w", "candidate", "", "2026-01-01"))
    return store


def chooses(
    store: Database,
    user: User,
    choice: str,
    left: str | None = "two",
    right: str | None = None,
    at: str = "2026-03-01T12:00:00.000+00:00",
    shown: bool = True,
) -> None:
    """A person chooses between two replies, by these adapters (None: the base)."""
    parent = conversations.record_messages(store, user, "chat", [Message("user", "Well?")])
    replies = [conversations.add_reply(store, parent, text, by(who)) for text, who in (("a", left), ("b", right))]
    if shown:
        conversations.add_pair(store, parent, *replies, "share")
    row = compare(store, user, *replies, choice)
    with store.transaction() as db:
        db.conn.execute("UPDATE comparisons SET at = ? WHERE id = ?", (at, row))


def test_choices_between_the_two_count_whichever_side_they_were_on(house):
    ada = person(house, "ada")
    for day, (choice, left, right) in enumerate(
        [("left", "two", None), ("right", None, "two"), ("right", "two", None), ("tie", "two", None)], 1
    ):
        chooses(house, ada, choice, left, right, at=f"2026-03-0{day}T12:00:00.000+00:00")
    found = live.met(house, "two", None, since="")
    assert (found.votes.units.tolist(), found.votes.total.tolist()) == ([4.0], [0.5])
    assert (found.choices, found.nights) == (3, 4)


def test_what_is_not_a_blind_choice_of_a_consenting_person_between_these_two_does_not_count(house):
    ada, shy = person(house, "ada"), person(house, "shy", consents=False)
    chooses(house, ada, "left", "two", "one")  # another opponent
    chooses(house, ada, "left", "two", "two")  # itself
    chooses(house, ada, "cannot_tell")
    chooses(house, ada, "left", shown=False)  # picked by a program
    chooses(house, ada, "left", at="2026-01-01T12:00:00.000+00:00")  # too early
    chooses(house, shy, "left")
    found = live.met(house, "two", None, since="2026-02-01")
    assert (found.choices, found.nights, found.votes.units.tolist()) == (0, 0, [0.0])


def test_an_evening_of_clicks_is_one_vote(house):
    ada, bob = person(house, "ada"), person(house, "bob")
    for _ in range(30):
        chooses(house, ada, "left")
    chooses(house, bob, "right")
    found = live.met(house, "two", None, since="")
    assert (found.votes.units.tolist(), found.votes.total.tolist()) == ([1.0, 1.0], [0.5, -0.5])
    assert found.choices == 31
    assert float(evidence.e_value(found.preference)) < 1


def test_it_is_told_in_words_and_figures(house):
    ada = person(house, "ada")
    for day in range(1, 21):
        chooses(house, ada, "right" if day % 5 == 0 else "left", at=f"2026-03-{day:02}T12:00:00.000+00:00")
    found = live.met(house, "two", None, since="")
    value = float(evidence.e_value(found.preference))
    assert found.words(1 / 160) == f"e = {value:.3g} of 160, 20 decisive votes of 1 person, 80 % ± 22"
    assert found.measurements()["e"] == pytest.approx(value)
    assert found.measurements() | {"rate": 0.8, "people": 1, "choices": 20, "nights": 20} == found.measurements()
    nothing = live.met(house, "one", None, since="")
    assert nothing.words(1 / 8) == "e = 1 of 8, 0 decisive votes of 0 people, 50 %"
    assert nothing.measurements()["error"] is None
