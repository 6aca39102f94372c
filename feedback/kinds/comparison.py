"""Choices between two replies to one message.

A choice of left or right makes a preference pair, and a tie makes a tie, from which reward models learn. "Both bad"
makes a thumbs-down on each reply that the person gave no thumb themselves. "Can't tell" teaches nothing.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from feedback.accounts.users import User
from feedback.annotations import Annotation
from feedback.chats import conversations
from feedback.chats.conversations import checked
from feedback.database.database import Database, now
from feedback.errors import Refused
from feedback.example_types import TIE, Made
from feedback.kinds.base import Body, Context, Daily, Kind, ReplyId, Row, of_two, register
from feedback.kinds.rate_limit import require_pace
from feedback.kinds.vote import REASONS, VOTE, checked_reasons

TAKEN_BACK = "taken_back"
CHOICES = ("left", "right", "tie", "both_bad", "cannot_tell", TAKEN_BACK)
RATED = {"left": 1.0, "tie": 0.0, "right": -1.0}  # the rating of the left reply


class Comparison(Body):
    """A choice between two replies to one message."""

    left: ReplyId
    right: ReplyId
    choice: str = Field(description=f"One of: {', '.join(CHOICES)}.")
    strength: int | None = Field(None, description="How much better, 1 to 5.")
    words: str = ""
    reasons: list[str] = Field([], description=f"Any of: {', '.join(REASONS)}.")
    shown_s: float | None = Field(None, description="How many seconds both were on the screen.")


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
    """Record a choice between two replies to one message and return the row's id. The chat goes on from the chosen one.

    `shown_s` is how many seconds both were on the screen. Raises `Refused` on an unknown choice, strength or reason, or
    on replies to different messages, and `NotFound` as `vote` does.
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
        first, second = (conversations.ratable_reply(store, user, each, choice == TAKEN_BACK) for each in (left, right))
        if first.parent != second.parent:
            raise Refused("a comparison is between two replies to the same message")
        if choice != TAKEN_BACK:
            require_pace(store, user)
        row = {"user": user.id, "left_reply": left, "right_reply": right, "choice": choice, "strength": strength}
        row |= {"words": checked(words), "reasons": checked_reasons(reasons), "shown_s": shown_s}
        done = store.insert(COMPARISON.table, row | {"question": answered(store, user, (left, right)), "at": now()})
        chosen = {"left": left, "right": right}.get(choice)
        if chosen and conversations.is_own(store, user, first.conversation):
            conversations.go_to(store, user, chosen)
    return done


def answered(store: Database, user: User, replies: Sequence[str]) -> str | None:
    """Mark the question about these replies as answered and return its id; None if it was never asked."""
    parent = conversations.node(store, replies[0]).parent
    sql = """SELECT id, replies FROM questions WHERE parent = ? AND user = ?
        ORDER BY answered_at IS NOT NULL, seq DESC"""  # the open question first, then the newest answered one
    for row in store.rows(sql, parent, user.id):
        if set(json.loads(row["replies"])) == set(replies):
            with store.transaction() as db:
                sql = "UPDATE questions SET answered_at = coalesce(answered_at, ?) WHERE id = ?"
                db.conn.execute(sql, (now(), row["id"]))
            return str(row["id"])
    return None


def standing_choice(store: Database, user: User, left: str, right: str) -> str | None:
    """This person's current choice between two replies, in terms of `left` and `right` here; None if there is none."""
    sql = f"""SELECT left_reply, choice FROM {COMPARISON.table} WHERE user = ? AND left_reply IN (?, ?)
        AND right_reply IN (?, ?) ORDER BY id DESC LIMIT 1"""
    row = store.row(sql, user.id, left, right, left, right)
    if row is None or row["choice"] == TAKEN_BACK:
        return None
    if row["left_reply"] == left or row["choice"] not in ("left", "right"):
        return str(row["choice"])
    return "right" if row["choice"] == "left" else "left"


def _examples(row: Row, context: Context) -> Iterator[Made]:
    left, right = row["left_reply"], row["right_reply"]
    match row["choice"]:
        case "left":
            yield from context.pair(row, left, right, COMPARISON.name)
        case "right":
            yield from context.pair(row, right, left, COMPARISON.name)
        case "tie":
            context.left_out["tie"] += 1
            yield from context.pair(row, left, right, TIE)
        case "both_bad":
            for reply in (left, right):
                if not context.has_said(VOTE, row["user"], reply):
                    yield from context.thumb(row, reply, False)
        case other:
            context.left_out[other.replace("_", " ")] += 1  # "cannot_tell"


def _ratings(row: Row) -> Iterator[tuple[str, float]]:
    if row["choice"] in RATED:
        yield of_two(row["left_reply"], row["right_reply"], RATED[row["choice"]])


def _says(row: Row) -> dict[str, Any]:
    words = {"words": row["words"], "reasons": tuple(json.loads(row["reasons"]))}
    return {"choice": row["choice"], "strength": row["strength"]} | words


def _possible(said: Annotation) -> bool:
    return len(said.of) == 2 and said.choice in CHOICES


def _row(said: Annotation, parent: str | None, replies: list[str]) -> Row:
    both = {"left_reply": replies[0], "right_reply": replies[1], "choice": said.choice, "strength": said.strength}
    return both | {"words": said.words, "reasons": list(said.reasons)}


COMPARISON = register(
    Kind(
        table="comparisons",
        name="comparison",
        help="Choose between two replies to one message.",
        body=Comparison,
        write=compare,
        thing=("left_reply", "right_reply"),
        either_way=True,
        about="left_reply",
        of_reply="""id IN (SELECT id FROM comparisons WHERE left_reply = :reply
            UNION SELECT id FROM comparisons WHERE right_reply = :reply)""",
        replies=lambda row: [row["left_reply"], row["right_reply"]],
        taken_back=("choice", TAKEN_BACK),
        json_columns=("reasons",),
        forgotten={"words": "", "reasons": "[]"},
        daily=(Daily("comparisons", "comparisons"),),
        examples=_examples,
        ratings=_ratings,
        says=_says,
        possible=_possible,
        row=_row,
    )
)
