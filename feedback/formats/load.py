"""Import of a file of any format into the ledger.

Imported rows keep their file, source and licence, and stay distinguishable from local feedback: their conversations
have the source "import", and their raters are users of the kind "imported", who never log in. The whole file is checked
before the first row is kept. Every row is kept, as far as `storable` lets it, or left out with a counted reason, also
what an earlier file said already (`identity`). An import that ended at any point resumes there when it is run again.
"""

import itertools
import json
import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feedback.database import openings
from feedback.database.database import Database, now
from feedback.errors import Conflict, Refused
from feedback.examples.filtering import beginning
from feedback.formats import files, identity
from feedback.formats.base import Format
from feedback.formats.record import Annotation, Record, Reply
from feedback.formats.registry import format_of_file
from feedback.formats.sources.folders import fingerprint
from feedback.formats.storable import Storing, row_or_reason
from feedback.kinds.base import named
from feedback.messages import mended
from feedback.records import audit
from feedback.upkeep.imports import alone

AT_ONCE = 500  # rows per transaction, at most
CHARACTERS_AT_ONCE = 2_000_000  # of their texts; a transaction's pages stand in the log until it is on disk
ALREADY = "said by an earlier file"
NOT_HELD = "the ledger cannot hold it"
UNFIT = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


@dataclass(frozen=True)
class Imported:
    """The result of an import: the number of rows kept, of those left out by reason, and of values left out of rows."""

    format: str
    kept: int
    left_out: dict[str, int]
    without: dict[str, int] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """The rows that say something, here or already in an earlier file."""
        return self.kept + self.left_out.get(ALREADY, 0)


class Rows:
    """The rows of a file, with their number, so that progress can be shown."""

    def __init__(self, rows: Iterable[Any], count: int) -> None:
        self._rows, self._count = rows, count

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def __len__(self) -> int:
        return self._count


Made = dict[str, list[dict[str, Any]]]  # rows to insert, by table
Known = dict[str, str]  # message -> conversation, of what a transaction makes
Watch = Callable[[Any, str], Iterable[Any]]  # wraps rows to show progress


def import_file(
    store: Database,
    path: Path,
    name: str = "",
    source: str = "",
    licence: str = "",
    watch: Watch = lambda rows, _: rows,
    by: int | None = None,
    keep_personal: bool = False,
    columns: str = "",
) -> Imported:
    """Import every valid row of a file; `name` is that of its format, empty to recognize it by the first rows.

    With `columns`, a mapping such as "prompt=question,completion=answer", it may be in no known format.
    Fields that say who somebody is are left out unless `keep_personal`. Raises `Refused` on a file that cannot be read
    or is in no known format, `Conflict` on one imported before, or while another import runs.
    """
    secret = str(store.rows("SELECT secret FROM split_secret")[0]["secret"])
    storing = Storing(None if keep_personal else lambda rater: f"address-{openings.keyed(secret, rater)[:8].hex()}")
    form = format_of_file(path, name, columns)
    left_out, valid, count = _looked_over(path, form, watch, storing)
    without = dict(sorted(storing.without.items()))
    if not valid:
        return Imported(form.name, 0, dict(sorted(left_out.items())), without)
    given = {"name": path.name, "source": source, "licence": licence}
    told = {each: mended(value) for each, value in given.items()} | {"format": form.name}
    told["sha256"] = fingerprint(path)
    with alone(store):
        identity.remember_older(store, secret)
        number, from_row = _begun(store, told, by)
        ledger = Importing(store, number, secret)
        for some in _batches(watch(Rows(files.read(path), count), "importing"), form, storing, from_row):
            ledger.keep(some)
        found = ledger.ended(left_out)
    return Imported(form.name, found["kept"], json.loads(found["left_out"]), without)


def _looked_over(path: Path, form: Format, watch: Watch, storing: Storing) -> tuple[Counter[str], int, int]:
    """Read the whole file and keep nothing; return the reasons for left-out rows, how many are valid, and all rows."""
    left_out: Counter[str] = Counter()
    count = 0
    for raw in watch(files.read(path), "reading"):
        count += 1
        row = row_or_reason(raw, form, storing)
        if isinstance(row, str):
            left_out[row] += 1
    return left_out, count - left_out.total(), count


def _batches(raws: Iterable[Any], form: Format, storing: Storing, first: int) -> Iterator[list[tuple[int, Record]]]:
    """The valid rows from `first` on with their places in the file, as many at a time as one transaction takes."""
    some: list[tuple[int, Record]] = []
    characters = 0
    for at, raw in enumerate(raws):
        row = row_or_reason(raw, form, storing) if at >= first else ""
        if isinstance(row, Record):
            some.append((at, row))
            characters += sum(len(each.content) for each in row.messages) + sum(len(each.text) for each in row.replies)
        if len(some) >= AT_ONCE or characters > CHARACTERS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some


def _begun(store: Database, given: dict[str, Any], by: int | None) -> tuple[int, int]:
    """Start or resume an import; return its number and its first row that is not kept yet. Raises `Conflict`."""
    sql = """SELECT id, format, next_row, ended_at FROM imports WHERE sha256 = ? AND forgotten_at IS NULL
        ORDER BY id DESC"""
    with store.transaction():
        before = store.row(sql, given["sha256"])
        if before is None:
            told = {name: given[name] for name in ("format", "source", "licence") if given[name]}
            audit.record(store, by, "import", given["name"], told)
            return store.insert("imports", given | {"began_at": now(), "next_row": 0}), 0
        if before["ended_at"]:
            raise Conflict(f"{given['name']} was imported already, on {before['ended_at'][:10]}")
        if before["format"] != given["format"]:
            raise Conflict(f"{given['name']} was begun as {before['format']}; go on with --format {before['format']}")
        return before["id"], before["next_row"]


class Importing:
    """An import under way: what it has kept is in the ledger, with the row where it goes on."""

    def __init__(self, store: Database, number: int, secret: str) -> None:
        self._store, self._number = store, number
        self._secret, self._key = secret, identity.keyed_by(secret)
        self._raters: dict[str, int] = {}  # the ledger's users, by the file's names
        self._ids = itertools.count(secrets.randbits(32))

    def keep(self, rows: list[tuple[int, Record]]) -> None:
        """Insert rows in order, all in one transaction, and if the ledger cannot hold one of them, each in its own."""
        try:
            with self._store.transaction() as db:
                self._insert(db.conn, rows)
        except (*UNFIT, Refused):
            self._raters.clear()  # may name users of the transaction that was rolled back
            if len(rows) > 1:
                for row in rows:
                    self.keep([row])
                return
            with self._store.transaction() as db:
                self._count(db.conn, rows[-1][0], 0, {NOT_HELD: 1})

    def ended(self, left_out: Counter[str]) -> dict[str, Any]:
        """Record that all rows are kept or, by these reasons and those met since, left out; return the import's row."""
        with self._store.transaction() as db:
            row = self._store.rows("SELECT * FROM imports WHERE id = ?", self._number)[0]
            every = Counter(left_out) + Counter(json.loads(row["left_out"]))
            row["left_out"] = json.dumps(dict(sorted(every.items())))
            sql = "UPDATE imports SET left_out = ?, ended_at = ? WHERE id = ?"
            db.conn.execute(sql, (row["left_out"], now(), self._number))
        return row

    def _insert(self, db: sqlite3.Connection, rows: list[tuple[int, Record]]) -> None:
        made: dict[str, list[dict[str, Any]]] = {}
        moment, kept = now(), 0
        known: Known = {}
        keys = [self._key(row, said) for _, row in rows for said in row.said]
        are_new = iter(identity.are_new(db, keys, self._number))
        for at, row in rows:
            new = [said for said in row.said if next(are_new)]
            if not new:
                continue
            kept += 1
            conversation, parent = self._conversation(made, row, moment, known)
            replies = [self._reply(made, row, each, conversation, parent, moment, known) for each in row.replies]
            for said in new:
                table, saying = saying_of(said, parent, replies)
                made.setdefault(table, []).append(saying | {"user": self._rater(said.rater), "at": said.at or moment})
            begins = openings.name_of_beginning(self._secret, beginning(row.messages))
            origin = {"import": self._number, "row": at, "conversation": conversation, "beginning": begins}
            made.setdefault("imported_rows", []).append(origin | {"extra": json.dumps(row.extra)})
        for table, every in made.items():
            names = list(every[0])
            sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
            db.executemany(sql, [[each[name] for name in names] for each in every])
        self._count(db, rows[-1][0], kept, {ALREADY: len(rows) - kept} if kept < len(rows) else {})

    def _count(self, db: sqlite3.Connection, last: int, kept: int, left_out: dict[str, int]) -> None:
        """Record the last row that was dealt with, and what became of those since the one before."""
        before = db.execute("SELECT left_out FROM imports WHERE id = ?", (self._number,)).fetchone()[0]
        every = json.dumps(Counter(json.loads(before)) + Counter(left_out))
        sql = "UPDATE imports SET kept = kept + ?, left_out = ?, next_row = ? WHERE id = ?"
        db.execute(sql, (kept, every, last + 1, self._number))

    def _conversation(self, made: Made, row: Record, moment: str, known: Known) -> tuple[str, str]:
        """The conversation of a row and its last message; made unless the file had this message before."""
        message = self._id("message", row) if row.message else self._new_id()
        if row.message and (before := self._found(message, known)):
            return before, message
        conversation = self._new_id()
        parent: str | None = None
        told = {"id": conversation, "user": self._rater(""), "source": "import", "created_at": moment}
        made.setdefault("conversations", []).append(told)
        for at, turn in enumerate(row.messages, 1):
            name = message if at == len(row.messages) else self._new_id()
            _add_message(made, name, conversation, parent, turn.role, turn.content, moment)
            parent = name
        known[message] = conversation
        return conversation, message

    def _reply(
        self, made: Made, row: Record, reply: Reply, conversation: str, parent: str, moment: str, known: Known
    ) -> str:
        """The ledger's id of a row's reply; made unless the file had it before."""
        named_here = bool(row.message and reply.id)
        name = self._id("reply", row, reply) if named_here else self._new_id()
        if named_here and self._found(name, known):
            return name
        _add_message(made, name, conversation, parent, "assistant", reply.text, moment)
        sampling = json.dumps({"model": reply.model} if reply.model else {})
        made.setdefault("replies", []).append({"message": name, "sampling": sampling, "finish": "stop"})
        known[name] = conversation
        return name

    def _new_id(self) -> str:
        """An id that nobody guesses, near to the one before, so that hundreds of rows change few pages of an index."""
        return f"{next(self._ids) % 2**32:08x}{secrets.token_hex(4)}"

    def _id(self, what: str, row: Record, reply: Reply | None = None) -> str:
        """The ledger's id of a message or reply that a file names: always the same in an import, also a resumed one."""
        named_so = [self._number, row.message, [(each.role, each.content) for each in row.messages]]
        named_so += [reply.id, reply.text] if reply else []
        return openings.keyed(self._secret, f"{what} {json.dumps(named_so)}")[:8].hex()

    def _found(self, message: str, known: Known) -> str:
        """The conversation of a message that is made or in the ledger; empty if there is none."""
        if message not in known:
            row = self._store.row("SELECT conversation FROM messages WHERE id = ?", message)
            return row["conversation"] if row else ""
        return known[message]

    def _rater(self, said: str) -> int:
        """The id of the user for a file's rater, created if missing."""
        if said not in self._raters:
            name, user = self._user_of(said)
            if user is None:
                row = {"name": name, "role": "rater", "kind": "imported", "created_at": now()}
                user = self._store.insert("users", row)
                self._store.insert("consents", {"user": user, "given": 1, "at": now()})
            self._raters[said] = user
        return self._raters[said]

    def _user_of(self, said: str) -> tuple[str, int | None]:
        """The name for a file's rater, and their user if there is one. Users' names do not differ in case alone."""
        for again in itertools.count(1):
            number = f"import {self._number}" + (f".{again}" if again > 1 else "")
            name = f"{number}: {said}" if said else number
            row = self._store.row("SELECT id, name FROM users WHERE name = ?", name)
            if row is None or row["name"] == name:
                return name, row["id"] if row else None
        raise AssertionError("there is always another number")


def _add_message(
    made: Made, name: str, conversation: str, parent: str | None, role: str, content: str, moment: str
) -> None:
    row = {"id": name, "conversation": conversation, "parent": parent, "role": role, "content": content}
    made.setdefault("messages", []).append(row | {"created_at": moment})


def saying_of(said: Annotation, parent: str | None, replies: list[str]) -> tuple[str, dict[str, Any]]:
    """The table for an annotation, and its row there."""
    kind = named(said.kind)
    assert kind is not None, "what cannot be said was left out before"
    row = kind.row(said, parent, [replies[each] for each in said.of])
    return kind.table, {name: json.dumps(each) if isinstance(each, list) else each for name, each in row.items()}
