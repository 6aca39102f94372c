"""Whatever is said, changed, taken back or sent twice: what stands is what was acknowledged last."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from feedback.accounts import idempotency, users
from feedback.database.database import Database
from feedback.examples import build
from feedback.kinds import history
from feedback.kinds.comparison import CHOICES, compare, standing_choice
from feedback.kinds.correction import correct, standing_correction
from feedback.kinds.label import label, labels
from feedback.kinds.ranking import rank
from feedback.kinds.tally import counts
from feedback.kinds.vote import DOWN, NONE, UP, standing_vote, vote
from tests.conftest import two_replies

KEYS = st.integers(0, 9)
SIDES = st.booleans()


class Ledger(RuleBasedStateMachine):
    """One person and two replies; a model of what should stand beside the real store, reopened now and then."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = Database(self.folder)
        self.user = users.local_owner(self.store)
        users.set_consent(self.store, self.user, True)
        _, self.left, self.right = two_replies(self.store, self.user)
        self.answers: dict[str, tuple[Any, dict[str, Any]]] = {}
        self.said = 0
        self.vote: int = NONE
        self.choice: str | None = None  # with the left reply on the left
        self.correction = ""
        self.unsafe = False
        self.compared = (0, "")  # when, and which reply was preferred; empty: neither
        self.ranked = (0, "")

    def once(self, key: int, request: dict[str, Any], act: Any) -> bool:
        """Say it under a key; whether it was acted on, and not answered as before or refused."""
        name = f"key-{key}"
        before = self.answers.get(name)
        if before is not None and before[0] != request:
            return False  # the caller would be told to take a new key; tested elsewhere
        answer, repeated = idempotency.once(self.store, self.user, name, request, act)
        assert repeated == (before is not None)
        if before is not None:
            assert answer == before[1]
            return False
        self.answers[name] = (request, answer)
        time.sleep(0.002)  # what is said in the same millisecond has no order between kinds
        self.said += 1
        return True

    @rule(key=KEYS, value=st.sampled_from([UP, NONE, DOWN]))
    def thumb(self, key: int, value: int) -> None:
        if self.once(key, {"vote": value}, lambda: {"id": vote(self.store, self.user, self.left, value)}):
            self.vote = value

    @rule(key=KEYS, choice=st.sampled_from(CHOICES), exchanged=SIDES)
    def compare(self, key: int, choice: str, exchanged: bool) -> None:
        sides = (self.right, self.left) if exchanged else (self.left, self.right)
        if self.once(
            key,
            {"choice": choice, "exchanged": exchanged},
            lambda: {"id": compare(self.store, self.user, *sides, choice)},
        ):
            turned = {"left": "right", "right": "left"} if exchanged else {}
            self.choice = None if choice == "taken_back" else turned.get(choice, choice)
            silent = choice in ("taken_back", "cannot_tell", "both_bad")
            self.compared = (0, "") if silent else (self.said, "" if choice == "tie" else str(self.choice))

    @rule(key=KEYS, text=st.sampled_from(["", "good day", "well met"]))
    def correct(self, key: int, text: str) -> None:
        if self.once(key, {"text": text}, lambda: {"id": correct(self.store, self.user, self.right, text)}):
            self.correction = text

    @rule(key=KEYS, given=st.booleans())
    def label(self, key: int, given: bool) -> None:
        if self.once(key, {"given": given}, lambda: {"id": label(self.store, self.user, self.left, "unsafe", given)}):
            self.unsafe = given

    @rule(key=KEYS, ranks=st.lists(st.integers(1, 3), min_size=2, max_size=2), taken_back=st.booleans())
    def rank(self, key: int, ranks: list[int], taken_back: bool) -> None:
        replies = [self.left, self.right]
        if self.once(
            key,
            {"ranks": ranks, "back": taken_back},
            lambda: {"id": rank(self.store, self.user, replies, ranks, taken_back=taken_back)},
        ):
            preferred = "" if ranks[0] == ranks[1] else "left" if ranks[0] < ranks[1] else "right"
            self.ranked = (0, "") if taken_back else (self.said, preferred)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Database(self.folder)

    @invariant()
    def what_stands_is_what_was_said_last(self) -> None:
        if not hasattr(self, "store"):
            return
        standing = standing_vote(self.store, self.user, self.left)
        assert (standing.value if standing else NONE) == self.vote
        assert standing_choice(self.store, self.user, self.left, self.right) == self.choice
        assert (standing_correction(self.store, self.user, self.right) or "") == self.correction
        assert bool(labels(self.store, self.user, self.left)) == self.unsafe
        assert sum(counts(self.store).values()) == self.said

    @invariant()
    def what_teaches_is_what_stands(self) -> None:
        if not hasattr(self, "store"):
            return
        gathered = build.gather(self.store)
        kinds = [pair.kind for pair in gathered.pairs]
        # A comparison and a ranking of the same two replies are two words on one thing: the newer one teaches.
        _, preferred = max(self.compared, self.ranked)
        decided = [pair.chosen.text for pair in gathered.pairs if pair.kind != "correction"]
        assert decided == ([{"left": "good day to you", "right": "go away"}[preferred]] if preferred else [])
        assert kinds.count("correction") == bool(self.correction)
        ups = [thumb.wanted for thumb in gathered.thumbs if thumb.answer.text == "good day to you"]
        if self.vote != NONE:
            assert ups == [self.vote == UP]

    @invariant()
    def nothing_that_was_said_is_gone(self) -> None:
        if not hasattr(self, "store"):
            return
        both = [*history.entries(self.store, self.user, self.left), *history.entries(self.store, self.user, self.right)]
        assert len({(each.kind, each.id) for each in both}) == self.said

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


TestLedger = Ledger.TestCase
TestLedger.settings = settings(
    max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
