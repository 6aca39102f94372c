"""The current feedback, read in bulk: the newest row per person and target, and the texts of its replies.

The cost grows with the rows read, not with the ledger: `since` a position reads only what was added after it. Each row
says whether it may be used (`consent`).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from feedback.accounts import consent
from feedback.chats.conversations import unpacked
from feedback.database.database import Database
from feedback.kinds.base import Kind, ReplyInContext, spoken
from feedback.messages import Message, mended
from feedback.records.adapters import BASE

AT_ONCE = 500  # replies per query for texts
Position = dict[str, int]  # table -> id of the newest row seen


@dataclass(frozen=True)
class ReplySummary:
    """A reply without its text: who wrote it (as in `ReplyInContext`), and its length in characters."""

    conversation: str
    model: str
    length: int


def position(store: Database) -> Position:
    """The position at the end of the ledger."""
    tables = [kind.table for kind in spoken()]
    query = "SELECT " + ", ".join(f"(SELECT coalesce(max(id), 0) FROM {each}) AS {each}" for each in tables)
    return dict(store.row(query) or {})


def rows(
    store: Database, kind: Kind, since: Position | None = None, most: int = -1, user: int | None = None
) -> list[dict[str, Any]]:
    """The current rows of a kind that were added after a position, oldest first.

    Each also has the kind of its user (`by`), its conversation and that conversation's owner, whether the words of the
    conversation are shared (`shared`), and whether the row may be used (`usable`). `most` limits the number of rows
    (-1: all), and `user` limits them to one user's.
    """
    condition = "t.id > ? AND t.user = ifnull(?, t.user)"
    return _rows(store, kind, condition, (since or {}).get(kind.table, 0), user, order="t.id", most=most)


def rows_of_others(store: Database, kind: Kind, users: Sequence[int]) -> list[dict[str, Any]]:
    """The current rows of a kind by all but some users, as `rows` gives them."""
    return _rows(store, kind, f"t.user NOT IN ({_LISTED})", json.dumps(list(users)), order="t.id")


def rows_before(store: Database, kind: Kind, user: int, before: int, most: int) -> list[dict[str, Any]]:
    """At most so many current rows of a kind by a user that were added before a row, newest first."""
    # The + keeps SQLite from sorting all rows of the user.
    return _rows(store, kind, "+t.user = ? AND t.id < ?", user, before, order="t.id DESC", most=most)


def rows_about(store: Database, kind: Kind, user: int, conversations: Sequence[str]) -> list[dict[str, Any]]:
    """The current rows of a kind by a user about some conversations, oldest first."""
    about = f"t.{kind.about} IN (SELECT id FROM messages WHERE conversation IN ({_LISTED})) AND +t.user = ?"
    return _rows(store, kind, about, json.dumps(list(conversations)), user, order="t.id")


_LISTED = "SELECT value FROM json_each(?)"


def _rows(
    store: Database, kind: Kind, condition: str, *values: Any, order: str, most: int = -1
) -> list[dict[str, Any]]:
    sql = f"""SELECT t.*, u.kind AS by, m.conversation, c.user AS owner, {consent.shared("c")} AS shared,
        {consent.given("t.user")} AS usable FROM {kind.table} t {with_whose(kind)}
        WHERE {condition} AND {stands(kind)} ORDER BY {order} LIMIT ?"""
    found = store.rows(sql, *values, most)
    return [row | {"usable": row["usable"] and row["shared"]} for row in found]


def with_whose(kind: Kind) -> str:
    """SQL: joins to a kind's rows t their user (u), the message they are about (m) and its conversation (c)."""
    return f"""JOIN users u ON u.id = t.user JOIN messages m ON m.id = t.{kind.about}
        JOIN conversations c ON c.id = m.conversation"""


def stands(kind: Kind) -> str:
    """SQL: whether a row t of a kind is the newest of its person (u) about its target, and they were not forgotten."""
    newer = (
        f"NOT EXISTS (SELECT 1 FROM {kind.table} n WHERE {same} AND n.user = t.user AND n.id > t.id)"
        for same in kind.same()
    )
    return " AND ".join(("u.forgotten_at IS NULL", *newer))


def texts(store: Database, replies: Iterable[str]) -> dict[str, ReplyInContext]:
    """Replies with their contexts, by id."""
    found: dict[str, ReplyInContext] = {}
    different = iter(dict.fromkeys(replies))
    while some := list(islice(different, AT_ONCE)):
        sql = """SELECT m.id, m.parent, m.conversation, m.content, r.token_ids, r.template_sha256, r.finish,
            r.adapter, r.sampling, r.base_sha256
            FROM json_each(?) j JOIN messages m ON m.id = j.value JOIN replies r ON r.message = m.id"""
        read = store.rows(sql, json.dumps(some))
        contexts = _contexts(store, sorted({row["parent"] for row in read}))
        for row in read:
            ids = unpacked("i", row["token_ids"])
            context = contexts.get(row["parent"], ())
            author = (_author(row), ids, row["template_sha256"], row["finish"])
            found[row["id"]] = ReplyInContext(
                row["id"], row["parent"], row["conversation"], context, row["content"], *author
            )
    return found


def briefs(store: Database, replies: Iterable[str]) -> dict[str, ReplySummary]:
    """Replies without their texts, by id."""
    sql = """SELECT m.id, m.conversation, length(m.content) AS length, r.adapter, r.sampling, r.base_sha256
        FROM json_each(?) j JOIN messages m ON m.id = j.value JOIN replies r ON r.message = m.id"""
    found = store.rows(sql, json.dumps(sorted(set(replies))))
    return {row["id"]: ReplySummary(row["conversation"], _author(row), row["length"]) for row in found}


def _author(row: dict[str, Any]) -> str:
    """Who wrote a reply, as in `ReplyInContext`."""
    return row["adapter"] or _model_of(row["sampling"]) or ("" if row["base_sha256"] is None else BASE)


@lru_cache(1000)
def _model_of(sampling: str) -> str:
    """The model that a reply's sampling names; mended, since imports by older versions let halves of characters in."""
    return mended(str(json.loads(sampling).get("model") or ""))


def _contexts(store: Database, messages: Sequence[str]) -> dict[str, tuple[Message, ...]]:
    """The turns from the root down to each message."""
    sql = """WITH RECURSIVE up (start, id, parent, role, content, depth) AS (
            SELECT j.value, m.id, m.parent, m.role, m.content, 0 FROM json_each(?) j JOIN messages m ON m.id = j.value
            UNION ALL
            SELECT start, m.id, m.parent, m.role, m.content, depth + 1 FROM up JOIN messages m ON m.id = up.parent
        ) SELECT start, role, content FROM up ORDER BY start, depth DESC"""
    found: dict[str, list[Message]] = {}
    for row in store.rows(sql, json.dumps(messages)):
        found.setdefault(row["start"], []).append(Message(row["role"], row["content"]))
    return {start: tuple(turns) for start, turns in found.items()}
