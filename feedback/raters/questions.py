"""The choice of the next comparison or ranking to ask a rater.

Seven in ten questions favour items that should teach most: where the reward models disagree or see a near-tie, where
the replies come from different adapters, where nobody has answered yet. Three in ten are drawn uniformly. Each question
records the probability with which it was drawn, and with which it would have been if all were drawn uniformly, by which
measurements are reweighted (`propensity`). One in twenty
repeats a pair that the same person has answered before, to measure their consistency.
People are asked about their own conversations; raters who consent to the use of their ratings are also asked about
conversations whose owners consent (`consent`). A question that may no longer be asked is skipped.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from feedback.accounts import consent, users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database, new_id, now
from feedback.kinds import current
from feedback.kinds.base import Kind
from feedback.kinds.comparison import COMPARISON
from feedback.kinds.ranking import RANKING
from feedback.messages import Message
from feedback.records import settings

EVENLY = 0.3  # the share of questions drawn uniformly
REPEATED = 0.05  # the share of repeats
POOL = 4000  # the number of newest replies to draw questions from
MOST_RANKED = 4  # replies in one ranking


@dataclass(frozen=True)
class Item:
    """A message with two or more replies that could be asked about."""

    parent: str
    replies: tuple[str, ...]
    answers: int  # the number of other people who have answered
    differ: bool  # whether the replies come from different adapters
    disagreement: float = 0.0  # of the reward models on the difference of the two best rewards (`disagreement`)
    margin: float | None = None  # between the two best mean rewards


@dataclass(frozen=True)
class Question:
    """A question put to a person, to be answered by a comparison or a ranking of its replies."""

    id: str
    kind: str  # "comparison" or "ranking"
    messages: tuple[Message, ...]
    replies: tuple[tuple[str, str], ...]  # id and text, in screen order
    why: str  # "even", "teaches" or "repeat"
    propensity: float


def next_question(store: Database, user: User, chance: random.Random | None = None) -> Question | None:
    """The question to ask this person now: the one still open, else a new, recorded one; None if there is none.

    An item is asked about until the number of people in the setting `raters_per_question` have answered.
    """
    chance = chance or random.SystemRandom()
    overlap = settings.setting(store, "raters_per_question")
    with store.transaction():
        waiting = _askable(store, user, "q.answered_at IS NULL")
        if waiting:
            return _question(store, waiting)
        fresh, before = items(store, user, overlap)
        again = bool(before) and (not fresh or chance.random() < REPEATED)
        asked = before if again else fresh
        if not asked:
            return None
        shares = [1 / len(asked)] * len(asked) if again else chances(asked)
        even = again or chance.random() < EVENLY
        drawn = chance.choice(asked) if even else chance.choices(asked, teaching(asked))[0]
        coin = 1 if not (fresh and before) else REPEATED if again else 1 - REPEATED
        row: dict[str, Any] = {
            "id": new_id(),
            "user": user.id,
            "kind": "comparison" if len(drawn.replies) == 2 else "ranking",
            "parent": drawn.parent,
            "replies": chance.sample(drawn.replies, len(drawn.replies)),
            "why": "repeat" if again else "even" if even else "teaches",
            "propensity": shares[asked.index(drawn)] * coin,
            "evenly": coin / len(asked),
            "asked_at": now(),
        }
        store.insert("questions", row)
        return _question(store, row | {"replies": json.dumps(row["replies"])})


def question(store: Database, user: User, asked: str) -> Question | None:
    """A question that was put to this person, answered or not; None if they may no longer see it."""
    row = _askable(store, user, "q.id = ?", asked)
    return _question(store, row) if row else None


def _askable(store: Database, user: User, which: str, *values: str) -> dict[str, Any] | None:
    """This person's first question that may be asked and meets the SQL condition `which`."""
    sql = f"""SELECT q.* FROM questions q
        JOIN messages m ON m.id = q.parent JOIN conversations c ON c.id = m.conversation
        WHERE q.user = ? AND (c.user = q.user OR (? AND {consent.usable("q.user", "c")})) AND {which} ORDER BY q.seq"""
    return store.row(sql, user.id, user.may("rater"), *values)


def chances(items: Sequence[Item]) -> list[float]:
    """The probability of drawing each item; they sum to 1."""
    weights = teaching(items)
    total = sum(weights)
    return [EVENLY / len(items) + (1 - EVENLY) * weight / total for weight in weights]


def teaching(items: Sequence[Item]) -> list[float]:
    """Positive weights for how much an answer about each item should teach."""
    return [
        math.exp(
            (each.answers == 0)
            + each.differ
            + min(each.disagreement, 2.0)
            + (math.exp(-abs(each.margin)) if each.margin is not None else 0.0)
        )
        for each in items
    ]


def items(store: Database, user: User, overlap: int) -> tuple[list[Item], list[Item]]:
    """The items to ask this person about: those they have not answered, and pairs that they have."""
    rater = user.may("rater") and users.consent(store, user)
    found = _several(row for row in _pool(store) if row["owner"] == user.id or (row["shared"] and rater))
    told = current.briefs(store, [reply for replies in found.values() for reply in replies])
    answered = _answered(store, user, list(found))
    scores = {row["reply"]: row for row in store.rows("SELECT reply, mean, deviation, members FROM reward_scores")}
    fresh, before = [], []
    for parent, replies in found.items():
        who = answered.get(parent, set())
        scored = sorted((scores[each] for each in replies if each in scores), key=lambda row: -row["mean"])[:2]
        both = len(scored) == 2
        item = Item(
            parent,
            tuple(replies),
            len(who - {user.id}),
            len({told[each].model for each in replies}) > 1,
            disagreement(*scored) if both else 0.0,
            scored[0]["mean"] - scored[1]["mean"] if both else None,
        )
        if user.id in who:
            before += [item] if len(replies) == 2 else []
        elif len(who) < overlap:
            fresh.append(item)
    return fresh, before


def newest(store: Database, most: int) -> list[list[str]]:
    """The replies that raters could be asked about, grouped by message, newest first, for at most `most` messages."""
    return list(reversed(_several(row for row in _pool(store) if row["shared"]).values()))[:most]


def disagreement(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """How far the reward models are apart on which of two replies is better, from their rows of scores.

    It is the standard deviation over the models of the difference between the two, as in arXiv 1706.03741, section
    2.2.4: what a model adds to all replies to a prompt is no preference.
    """
    if first["members"] is None or second["members"] is None:  # of an older version: as if the two were independent
        return math.hypot(first["deviation"], second["deviation"])
    both = zip(json.loads(first["members"]), json.loads(second["members"]), strict=True)
    return pstdev(one - other for one, other in both)


def keep_scores(store: Database, scores: Mapping[str, Sequence[float]]) -> None:
    """Replace all reward scores by those of the newest reward models: of each reply, every model's score."""
    rows = [
        {"reply": reply, "mean": fmean(each), "deviation": pstdev(each), "members": json.dumps(list(each)), "at": now()}
        for reply, each in scores.items()
    ]
    with store.transaction() as db:
        db.table("reward_scores").delete_where()
        db.table("reward_scores").insert_all(rows)


def _pool(store: Database) -> Iterator[dict[str, Any]]:
    """The newest replies, oldest first, each with the conversation's owner and whether its words are shared."""
    sql = f"""SELECT m.id, m.parent, c.user AS owner, {consent.shared("c")} AS shared FROM
        (SELECT * FROM messages WHERE role = 'assistant' AND content <> '' ORDER BY seq DESC LIMIT ?) m
        JOIN conversations c ON c.id = m.conversation WHERE c.source <> 'import' ORDER BY m.seq"""
    yield from store.rows(sql, POOL)


def _several(rows: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """The newest `MOST_RANKED` replies to each message that has two or more."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["parent"], []).append(row["id"])
    return {parent: replies[-MOST_RANKED:] for parent, replies in found.items() if len(replies) > 1}


def _answered(store: Database, user: User, parents: list[str]) -> dict[str, set[int]]:
    """Who has compared or ranked replies to each message; others only if their answer is current and may be used."""

    def counts(kind: Kind) -> str:
        heard = f"{kind.gives('t')} AND {current.stands(kind)} AND {consent.given('t.user')}"
        return f"JOIN users u ON u.id = t.user WHERE t.user = :user OR ({heard})"

    sql = f"""SELECT m.parent, t.user FROM json_each(:parents) j JOIN messages m ON m.parent = j.value
        JOIN {COMPARISON.table} t ON t.left_reply = m.id {counts(COMPARISON)}
        UNION SELECT t.parent, t.user FROM json_each(:parents) j
        JOIN {RANKING.table} t ON t.parent = j.value {counts(RANKING)}"""
    found: dict[str, set[int]] = {}
    for row in store.rows(sql, {"parents": json.dumps(parents), "user": user.id}):
        found.setdefault(row["parent"], set()).add(row["user"])
    return found


def _question(store: Database, row: dict[str, Any]) -> Question:
    replies = [(each, conversations.node(store, each).content) for each in json.loads(row["replies"])]
    messages = conversations.messages_of(conversations.path(store, row["parent"]))
    return Question(row["id"], row["kind"], messages, tuple(replies), row["why"], float(row["propensity"]))
