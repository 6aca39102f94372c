"""The identity of what an imported file says, so that the same in several files counts once.

A piece is the conversation, the replies, what is said of them, and the rater where the file names one: not who wrote
the replies, when it was said, the words beside it or the row's other fields. The n-th time that a file says a piece is
the same as the n-th time that another file does. So a repaired or a longer file adds what is new in it, people without
a name who agree inside one file stay several, and people of different names are different people.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from feedback.database import openings
from feedback.database.database import Database
from feedback.examples.filtering import beginning
from feedback.formats.record import Annotation, Record, Reply
from feedback.kinds import current
from feedback.kinds.base import Kind, spoken

AT_ONCE = 2000  # rows of a table at a time
DECIDED = ("left", "right")
Key = Callable[[Record, Annotation], bytes]


def keyed_by(secret: str) -> Key:
    """The function from an annotation of a record to its key: 16 bytes that tell nothing without the secret."""
    salt = bytes.fromhex(secret)[:64]

    def key(row: Record, said: Annotation) -> bytes:
        sides = dict.fromkeys(said.of, "")
        if said.choice in DECIDED:
            sides[said.of[DECIDED.index(said.choice)]] = "preferred"
        ranks = said.ranks or [0] * len(said.of)
        # In no order, for the sides of a screen or a file tell nothing.
        about = sorted((row.replies[each].text, sides[each], rank) for each, rank in zip(said.of, ranks, strict=True))
        choice = "decided" if said.choice in DECIDED else said.choice
        what = [choice, said.value, said.all_wrong, said.text, said.label, said.more]
        whole = [said.kind, [(each.role, each.content) for each in row.messages], about, what, said.rater]
        return hashlib.blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=16, key=salt).digest()

    return key


def are_new(db: Any, keys: Sequence[bytes], number: int) -> list[bool]:
    """Count pieces of import `number`, in order; returns of each whether no other import says it as often.

    `db` is the connection of the caller's transaction.
    """
    here, elsewhere = Counter[bytes](), dict[bytes, int]()
    for some in (keys[at : at + AT_ONCE] for at in range(0, len(keys), AT_ONCE)):
        sql = f"SELECT key, import, count FROM imported_pieces WHERE key IN ({', '.join('?' * len(some))})"
        for key, of, count in db.execute(sql, some):
            if of == number:
                here[key] = count
            else:
                elsewhere[key] = max(count, elsewhere.get(key, 0))
    new = []
    for key in keys:
        here[key] += 1
        new.append(here[key] > elsewhere.get(key, 0))
    sql = "INSERT INTO imported_pieces (key, import, count) VALUES (?, ?, ?)"
    sql += " ON CONFLICT (key, import) DO UPDATE SET count = excluded.count"
    db.executemany(sql, [(key, number, here[key]) for key in sorted(set(keys))])
    return new


def remember_older(store: Database, secret: str) -> None:
    """Note the pieces of imports by versions that did not, and how their rows begin; of each import all or nothing."""
    key = keyed_by(secret)
    for row in store.rows("SELECT id FROM imports WHERE next_row IS NULL ORDER BY id"):
        number = row["id"]
        with store.transaction() as db:
            for said, of, conversation in _said_by(store, number):
                are_new(db.conn, [key(of, said)], number)
                begins = openings.name_of_beginning(secret, beginning(of.messages))
                sql = "UPDATE imported_rows SET beginning = ? WHERE import = ? AND conversation = ?"
                db.conn.execute(sql, (begins, number, conversation))
            last = store.rows("SELECT coalesce(max(row), -1) AS row FROM imported_rows WHERE import = ?", number)
            db.conn.execute("UPDATE imports SET next_row = ? WHERE id = ?", (last[0]["row"] + 1, number))


def _said_by(store: Database, number: int) -> Iterator[tuple[Annotation, Record, str]]:
    """Every annotation that an import brought, with its record and the conversation."""
    for kind in spoken():
        seen = 0
        while some := _rows(store, kind, number, seen):
            seen = some[-1]["id"]
            told = current.texts(store, (each for row in some for each in kind.replies(row)))
            for row in some:
                replies = [told[each] for each in kind.replies(row)]
                rater = str(row["rater"]).partition(": ")[2]
                said = Annotation(kind.name, tuple(range(len(replies))), rater, row["at"], **kind.says(row))
                of = Record(replies[0].messages, tuple(Reply(each.text) for each in replies), (said,))
                yield said, of, replies[0].conversation


def _rows(store: Database, kind: Kind, number: int, seen: int) -> list[dict[str, Any]]:
    sql = f"""SELECT t.*, u.name AS rater FROM {kind.table} t {current.with_whose(kind)}
        WHERE t.id > ? AND u.kind = 'imported' AND u.forgotten_at IS NULL AND c.id IN
            (SELECT conversation FROM imported_rows WHERE import = ?) ORDER BY t.id LIMIT ?"""
    return store.rows(sql, seen, number, AT_ONCE)
