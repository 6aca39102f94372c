"""Corrections: a reply as it should have been.

A correction makes a preference pair (the corrected text over the reply) and a demonstration.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from feedback.accounts.users import User
from feedback.annotations import DEMONSTRATION, Annotation, Record, Reply
from feedback.chats import conversations
from feedback.chats.conversations import checked
from feedback.database.database import Database, now
from feedback.example_types import Answer, Demonstration, Made, PreferencePair
from feedback.kinds.base import Body, Context, Daily, Kind, ReplyId, Row, answer_of, register, whose
from feedback.kinds.comparison import COMPARISON
from feedback.kinds.rate_limit import require_pace


class Words(Body):
    """Text about a reply; empty takes back what was said before."""

    reply: ReplyId
    text: str


def correct(store: Database, user: User, reply: str, text: str) -> int:
    """Record a reply as it should have been (empty: taken back) and return the row's id. Raises as `vote` does."""
    return say(store, CORRECTION, user, reply, text)


def say(store: Database, kind: Kind, user: User, reply: str, text: str) -> int:
    """Add a row of a kind that is text about a reply (empty: taken back) and return its id. Raises as `vote` does."""
    with store.transaction():
        row = {"user": user.id, "reply": reply, "text": checked(text).strip(), "at": now()}
        conversations.ratable_reply(store, user, reply, taking_back=not row["text"])
        if row["text"]:
            require_pace(store, user)
        return store.insert(kind.table, row)


def standing_correction(store: Database, user: User, reply: str) -> str | None:
    """This person's current correction of a reply, if any."""
    sql = f"SELECT text FROM {CORRECTION.table} WHERE reply = ? AND user = ? ORDER BY id DESC LIMIT 1"
    row = store.row(sql, reply, user.id)
    return row["text"] or None if row else None


def _examples(row: Row, context: Context) -> Iterator[Made]:
    rejected = context.told[row["reply"]]
    if row["text"].strip() == rejected.text.strip():
        context.left_out["equal replies"] += 1
        return
    chosen = Answer(row["text"])
    yield row["at"], PreferencePair(rejected.messages, chosen, answer_of(rejected), CORRECTION.name, **whose(row))
    yield row["at"], Demonstration(rejected.messages, chosen, **whose(row))


def says(row: Row) -> dict[str, Any]:
    """The annotation fields of a kind that is text about a reply."""
    return {"text": row["text"]}


def possible(said: Annotation) -> bool:
    """Whether an annotation is text about one reply."""
    return len(said.of) == 1 and bool(said.text)


def row_of(said: Annotation, parent: str | None, replies: list[str]) -> Row:
    """The row of a kind that is text about a reply."""
    return {"reply": replies[0], "text": said.text}


def _demonstration(whole: Record) -> Iterator[Record]:
    (said,) = whole.said
    shown = Annotation("label", (0,), said.rater, said.at, label=DEMONSTRATION)
    yield replace(whole, replies=(Reply(said.text),), said=(shown,))


def _pair(whole: Record) -> Iterator[Record]:
    """A correction as a comparison in which it is preferred to the original reply."""
    (said,) = whole.said
    compared = Annotation(COMPARISON.name, (0, 1), said.rater, said.at, choice="left")
    yield replace(whole, replies=(Reply(said.text), *whole.replies), said=(compared,))


CORRECTION = register(
    Kind(
        table="corrections",
        name="correction",
        help="Write a reply as it should have been.",
        body=Words,
        write=correct,
        taken_back=("text", ""),
        forgotten={"text": ""},
        quotes=("text",),
        daily=(Daily("corrections", "corrections"),),
        examples=_examples,
        says=says,
        possible=possible,
        row=row_of,
        instead={"demonstration": _demonstration, "corrected pair": _pair},
    )
)
