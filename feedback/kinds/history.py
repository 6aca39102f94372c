"""One person's feedback on one reply, in order, with the current rows marked."""

import difflib
import json
import re
from dataclasses import dataclass
from typing import Any

from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.kinds.base import KINDS


@dataclass(frozen=True)
class Entry:
    """One row of feedback. `standing` is false once a newer row has replaced it."""

    id: int
    kind: str  # its table
    at: str
    standing: bool
    said: dict[str, Any]


@dataclass(frozen=True)
class Change:
    """Words that a correction kept, removed or added."""

    kind: str  # "kept", "removed" or "added"
    text: str


def entries(store: Database, user: User, reply: str) -> list[Entry]:
    """This person's feedback on a reply, oldest first. Raises `NotFound` if they were not shown it."""
    node = conversations.shown_reply(store, user, reply)
    found = []
    for kind in KINDS.values():
        sql = f"""SELECT *, max(id) OVER (PARTITION BY {kind.key()}) = id AS standing FROM {kind.table}
            WHERE user = :user AND {kind.of_reply} ORDER BY id"""
        for row in store.rows(sql, {"user": user.id, "reply": reply, "parent": node.parent}):
            said = {name: json.loads(row[name]) if name in kind.json_columns else row[name] for name in row}
            known = {name: said.pop(name) for name in ("id", "at", "standing")}
            said.pop("user")
            found.append(Entry(known["id"], kind.table, known["at"], bool(known["standing"]), said))
    return sorted(found, key=lambda each: each.at)


def changes(before: str, after: str) -> list[Change]:
    """The changes that a correction made, word by word.

    Without the removed words they read `after`, and without the added ones `before`.
    """
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    made: list[Change] = []
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            made.append(Change("kept", "".join(old[i1:i2])))
            continue
        made += [Change("removed", "".join(old[i1:i2]))] if i1 < i2 else []
        made += [Change("added", "".join(new[j1:j2]))] if j1 < j2 else []
    return made
