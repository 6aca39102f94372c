"""Standing feedback as training examples, with a counted reason for everything left out.

The rules, all in one place:
- a choice of left or right is a `Pair`; a tie teaches nothing yet; "both bad" is a thumbs-down on each of the two,
  unless that person gave the reply a thumb of their own
- a ranking is every pair of its replies that are not tied
- a correction is a `Pair`: the text as it should have been over the reply as it was
- a thumb is a `Thumb`
- what was taken back, what has no consent, and what is empty or equal on both sides teaches nothing
The same feedback gives the same examples in the same order, and the same hash.
Left out on purpose: tokens and lengths, which belong to a model (`training/batches`).
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from feedback import talk
from feedback.ratings import NONE, UP
from feedback.store import Store
from feedback.talk import Message


@dataclass(frozen=True)
class Answer:
    """One reply as a trainer sees it."""

    text: str
    token_ids: tuple[int, ...] = ()  # as they were sampled; empty where a person wrote it
    template_sha256: str | None = None  # whose token ids they are
    finish: str = "stop"  # only a reply that ended by itself has an end to learn


@dataclass(frozen=True)
class Pair:
    """Two replies to one conversation, the preferred one first."""

    messages: tuple[Message, ...]
    chosen: Answer
    rejected: Answer
    kind: str = "comparison"  # "comparison", "ranking" or "correction"
    weight: float = 1.0
    user: int = 0  # who said so


@dataclass(frozen=True)
class Thumb:
    """One reply to one conversation, wanted or not."""

    messages: tuple[Message, ...]
    answer: Answer
    wanted: bool
    weight: float = 1.0
    user: int = 0  # who said so


@dataclass(frozen=True)
class Examples:
    """What stands of what people said, as a trainer sees it."""

    pairs: tuple[Pair, ...] = ()
    thumbs: tuple[Thumb, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hex digest of everything that would be trained on."""
        body = {"pairs": [asdict(each) for each in self.pairs], "thumbs": [asdict(each) for each in self.thumbs]}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.pairs) + len(self.thumbs)

    def counts(self) -> dict[str, Any]:
        """How many of each kind there are, and what was left out and why."""
        kinds = Counter(pair.kind for pair in self.pairs)
        ups = sum(thumb.wanted for thumb in self.thumbs)
        return {**kinds, "thumbs_up": ups, "thumbs_down": len(self.thumbs) - ups, "left_out": self.left_out}


# The newest row per person and thing. Ratings count only of people whose newest word on consent is yes.
STANDING = """
WITH newest AS (SELECT max(id) AS id FROM {table} GROUP BY {thing}, user),
consenting AS (SELECT user FROM consents WHERE id IN (SELECT max(id) FROM consents GROUP BY user) AND given)
SELECT t.*, t.user IN (SELECT user FROM consenting) AS consented
FROM {table} t JOIN newest USING (id) ORDER BY t.id
"""
UNORDERED = "min(left_reply, right_reply), max(left_reply, right_reply)"


def gather(store: Store) -> Examples:
    """Everything that stands in the store, as examples, oldest feedback first."""
    left_out: Counter[str] = Counter()
    pairs: list[Pair] = []
    thumbs: list[Thumb] = []
    votes = list(_standing(store, "votes", "reply", left_out))
    own_thumbs = {(row["user"], row["reply"]) for row in votes if row["value"] != NONE}

    for row in votes:
        if row["value"] == NONE:
            left_out["taken back"] += 1
        else:
            _add_thumb(store, thumbs, left_out, row["user"], row["reply"], wanted=row["value"] == UP)

    for row in _standing(store, "comparisons", UNORDERED, left_out):
        left, right = row["left_reply"], row["right_reply"]
        match row["choice"]:
            case "left":
                _add_pair(store, pairs, left_out, row["user"], left, right, "comparison")
            case "right":
                _add_pair(store, pairs, left_out, row["user"], right, left, "comparison")
            case "tie":
                left_out["tie"] += 1
            case "taken_back":
                left_out["taken back"] += 1
            case "both_bad":
                for reply in (left, right):
                    if (row["user"], reply) not in own_thumbs:
                        _add_thumb(store, thumbs, left_out, row["user"], reply, wanted=False)

    for row in _standing(store, "rankings", "parent", left_out):
        ranked = zip(json.loads(row["replies"]), json.loads(row["ranks"]), strict=True)
        for (first, first_rank), (second, second_rank) in itertools.combinations(ranked, 2):
            if first_rank == second_rank:
                left_out["tie"] += 1
            elif first_rank < second_rank:
                _add_pair(store, pairs, left_out, row["user"], first, second, "ranking")
            else:
                _add_pair(store, pairs, left_out, row["user"], second, first, "ranking")

    for row in _standing(store, "corrections", "reply", left_out):
        if not row["text"]:
            left_out["taken back"] += 1
        else:
            _add_correction(store, pairs, left_out, row["user"], row["reply"], row["text"])

    return Examples(tuple(pairs), tuple(thumbs), dict(sorted(left_out.items())))


def _standing(store: Store, table: str, thing: str, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """The standing rows of one kind whose person consents."""
    for row in store.rows(STANDING.format(table=table, thing=thing)):
        if row["consented"]:
            yield row
        else:
            left_out["no consent"] += 1


def _answer(store: Store, reply: str) -> Answer:
    by = talk.provenance(store, reply)
    return Answer(talk.node(store, reply).content, by.token_ids, by.template_sha256, by.finish)


def _context(store: Store, reply: str) -> tuple[Message, ...]:
    return talk.messages_of(talk.path(store, reply)[:-1])


def _add_thumb(store: Store, thumbs: list[Thumb], left_out: Counter[str], user: int, reply: str, wanted: bool) -> None:
    answer = _answer(store, reply)
    if not answer.text.strip():
        left_out["empty reply"] += 1
    else:
        thumbs.append(Thumb(_context(store, reply), answer, wanted, user=user))


def _add_pair(
    store: Store, pairs: list[Pair], left_out: Counter[str], user: int, better: str, worse: str, kind: str
) -> None:
    chosen, rejected = _answer(store, better), _answer(store, worse)
    if not chosen.text.strip():
        left_out["empty reply"] += 1
    elif chosen.text == rejected.text:
        left_out["equal replies"] += 1
    else:
        pairs.append(Pair(_context(store, better), chosen, rejected, kind, user=user))


def _add_correction(store: Store, pairs: list[Pair], left_out: Counter[str], user: int, reply: str, text: str) -> None:
    rejected = _answer(store, reply)
    if text.strip() == rejected.text.strip():
        left_out["equal replies"] += 1
    else:
        pairs.append(Pair(_context(store, reply), Answer(text), rejected, "correction", user=user))
