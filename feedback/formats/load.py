"""Import of a file of any format into the ledger.

Imported rows keep their file, source and licence, and stay distinguishable from local feedback: their conversations
have the source "import", and their raters are users of the kind "imported", who never log in. The whole file is checked
before the first row is kept. An import that was killed resumes where it stopped.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from feedback.chats.conversations import LONGEST_MESSAGE
from feedback.database.database import Database, new_id, now
from feedback.errors import Conflict, Refused
from feedback.formats import files
from feedback.formats.base import Format
from feedback.formats.record import Annotation, Dropped, Record
from feedback.formats.registry import format_named, format_of
from feedback.kinds.base import named
from feedback.kinds.vote import REASONS
from feedback.records import audit
from feedback.upkeep.backup import facts

AT_ONCE = 200  # rows per transaction
TEXTS = ("words", "text")


@dataclass(frozen=True)
class Imported:
    """The result of an import: the number of rows kept, and of those left out by reason."""

    format: str
    kept: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class Seen:
    """The ledger's ids for a file's own: raters, messages (conversation and message), replies."""

    raters: dict[str, int] = field(default_factory=dict)
    messages: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)


Watch = Callable[[Iterator[Any], str], Iterator[Any]]  # wraps an iterator to show progress


def import_file(
    store: Database,
    path: Path,
    name: str = "",
    source: str = "",
    licence: str = "",
    watch: Watch = lambda rows, _: rows,
    by: int | None = None,
) -> Imported:
    """Import every valid row of a file; `name` is that of its format, empty to recognize it by the first row.

    Raises `Refused` on a file that cannot be read or is in no known format, `Conflict` on one imported before.
    """
    form, left_out, kept = _looked_over(path, name, watch)
    result = Imported(form.name, kept, dict(sorted(left_out.items())))
    if not kept:
        return result
    _, sha256 = facts(path if path.is_file() else path / "train.jsonl")
    given = {"name": path.name, "format": form.name, "source": source, "licence": licence, "sha256": sha256}
    number, from_row = _begun(store, given, by)
    rows = ((at, row) for at, row in _parsed(watch(files.read(path), "importing"), form) if isinstance(row, Record))
    rows = (each for each in rows if each[0] >= from_row)
    seen = Seen()
    while some := list(islice(rows, AT_ONCE)):
        with store.transaction():
            _keep(store, number, some, seen)
    with store.transaction() as db:
        sql = "UPDATE imports SET kept = ?, left_out = ?, ended_at = ? WHERE id = ?"
        db.conn.execute(sql, (kept, json.dumps(result.left_out), now(), number))
    return result


def _looked_over(path: Path, name: str, watch: Watch) -> tuple[Format, Counter[str], int]:
    """Read the whole file without keeping anything; return its format, reasons for left-out rows, and valid rows."""
    form = format_named(name) if name else None
    left_out: Counter[str] = Counter()
    kept = 0
    for raw in watch(files.read(path), "reading"):
        form = form or format_of(raw)
        row = _row_or_reason(raw, form)
        if isinstance(row, str):
            left_out[row] += 1
        else:
            kept += 1
    if form is None:
        raise Refused(f"{path.name} holds no row")
    return form, left_out, kept


def _parsed(raws: Iterator[dict[str, Any]], form: Format) -> Iterator[tuple[int, Record | str]]:
    for at, raw in enumerate(raws):
        yield at, _row_or_reason(raw, form)


def _row_or_reason(raw: dict[str, Any], form: Format) -> Record | str:
    """The row as a record, or the reason that it cannot be kept."""
    try:
        row = form.read(raw)
        for said in row.said:
            _require_possible(said)
        texts = [each.content for each in row.messages] + [each.text for each in row.replies]
        texts += [getattr(said, name) for said in row.said for name in TEXTS]
        texts += [each for said in row.said for each in said.more.values() if isinstance(each, str)]
        for text in texts:
            if len(text) > LONGEST_MESSAGE:
                return "a text that is too long"
            text.encode()
    except Dropped as reason:
        return str(reason)
    except UnicodeEncodeError:
        return "half of a character (a lone surrogate)"
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return f"not as {form.name} has it"
    return row


def _require_possible(said: Annotation) -> None:
    """Raises `Dropped` on an annotation that the ledger cannot hold."""
    kind = named(said.kind)
    if kind is None or kind.trace or not kind.possible(said) or len(set(said.of)) != len(said.of):
        raise Dropped("it says what cannot be said here")
    if any(reason not in REASONS for reason in said.reasons) or said.strength not in (None, 1, 2, 3, 4, 5):
        raise Dropped("it says what cannot be said here")


def _begun(store: Database, given: dict[str, Any], by: int | None) -> tuple[int, int]:
    """Start or resume an import; return its number and its first row that is not kept yet. Raises `Conflict`."""
    with store.transaction():
        before = store.row("SELECT id, ended_at FROM imports WHERE sha256 = ? ORDER BY id DESC", given["sha256"])
        if not (before and before["ended_at"]):
            told = {name: given[name] for name in ("format", "source", "licence") if given[name]}
            audit.record(store, by, "import", given["name"], told)
        if before is None:
            return store.insert("imports", given | {"began_at": now()}), 0
        if before["ended_at"]:
            raise Conflict(f"{given['name']} was imported already, on {before['ended_at'][:10]}")
        last = store.row("SELECT max(row) AS row FROM imported_rows WHERE import = ?", before["id"])
        return before["id"], (last["row"] if last and last["row"] is not None else -1) + 1


def _rater(store: Database, number: int, said: str, known: dict[str, int]) -> int:
    """The id of the user for a file's rater, created if missing."""
    if said not in known:
        name = f"import {number}: {said}" if said else f"import {number}"
        row = store.row("SELECT id FROM users WHERE name = ?", name)
        if row is None:
            user = {"name": name, "role": "rater", "kind": "imported", "created_at": now()}
            row = {"id": store.insert("users", user)}
            store.insert("consents", {"user": row["id"], "given": 1, "at": now()})
        known[said] = row["id"]
    return known[said]


def _keep(store: Database, number: int, rows: list[tuple[int, Record]], seen: Seen) -> None:
    """Insert rows in bulk, in order, inside the caller's transaction."""
    made: dict[str, list[dict[str, Any]]] = {}
    moment, owner = now(), _rater(store, number, "", seen.raters)
    for at, row in rows:
        conversation, parent = seen.messages.get(row.message, ("", None)) if row.message else ("", None)
        if not conversation:
            conversation = new_id()
            told = {"id": conversation, "user": owner, "source": "import", "created_at": moment}
            made.setdefault("conversations", []).append(told)
            for turn in row.messages:
                parent = _message(made, conversation, parent, turn.role, turn.content, moment)
            seen.messages[row.message] = (conversation, parent)
        replies = []
        for reply in row.replies:
            if reply.id and reply.id in seen.replies:
                replies.append(seen.replies[reply.id])
                continue
            replies.append(_message(made, conversation, parent, "assistant", reply.text, moment))
            sampling = json.dumps({"model": reply.model} if reply.model else {})
            author = {"message": replies[-1], "sampling": sampling, "finish": "stop"}
            made.setdefault("replies", []).append(author)
            if reply.id:
                seen.replies[reply.id] = replies[-1]
        for said in row.said:
            table, saying = saying_of(said, parent, replies)
            who = {"user": _rater(store, number, said.rater, seen.raters), "at": said.at or moment}
            made.setdefault(table, []).append(saying | who)
        origin = {"import": number, "row": at, "conversation": conversation, "extra": json.dumps(row.extra)}
        made.setdefault("imported_rows", []).append(origin)
    with store.transaction() as db:
        for table, every in made.items():
            names = list(every[0])
            sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
            db.conn.executemany(sql, [list(each.values()) for each in every])


def _message(
    made: dict[str, list[dict[str, Any]]], conversation: str, parent: str | None, role: str, content: str, moment: str
) -> str:
    message = new_id()
    row = {"id": message, "conversation": conversation, "parent": parent, "role": role, "content": content}
    made.setdefault("messages", []).append(row | {"created_at": moment})
    return message


def saying_of(said: Annotation, parent: str | None, replies: list[str]) -> tuple[str, dict[str, Any]]:
    """The table for an annotation, and its row there."""
    kind = named(said.kind)
    assert kind is not None, "what cannot be said was left out before"
    row = kind.row(said, parent, [replies[each] for each in said.of])
    return kind.table, {name: json.dumps(each) if isinstance(each, list) else each for name, each in row.items()}
