"""What people said, and what of it teaches."""

import pytest

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.examples import build
from feedback.kinds.comparison import compare, standing_choice
from feedback.kinds.correction import correct
from feedback.kinds.ranking import rank
from feedback.kinds.tally import counts
from feedback.kinds.vote import DOWN, NONE, UP, Thumb, standing_vote, vote
from tests.conftest import two_replies


def test_a_vote_taken_back_is_no_vote(store: Database, consenting: User) -> None:
    _, left, _ = two_replies(store, consenting)
    vote(store, consenting, left, DOWN, ["untrue"], "no such thing")
    assert standing_vote(store, consenting, left) == Thumb(left, DOWN, ("untrue",), "no such thing")
    vote(store, consenting, left, NONE)
    assert standing_vote(store, consenting, left) is None
    assert counts(store)["votes"] == 2  # the history stays
    gathered = build.gather(store)
    assert (gathered.thumbs, gathered.left_out) == ((), {"taken back": 1})


@pytest.mark.parametrize("value", [2, "", True, 0.5, None])
def test_a_vote_is_up_none_or_down(store: Database, owner: User, value: object) -> None:
    _, left, _ = two_replies(store, owner)
    with pytest.raises(Refused, match="a vote is 1, 0 or -1"):
        vote(store, owner, left, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("choice", "strength", "says"), [("up", None, "a choice is one of"), ("left", 6, "1 to 5"), ("left", 0, "1 to 5")]
)
def test_a_malformed_choice_is_refused(
    store: Database, owner: User, choice: str, strength: int | None, says: str
) -> None:
    _, left, right = two_replies(store, owner)
    with pytest.raises(Refused, match=says):
        compare(store, owner, left, right, choice, strength)
    with pytest.raises(Refused, match="two different replies"):
        compare(store, owner, left, left, "tie")
    _, elsewhere, _ = two_replies(store, owner)
    with pytest.raises(Refused, match="the same message"):
        compare(store, owner, left, elsewhere, "tie")


def test_a_choice_is_a_pair_and_its_newest_word_counts(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    compare(store, consenting, left, right, "right")
    compare(store, consenting, right, left, "right")  # sides exchanged: the left reply, this time
    (pair,) = build.gather(store).pairs
    assert (pair.chosen.text, pair.rejected.text, pair.kind) == ("good day to you", "go away", "comparison")
    assert [message.content for message in pair.messages] == ["hello"]
    assert standing_choice(store, consenting, left, right) == "left"
    compare(store, consenting, left, right, "taken_back")
    assert build.gather(store).pairs == ()
    assert standing_choice(store, consenting, left, right) is None


def test_both_bad_is_two_thumbs_down_and_a_tie_teaches_nothing(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    compare(store, consenting, left, right, "both_bad")
    vote(store, consenting, left, UP)  # a thumb of one's own outweighs it
    gathered = build.gather(store)
    assert [(thumb.answer.text, thumb.wanted) for thumb in gathered.thumbs] == [
        ("good day to you", True),
        ("go away", False),
    ]
    compare(store, consenting, left, right, "tie")
    gathered = build.gather(store)
    assert (len(gathered.thumbs), gathered.pairs, gathered.left_out) == (1, (), {"tie": 1})


def test_a_correction_is_preferred_to_what_it_corrects(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    correct(store, consenting, left, "  a very good day to you ")
    correct(store, consenting, right, "go away")  # nothing is changed by it
    gathered = build.gather(store)
    (pair,) = gathered.pairs
    assert (pair.chosen.text, pair.rejected.text) == ("a very good day to you", "good day to you")
    assert pair.chosen.token_ids == ()
    assert gathered.left_out == {"equal replies": 1}
    correct(store, consenting, left, "")
    assert build.gather(store).left_out == {"equal replies": 1, "taken back": 1}


def test_a_ranking_is_every_pair_that_is_not_tied(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    rank(store, consenting, [left, right], [2, 1])
    assert [pair.chosen.text for pair in build.gather(store).pairs] == ["go away"]
    rank(store, consenting, [left, right], [1, 1])
    assert build.gather(store).left_out == {"tie": 1}
    with pytest.raises(Refused, match="whole number from 1"):
        rank(store, consenting, [left, right], [0, 1])


def test_without_consent_nothing_teaches_and_consent_can_be_withdrawn(store: Database, owner: User) -> None:
    _, left, right = two_replies(store, owner)
    vote(store, owner, left, UP)
    compare(store, owner, left, right, "left")
    assert build.gather(store).left_out == {"no consent": 2}
    users.set_consent(store, owner, True)
    assert len(build.gather(store).pairs) == 1
    users.set_consent(store, owner, False)
    assert build.gather(store).counts() == {"thumbs_up": 0, "thumbs_down": 0, "left_out": {"no consent": 2}}


def test_the_same_feedback_has_the_same_hash(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    compare(store, consenting, left, right, "left")
    first = build.gather(store).sha256
    assert build.gather(store).sha256 == first
    vote(store, consenting, left, UP)
    assert build.gather(store).sha256 != first
