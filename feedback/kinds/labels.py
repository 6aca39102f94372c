"""What people say a reply is (labels), and what their doing suggests (signals).

A label is somebody's word: it stands until they take it back. A signal is a trace of use, logged and marked as one: it
never trains anything unless somebody chooses to read it.
"""

import re
from dataclasses import dataclass

from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.chats.conversations import checked
from feedback.database.database import Database, now
from feedback.errors import Refused
from feedback.kinds.rate_limit import require_pace

LABELS = {  # stored by key, shown by words
    "unsafe": "Harmful or unsafe",
    "untrue": "Not true",
    "ambiguous_prompt": "The question can be read in several ways",
    "privacy": "Tells something private",
    "demonstration": "Just as it should be; learn to reply so",
}
CUSTOM = re.compile(r"custom:[a-z0-9][a-z0-9 _-]{0,39}")  # a team's own
SIGNALS = ("retry", "edit", "copy", "abandon")  # asked again; asked otherwise; copied; left without a word


@dataclass(frozen=True)
class Label:
    """A standing label of a reply, and who gave it."""

    reply: str
    user: int
    label: str
    words: str


def label(store: Database, user: User, reply: str, label: str, given: bool = True, words: str = "") -> int:
    """Say that a reply is something, or (`given` false) take that back; the row's id.

    Raises `Refused` on an unknown label, `NotFound` on a reply that this person may not rate.
    """
    if label not in LABELS and not CUSTOM.fullmatch(label):
        raise Refused(f"unknown label {label!r}; a label is one of {', '.join(LABELS)}, or custom:a few words")
    with store.transaction():
        conversations.ratable_reply(store, user, reply, taking_back=not given)
        if given:
            require_pace(store, user)
        row = {"user": user.id, "reply": reply, "label": label, "given": int(given), "words": checked(words)}
        return store.insert("labels", row | {"at": now()})


def labels(store: Database, user: User, reply: str) -> list[Label]:
    """The labels that this person gave a reply, as they stand."""
    sql = """SELECT reply, user, label, words FROM labels WHERE reply = ? AND user = ? AND given AND id IN
        (SELECT max(id) FROM labels WHERE reply = ? AND user = ? GROUP BY label) ORDER BY label"""
    return [Label(**row) for row in store.rows(sql, reply, user.id, reply, user.id)]


def signal_newest(store: Database, user: User, message: str, kind: str) -> None:
    """The same of the newest reply to a message of theirs, if there is one."""
    conversations.own_node(store, user, message)
    replies = [each.id for each in conversations.children(store, message) if each.role == "assistant"]
    if replies:
        signal(store, user, replies[-1], kind)


def signal(store: Database, user: User, reply: str, kind: str) -> int:
    """Log what somebody did with a reply of theirs; the row's id. Raises as `label` does."""
    if kind not in SIGNALS:
        raise Refused(f"a signal is one of {', '.join(SIGNALS)}, not {kind!r}")
    with store.transaction():
        conversations.own_reply(store, user, reply)
        return store.insert("signals", {"user": user.id, "reply": reply, "kind": kind, "at": now()})
