"""All that one person said of one reply, in order, and what of it stands."""

import difflib
import json
import re
from dataclasses import dataclass
from typing import Any

from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database


@dataclass(frozen=True)
class Entry:
    """One thing said at one time. `standing` is false once something newer has taken its place."""

    id: int
    kind: str  # the table: "votes", "comparisons", ...
    at: str
    standing: bool
    said: dict[str, Any]


@dataclass(frozen=True)
class Change:
    """Words of a reply that a correction took out, put in, or left."""

    kind: str  # "kept", "removed" or "added"
    text: str


QUERIES = {  # kind -> what names a saying's thing, and where the sayings about a reply are
    "votes": ("reply", "reply = :reply"),
    "comparisons": (
        "min(left_reply, right_reply) || max(left_reply, right_reply)",
        "id IN (SELECT id FROM comparisons WHERE left_reply = :reply UNION "
        "SELECT id FROM comparisons WHERE right_reply = :reply)",
    ),
    "rankings": ("parent", "parent = :parent AND instr(replies, :reply)"),
    "corrections": ("reply", "reply = :reply"),
    "critiques": ("reply", "reply = :reply"),
    "labels": ("label", "reply = :reply"),
    "signals": ("id", "reply = :reply"),
}
AS_JSON = ("reasons", "replies", "ranks")


def entries(store: Database, user: User, reply: str) -> list[Entry]:
    """Everything that this person said of a reply, oldest first. Raises `NotFound` where they were not shown it."""
    node = conversations.shown_reply(store, user, reply)
    found = []
    for kind, (thing, where) in QUERIES.items():
        sql = f"""SELECT *, max(id) OVER (PARTITION BY {thing}) = id AS standing FROM {kind}
            WHERE user = :user AND {where} ORDER BY id"""
        for row in store.rows(sql, {"user": user.id, "reply": reply, "parent": node.parent}):
            said = {name: json.loads(row[name]) if name in AS_JSON else row[name] for name in row}
            known = {name: said.pop(name) for name in ("id", "at", "standing")}
            said.pop("user")
            found.append(Entry(known["id"], kind, known["at"], bool(known["standing"]), said))
    return sorted(found, key=lambda each: each.at)


def changes(before: str, after: str) -> list[Change]:
    """A correction as what it changed, word by word. Without what was removed it reads `after`, without what was added
    `before`."""
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    made: list[Change] = []
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            made.append(Change("kept", "".join(old[i1:i2])))
            continue
        made += [Change("removed", "".join(old[i1:i2]))] if i1 < i2 else []
        made += [Change("added", "".join(new[j1:j2]))] if j1 < j2 else []
    return made
