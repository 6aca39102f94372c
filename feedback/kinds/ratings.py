"""What people said about replies: votes, comparisons, rankings, corrections, critiques.

Appended, never changed: the newest row of a person about a thing is what stands, an empty one takes it back.
A person rates replies in their own conversations, and those that a question has shown them (`questions`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any

from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.chats.conversations import checked
from feedback.database.database import Database, now
from feedback.errors import Refused
from feedback.kinds.rate_limit import require_pace

UP, NONE, DOWN = 1, 0, -1
CHOICES = ("left", "right", "tie", "both_bad", "cannot_tell", "taken_back")
REASONS = {  # stored by key, shown by words
    "untrue": "Not true",
    "unhelpful": "Not helpful",
    "ignored": "Did not follow what I asked",
    "too_long": "Too long",
    "too_short": "Too short",
    "style": "Style or tone",
    "unsafe": "Harmful or unsafe",
    "other": "Something else",
}
TABLES = ("votes", "comparisons", "rankings", "corrections", "critiques", "labels")
KINDS = {  # of feedback -> what gives it; taking something back gives nothing
    "thumbs_up": "votes WHERE value = 1",
    "thumbs_down": "votes WHERE value = -1",
    "comparisons": "comparisons WHERE choice <> 'taken_back'",
    "rankings": "rankings WHERE NOT taken_back",
    "corrections": "corrections WHERE text <> ''",
    "critiques": "critiques WHERE text <> ''",
}


@dataclass(frozen=True)
class Day:
    """How often people said something on one day, for each of `KINDS`."""

    day: date
    counts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True)
class Vote:
    """A person's standing thumb on a reply."""

    reply: str
    value: int
    reasons: tuple[str, ...]
    words: str


def vote(store: Database, user: User, reply: str, value: int, reasons: Sequence[str] = (), words: str = "") -> int:
    """A thumb: UP, DOWN, or NONE to take it back; the row's id.

    Raises `Refused` on another value or reason and where consent is lacking, `NotFound` on a reply that this person was
    not shown (`conversations.ratable_reply`), `TooOften` as `rate_limit.require_pace` does.
    """
    if type(value) is not int or value not in (UP, NONE, DOWN):
        raise Refused(f"a vote is 1, 0 or -1, not {value!r}")
    reasons = checked_reasons(reasons)
    with store.transaction():
        conversations.ratable_reply(store, user, reply, taking_back=value == NONE)
        if value != NONE:
            require_pace(store, user)
        row = {"user": user.id, "reply": reply, "value": value, "reasons": reasons, "words": checked(words)}
        return store.insert("votes", row | {"at": now()})


def checked_reasons(reasons: Sequence[str]) -> list[str]:
    """Reasons as they are kept. Raises `Refused` on one that is not among `REASONS`."""
    unknown = [reason for reason in reasons if reason not in REASONS]
    if unknown:
        raise Refused(f"unknown reason {unknown[0]!r}; a reason is one of {', '.join(REASONS)}")
    return list(dict.fromkeys(reasons))


def compare(
    store: Database,
    user: User,
    left: str,
    right: str,
    choice: str,
    strength: int | None = None,
    words: str = "",
    reasons: Sequence[str] = (),
    shown_s: float | None = None,
) -> int:
    """A choice between two replies to one message; the row's id. The chat goes on from the chosen one.

    `shown_s` is how many seconds both were on the screen. Raises `Refused` on an unknown choice, strength or reason, or
    replies to different messages; `NotFound` as `vote` does.
    """
    if choice not in CHOICES:
        raise Refused(f"a choice is one of {', '.join(CHOICES)}, not {choice!r}")
    if strength is not None and (type(strength) is not int or not 1 <= strength <= 5):
        raise Refused(f"a strength is 1 to 5, not {strength!r}")
    if shown_s is not None and not (type(shown_s) in (int, float) and 0 <= shown_s < math.inf):
        raise Refused(f"shown_s is a number of seconds, not {shown_s!r}")
    if left == right:
        raise Refused("a comparison needs two different replies")
    with store.transaction():
        first, second = (
            conversations.ratable_reply(store, user, each, choice == "taken_back") for each in (left, right)
        )
        if first.parent != second.parent:
            raise Refused("a comparison is between two replies to the same message")
        if choice != "taken_back":
            require_pace(store, user)
        row = {"user": user.id, "left_reply": left, "right_reply": right, "choice": choice, "strength": strength}
        row |= {"words": checked(words), "reasons": checked_reasons(reasons), "shown_s": shown_s}
        done = store.insert("comparisons", row | {"question": answered(store, user, (left, right)), "at": now()})
        chosen = {"left": left, "right": right}.get(choice)
        if chosen and conversations.is_own(store, user, first.conversation):
            conversations.go_to(store, user, chosen)
    return done


def rank(
    store: Database,
    user: User,
    replies: Sequence[str],
    ranks: Sequence[int],
    all_wrong: bool = False,
    taken_back: bool = False,
) -> int:
    """Ranks (1 is best, equal ranks are ties) of two or more replies to one message; the row's id.

    `all_wrong` says that even the best of them will not do. Raises `Refused` on a malformed ranking, `NotFound` as
    `vote` does.
    """
    if len(replies) < 2 or len(set(replies)) != len(replies):
        raise Refused("a ranking needs two or more different replies")
    if len(ranks) != len(replies) or any(type(each) is not int or each < 1 for each in ranks):
        raise Refused("a ranking gives every reply a whole number from 1")
    with store.transaction():
        parents = {conversations.ratable_reply(store, user, reply, taken_back).parent for reply in replies}
        if len(parents) != 1:
            raise Refused("a ranking is of replies to the same message")
        if not taken_back:
            require_pace(store, user)
        row = {"user": user.id, "parent": parents.pop(), "replies": list(replies), "ranks": list(ranks)}
        row |= {"all_wrong": int(all_wrong), "taken_back": int(taken_back)}
        return store.insert("rankings", row | {"question": answered(store, user, replies), "at": now()})


def answered(store: Database, user: User, replies: Sequence[str]) -> str | None:
    """The open question that a rating of these replies answers, which is answered by it; None if nobody asked."""
    parent = conversations.node(store, replies[0]).parent
    sql = """SELECT id, replies FROM questions WHERE parent = ? AND user = ?
        ORDER BY answered_at IS NOT NULL, seq DESC"""  # the open one, else the one that was answered last
    for row in store.rows(sql, parent, user.id):
        if set(json.loads(row["replies"])) == set(replies):
            with store.transaction() as db:
                sql = "UPDATE questions SET answered_at = coalesce(answered_at, ?) WHERE id = ?"
                db.conn.execute(sql, (now(), row["id"]))
            return str(row["id"])
    return None


def correct(store: Database, user: User, reply: str, text: str) -> int:
    """The reply as it should have been (empty: taken back); the row's id. Raises as `vote` does."""
    return _say(store, "corrections", user, reply, text)


def critique(store: Database, user: User, reply: str, text: str) -> int:
    """What is wrong with a reply, in words (empty: taken back); the row's id. Raises as `vote` does."""
    return _say(store, "critiques", user, reply, text)


def _say(store: Database, table: str, user: User, reply: str, text: str) -> int:
    with store.transaction():
        row = {"user": user.id, "reply": reply, "text": checked(text).strip(), "at": now()}
        conversations.ratable_reply(store, user, reply, taking_back=not row["text"])
        if row["text"]:
            require_pace(store, user)
        return store.insert(table, row)


def standing_vote(store: Database, user: User, reply: str) -> Vote | None:
    """This person's thumb on a reply as it stands; None if there is none or it was taken back."""
    sql = "SELECT value, reasons, words FROM votes WHERE reply = ? AND user = ? ORDER BY id DESC LIMIT 1"
    row = store.row(sql, reply, user.id)
    if row is None or row["value"] == NONE:
        return None
    return Vote(reply, row["value"], tuple(json.loads(row["reasons"])), row["words"])


def standing_choice(store: Database, user: User, left: str, right: str) -> str | None:
    """This person's choice between two replies, as `left` and `right` are named here; None if there is none."""
    sql = """SELECT left_reply, choice FROM comparisons WHERE user = ? AND left_reply IN (?, ?)
        AND right_reply IN (?, ?) ORDER BY id DESC LIMIT 1"""
    row = store.row(sql, user.id, left, right, left, right)
    if row is None or row["choice"] == "taken_back":
        return None
    if row["left_reply"] == left or row["choice"] not in ("left", "right"):
        return str(row["choice"])
    return "right" if row["choice"] == "left" else "left"


def standing_correction(store: Database, user: User, reply: str) -> str | None:
    """This person's correction of a reply as it stands, if any."""
    sql = "SELECT text FROM corrections WHERE reply = ? AND user = ? ORDER BY id DESC LIMIT 1"
    row = store.row(sql, reply, user.id)
    return row["text"] or None if row else None


def counts(store: Database) -> dict[str, int]:
    """How many rows of each kind of feedback the store holds."""
    # Rows are never removed, so the newest one's number is their count; a count would read the whole table.
    query = "SELECT " + ", ".join(f"(SELECT coalesce(max(id), 0) FROM {kind}) AS {kind}" for kind in TABLES)
    row: dict[str, Any] = store.row(query) or {}
    return row


def position(store: Database) -> list[int]:
    """A list of numbers that changes with every piece of feedback; as cheap on a large store as on a small one."""
    query = "SELECT " + ", ".join(f"(SELECT coalesce(max(id), 0) FROM {each}) AS {each}" for each in TABLES)
    return list((store.row(query) or {}).values())


def by_day(store: Database, zone: tzinfo, days: int = 14) -> list[Day]:
    """What was said on each of the last days up to today, oldest first, by the clocks of a time zone."""
    today = datetime.now(zone).date()
    found = {today - timedelta(days=ago): dict.fromkeys(KINDS, 0) for ago in reversed(range(days))}
    since = datetime.combine(min(found), time(), zone).astimezone(UTC).isoformat(timespec="milliseconds")
    for kind, given in KINDS.items():
        # By quarters of an hour, of which every time zone's days are made.
        quarter = "substr(at, 1, 14) || substr('0' || (substr(at, 15, 2) / 15 * 15), -2)"
        sql = f"SELECT {quarter} AS quarter, count(*) AS number FROM {given} AND at >= ? GROUP BY 1"
        for row in store.rows(sql, since):
            day = datetime.fromisoformat(row["quarter"]).replace(tzinfo=UTC).astimezone(zone).date()
            if day in found:
                found[day][kind] += row["number"]
    return [Day(day, counted) for day, counted in found.items()]
