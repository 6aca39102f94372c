"""Thumbs: whether a reply is wanted, and why. A thumb makes an unpaired example."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from feedback.accounts.users import User
from feedback.annotations import Annotation
from feedback.chats import conversations
from feedback.chats.conversations import checked
from feedback.database.database import Database, now
from feedback.errors import Refused
from feedback.example_types import Made
from feedback.kinds.base import Body, Context, Daily, Kind, ReplyId, Row, register
from feedback.kinds.rate_limit import require_pace

UP, NONE, DOWN = 1, 0, -1
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


class Vote(Body):
    """A thumb on a reply."""

    reply: ReplyId
    value: int = Field(description="1: up, -1: down, 0: taken back.")
    reasons: list[str] = Field([], description=f"Any of: {', '.join(REASONS)}.")
    words: str = Field("", description="What was good or bad, in words.")


@dataclass(frozen=True)
class Thumb:
    """A person's current thumb on a reply."""

    reply: str
    value: int
    reasons: tuple[str, ...]
    words: str


def vote(store: Database, user: User, reply: str, value: int, reasons: Sequence[str] = (), words: str = "") -> int:
    """Record a thumb (UP, DOWN, or NONE to take it back) and return the row's id.

    Raises `Refused` on another value or reason or without consent, `NotFound` on a reply that this person was not shown
    (`conversations.ratable_reply`), and `TooOften` as `rate_limit.require_pace` does.
    """
    if type(value) is not int or value not in (UP, NONE, DOWN):
        raise Refused(f"a vote is 1, 0 or -1, not {value!r}")
    reasons = checked_reasons(reasons)
    with store.transaction():
        conversations.ratable_reply(store, user, reply, taking_back=value == NONE)
        if value != NONE:
            require_pace(store, user)
        row = {"user": user.id, "reply": reply, "value": value, "reasons": reasons, "words": checked(words)}
        return store.insert(VOTE.table, row | {"at": now()})


def checked_reasons(reasons: Sequence[str]) -> list[str]:
    """Reasons without duplicates. Raises `Refused` on one that is not in `REASONS`."""
    unknown = [reason for reason in reasons if reason not in REASONS]
    if unknown:
        raise Refused(f"unknown reason {unknown[0]!r}; a reason is one of {', '.join(REASONS)}")
    return list(dict.fromkeys(reasons))


def standing_vote(store: Database, user: User, reply: str) -> Thumb | None:
    """This person's current thumb on a reply; None if there is none or it was taken back."""
    sql = f"SELECT value, reasons, words FROM {VOTE.table} WHERE reply = ? AND user = ? ORDER BY id DESC LIMIT 1"
    row = store.row(sql, reply, user.id)
    if row is None or row["value"] == NONE:
        return None
    return Thumb(reply, row["value"], tuple(json.loads(row["reasons"])), row["words"])


def _examples(row: Row, context: Context) -> Iterator[Made]:
    return context.thumb(row, row["reply"], row["value"] == UP)


def _ratings(row: Row) -> Iterator[tuple[str, float]]:
    yield row["reply"], float(row["value"])


def _says(row: Row) -> dict[str, Any]:
    return {"value": row["value"], "words": row["words"], "reasons": tuple(json.loads(row["reasons"]))}


def _possible(said: Annotation) -> bool:
    return len(said.of) == 1 and said.value in (UP, DOWN)


def _row(said: Annotation, parent: str | None, replies: list[str]) -> Row:
    return {"reply": replies[0], "value": said.value, "reasons": list(said.reasons), "words": said.words}


VOTE = register(
    Kind(
        table="votes",
        name="thumb",
        help="Thumb up, down, or taken back. The newest one counts.",
        body=Vote,
        write=vote,
        taken_back=("value", NONE),
        json_columns=("reasons",),
        forgotten={"words": "", "reasons": "[]"},
        daily=(
            Daily("thumbs_up", "thumbs up", f"value = {UP}"),
            Daily("thumbs_down", "thumbs down", f"value = {DOWN}"),
        ),
        examples=_examples,
        ratings=_ratings,
        says=_says,
        possible=_possible,
        row=_row,
    )
)
