"""What of what people said becomes an example, what does not and why, and what it costs."""

import math
from dataclasses import replace
from typing import Any

import pytest

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.annotations import Annotation
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.example_types import Answer, Examples, PreferencePair
from feedback.examples import build, filtering
from feedback.examples.build import gather
from feedback.examples.filtering import PEOPLE
from feedback.kinds import current
from feedback.kinds.comparison import compare
from feedback.kinds.correction import correct
from feedback.kinds.label import label
from feedback.kinds.ranking import RANKING, rank
from feedback.kinds.signal import SIGNALS, signal
from feedback.kinds.vote import DOWN, UP, vote
from feedback.messages import Message
from tests.conftest import BY_BASE, PLACES, two_replies


def rater(store: Database, name: str) -> User:
    """A person who lets ratings teach."""
    user = users.add_user(store, name, "rater", None)
    users.set_consent(store, user, True)
    return user


def asked(store: Database, user: User, question: str, *replies: str) -> list[str]:
    """A question of this person's with replies: their ids."""
    parent = conversations.record_messages(store, user, "chat", [Message("user", question)])
    return [conversations.add_reply(store, parent, text, BY_BASE) for text in replies]


def test_the_same_said_twice_of_the_same_texts_counts_once(store: Database, consenting: User) -> None:
    for _ in range(3):
        _, left, right = two_replies(store, consenting)
        compare(store, consenting, left, right, "left")
    gathered = gather(store)
    assert (len(gathered.pairs), gathered.left_out) == (1, {"duplicate": 2})


def test_of_two_words_that_contradict_each_other_the_newer_counts(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    compare(store, consenting, left, right, "left")
    rank(store, consenting, [left, right], [2, 1])
    gathered = gather(store)
    assert [pair.kind for pair in gathered.pairs] == ["ranking"]
    assert gathered.left_out == {"contradicts itself": 1}


def test_two_people_may_contradict_each_other(store: Database) -> None:
    for name, choice in (("ann", "left"), ("ben", "right"), ("cat", "tie")):
        user = rater(store, name)
        compare(store, user, *asked(store, user, "hello", "good day", "go away"), choice)
    gathered = gather(store)
    assert (len(gathered.pairs), len(gathered.ties), gathered.left_out) == (2, 1, {"tie": 1})


def test_a_ranking_keeps_its_pairs_together_and_may_say_that_all_are_wrong(store: Database, consenting: User) -> None:
    replies = asked(store, consenting, "rank these", "one", "two", "three")
    rank(store, consenting, replies, [2, 1, 2], all_wrong=True)
    vote(store, consenting, replies[1], UP)  # a thumb of one's own outweighs it
    gathered = gather(store)
    assert [(pair.chosen.text, pair.rejected.text) for pair in gathered.pairs] == [("two", "one"), ("two", "three")]
    assert {pair.group for pair in (*gathered.pairs, *gathered.ties)} == {"ranking 1"}
    assert sorted((thumb.answer.text, thumb.wanted) for thumb in gathered.thumbs) == [
        ("one", False),
        ("three", False),
        ("two", True),
    ]
    rank(store, consenting, replies, [1, 2, 3], taken_back=True)
    assert gather(store).left_out == {"taken back": 1}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_ranking_weighs_as_one_comparison_less_than_its_replies(
    store: Database, consenting: User, count: int
) -> None:
    replies = asked(store, consenting, "rank these", *(f"reply {number}" for number in range(count)))
    rank(store, consenting, replies, [1, 1, *range(2, count)])  # two are tied
    compare(store, consenting, *asked(store, consenting, "choose", "yes", "no"), "left")
    gathered = gather(store)
    ranked = [each for each in (*gathered.pairs, *gathered.ties) if each.group]
    assert len(ranked) == count * (count - 1) / 2
    assert sum(each.weight for each in ranked) == pytest.approx(count - 1)
    assert [each.weight for each in gathered.pairs if not each.group] == [1.0]


def test_what_cannot_be_told_teaches_nothing(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    compare(store, consenting, left, right, "cannot_tell")
    assert gather(store).left_out == {"cannot tell": 1}


def test_corrections_and_labelled_replies_are_demonstrations(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    correct(store, consenting, right, "please go")
    label(store, consenting, left, "demonstration")
    assert [each.answer.text for each in gather(store).demonstrations] == ["please go", "good day to you"]
    label(store, consenting, left, "demonstration", given=False)
    assert [each.answer.text for each in gather(store).demonstrations] == ["please go"]


def test_signals_teach_nothing(store: Database, consenting: User) -> None:
    _, left, _ = two_replies(store, consenting)
    for kind in SIGNALS:
        signal(store, consenting, left, kind)
    assert gather(store) == Examples()


def test_a_conversation_may_be_kept_from_teaching(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    compare(store, consenting, left, right, "left")
    conversation = conversations.node(store, left).conversation
    users.set_conversation_consent(store, consenting, conversation, False)
    assert (gather(store).pairs, gather(store).left_out) == ((), {"no consent": 1})
    users.set_conversation_consent(store, consenting, conversation, True)
    assert len(gather(store).pairs) == 1


def test_one_person_teaches_at_most_so_many_prompts_once_five_rate(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filtering, "MOST_PROMPTS", 3)
    everybody = [rater(store, f"rater {number}") for number in range(PEOPLE)]
    long = "Summarise this report for me, please: " + "it was a long year. " * 20
    for question in ("one", "two", long + "A", long + "B", "three"):  # the long ones are near-duplicates
        vote(store, everybody[0], asked(store, everybody[0], question, "yes")[0], UP)
    for user in everybody[1:-1]:
        vote(store, user, asked(store, user, "one", "yes")[0], UP)
    assert gather(store).people()[everybody[0].id] == 5  # four people are no five
    vote(store, everybody[-1], asked(store, everybody[-1], "one", "yes")[0], DOWN)
    gathered = gather(store)
    assert gathered.left_out == {"rater cap": 1}
    mine = [each.messages[0].content for each in gathered.thumbs if each.user == everybody[0].id]
    assert mine == ["two", long + "A", long + "B", "three"]


def test_near_duplicates_go_the_same_way() -> None:
    long = "Translate the following letter into French. " + "Dear Madam, " * 30
    parts = {
        PLACES.part_of(PreferencePair((Message("user", f"{long} {n}"),), Answer("a"), Answer("b"))) for n in range(50)
    }
    assert len(parts) == 1


def test_what_was_said_since_a_position_is_found_alone(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    compare(store, consenting, left, right, "left")
    vote(store, consenting, left, UP)
    here = current.position(store)
    assert gather(store, here) == Examples()
    vote(store, consenting, left, DOWN)
    vote(store, consenting, right, DOWN)
    vote(store, consenting, right, UP)
    new = gather(store, here)
    assert [(each.answer.text, each.wanted) for each in new.thumbs] == [("good day to you", False), ("go away", True)]
    assert new.pairs == ()


def test_the_hash_is_of_what_is_trained_on_and_of_nothing_else(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    compare(store, consenting, left, right, "left")
    gathered = gather(store)
    assert replace(gathered, left_out={"tie": 7}).sha256 == gathered.sha256
    heavier = replace(gathered.pairs[0], weight=0.5)
    assert heavier == gathered.pairs[0]  # an interrupted night goes on though others spoke meanwhile
    assert build.Examples((heavier,)).sha256 != gathered.sha256


@pytest.mark.parametrize("ranks", [(1, math.nan), (1, 1.5), (True, 2), (0, 1), (1, math.inf)])
def test_a_rank_from_a_file_is_a_whole_number_from_1(ranks: tuple[Any, ...]) -> None:
    assert RANKING.possible(Annotation("ranking", (0, 1), ranks=(1, 2)))
    assert not RANKING.possible(Annotation("ranking", (0, 1), ranks=ranks))
