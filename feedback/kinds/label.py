"""Labels: properties that people ascribe to a reply, apart from its quality. Each holds until it is taken back.

A reply labelled a demonstration becomes one; other labels teach nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from feedback.accounts.users import User
from feedback.annotations import DEMONSTRATION, Annotation, Record
from feedback.chats import conversations
from feedback.chats.conversations import checked
from feedback.database.database import Database, now
from feedback.errors import Refused
from feedback.example_types import Demonstration, Made
from feedback.kinds.base import Body, Context, Kind, ReplyId, Row, answer_of, register, whose
from feedback.kinds.rate_limit import require_pace

LABELS = {  # stored by key, shown by words
    "unsafe": "Harmful or unsafe",
    "untrue": "Not true",
    "ambiguous_prompt": "The question can be read in several ways",
    "privacy": "Tells something private",
    DEMONSTRATION: "Just as it should be; learn to reply so",
}
CUSTOM = re.compile(r"custom:[a-z0-9][a-z0-9 _-]{0,39}")  # labels of a team's own


class Label(Body):
    """A label on a reply, apart from its quality."""

    reply: ReplyId
    label: str = Field(description=f"One of: {', '.join(LABELS)}; or custom:a few words.")
    given: bool = Field(True, description="false: taken back.")
    words: str = ""


@dataclass(frozen=True)
class Labelled:
    """A current label of a reply, and who gave it."""

    reply: str
    user: int
    label: str
    words: str


def label(store: Database, user: User, reply: str, label: str, given: bool = True, words: str = "") -> int:
    """Label a reply, or (`given` false) take the label back; return the row's id.

    Raises `Refused` on an unknown label, and otherwise as `vote` does.
    """
    if not is_label(label):
        raise Refused(f"unknown label {label!r}; a label is one of {', '.join(LABELS)}, or custom:a few words")
    with store.transaction():
        conversations.ratable_reply(store, user, reply, taking_back=not given)
        if given:
            require_pace(store, user)
        row = {"user": user.id, "reply": reply, "label": label, "given": int(given), "words": checked(words)}
        return store.insert(LABEL.table, row | {"at": now()})


def is_label(label: str) -> bool:
    """Whether a label is one of `LABELS` or a custom one."""
    return label in LABELS or bool(CUSTOM.fullmatch(label))


def labels(store: Database, user: User, reply: str) -> list[Labelled]:
    """This person's current labels of a reply."""
    table = LABEL.table
    sql = f"""SELECT reply, user, label, words FROM {table} WHERE reply = ? AND user = ? AND given AND id IN
        (SELECT max(id) FROM {table} WHERE reply = ? AND user = ? GROUP BY label) ORDER BY label"""
    return [Labelled(**row) for row in store.rows(sql, reply, user.id, reply, user.id)]


def _examples(row: Row, context: Context) -> Iterator[Made]:
    told = context.told[row["reply"]]
    if row["label"] == DEMONSTRATION and told.text.strip():
        yield row["at"], Demonstration(told.messages, answer_of(told), **whose(row))


def _says(row: Row) -> dict[str, Any]:
    return {"label": row["label"], "words": row["words"]}


def _possible(said: Annotation) -> bool:
    return len(said.of) == 1 and is_label(said.label)


def _row(said: Annotation, parent: str | None, replies: list[str]) -> Row:
    return {"reply": replies[0], "label": said.label, "given": 1, "words": said.words}


def _demonstration(whole: Record) -> Iterator[Record]:
    if whole.said[0].label == DEMONSTRATION:
        yield whole


LABEL = register(
    Kind(
        table="labels",
        name="label",
        help="Label a reply as unsafe, untrue and the like, or take that back.",
        body=Label,
        write=label,
        thing=("reply", "label"),
        taken_back=("given", 0),
        forgotten={"words": ""},
        examples=_examples,
        seldom_teaches=True,
        says=_says,
        possible=_possible,
        row=_row,
        instead={"demonstration": _demonstration},
    )
)
