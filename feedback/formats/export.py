"""From the ledger into a file of any format: what stands and may teach, or all that one person said.

Every rater is a number, so that a file does not tell who they are. Rows come in the order of the ledger, a few hundred
in memory at a time; what a format cannot say is counted.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from feedback.accounts.users import User
from feedback.database.database import Database, now
from feedback.formats import files
from feedback.formats.base import COMPARED, EVERYTHING, Format
from feedback.formats.record import Annotation, Dropped, Record, Reply
from feedback.kinds import current
from feedback.kinds.base import Kind, ReplyInContext, Row, spoken
from feedback.records import adapters
from feedback.upkeep import privacy

AT_ONCE = 2000  # rows of a table whose texts are in memory


def rows(store: Database, form: Format, left_out: Counter[str], of: User | None = None) -> Iterator[dict[str, Any]]:
    """Every row that a format can hold. Counts what is left out.

    With `of` what this person said, whether they let it be used or not; of others' conversations only where those do.
    """
    assert form.write is not None, f"{form.name} is for import only"
    number = 0
    numbers: dict[str, str] = {}  # of messages and replies, by their ids, in the order in which they come up
    for row in said(store, form, left_out, of):
        if form.name == "nightschool":
            row = _numbered(row, numbers)
        try:
            made = form.write(row, number + 1)
        except Dropped as reason:
            left_out[str(reason)] += 1
            continue
        number += 1
        yield made | {name: value for name, value in row.extra.items() if name not in made or name == "id"}


def export_file(
    store: Database,
    out: Path,
    form: Format,
    left_out: Counter[str],
    of: User | None = None,
    by: int | None = None,
    change: Callable[[Iterator[dict[str, Any]]], Iterator[dict[str, Any]]] = iter,
    licence: str = "other",
) -> int:
    """Write rows, `change`d, to a file or (a name without an ending) a new folder, and who had them; how many."""
    found = change(rows(store, form, left_out, of))
    if out.suffix:
        count = files.write(out, found)
    else:
        card = {"format": form.name, "words": form.words, "licence": licence, "at": now()[:10]}
        count = files.write_folder(out, found, card)
    person = {"of": f"user {of.id}"} if of else {}
    adapters.audit(store, by, "export to", str(out), {"format": form.name, "rows": count} | person)
    return count


def export_own(store: Database, out: Path, of: User, by: int | None = None) -> None:
    """Write all that is kept of one person, and who had it. Raises `Refused`."""
    files.write_document(out, privacy.own_data(store, of))
    adapters.audit(store, by, "export to", str(out), {"format": "own", "of": f"user {of.id}"})


def _numbered(row: Record, numbers: dict[str, str]) -> Record:
    """A row whose ids are numbers: the same for the same ledger, wherever it is kept."""

    def number(of: str) -> str:
        return numbers.setdefault(of, str(len(numbers) + 1))

    message = number(row.message)
    return replace(row, message=message, replies=tuple(replace(each, id=number(each.id)) for each in row.replies))


def said(store: Database, form: Format, left_out: Counter[str], of: User | None) -> Iterator[Record]:
    """What stands, one thing said at a time, as far as a format holds its kind."""
    here = current.position(store)
    raters = {row["id"]: row for row in store.rows("SELECT id, name, kind FROM users")}
    holds = {kind.name for kind in spoken()} if form.kinds == EVERYTHING else form.kinds
    # Kinds that compare replies come first.
    for kind in sorted(spoken(), key=lambda kind: COMPARED.isdisjoint(held_as(kind))):
        if holds.isdisjoint(held_as(kind)):
            continue
        seen = 0
        while some := current.rows(store, kind, {kind.table: seen}, AT_ONCE, of.id if of else None):
            seen = some[-1]["id"]
            some = [row for row in some if row["id"] <= here[kind.table]]
            told = current.texts(store, itertools.chain.from_iterable(map(kind.replies, some)))
            extras = _extras(store, form, {each.conversation for each in told.values()})
            for row in some:
                if reason := _why_not(kind, row, of):
                    left_out[reason] += 1
                    continue
                replies = [told[each] for each in kind.replies(row)]
                whole = _record(kind, row, replies, _rater(raters[row["user"]]))
                for one in _as_held(kind, whole, holds):
                    yield replace(one, extra=dict(extras.get(row["conversation"], {})))


def _why_not(kind: Kind, row: Row, of: User | None) -> str:
    """Why a row may not be written, in words; empty if it may."""
    if not (row["usable"] or (of and (row["shared"] or row["owner"] == of.id))):
        return "no consent"
    return "taken back" if kind.is_taken_back(row) else ""


def held_as(kind: Kind) -> set[str]:
    """What a format may hold of a kind: itself, or what can be made of it."""
    return {kind.name, *kind.instead}


def _rater(user: dict[str, Any]) -> str:
    """A rater's name in a file: that of the file they came from, or a number."""
    if user["kind"] == "imported":
        return str(user["name"]).partition(": ")[2]
    return f"rater-{user['id']}"


def _extras(store: Database, form: Format, conversations: set[str]) -> dict[str, dict[str, Any]]:
    """What imported rows held beside: in the format that they came in, or their origin in the ledger's own."""
    sql = """SELECT r.conversation, r.extra, i.format, i.source, i.licence, i.name FROM json_each(?) j
        JOIN imported_rows r ON r.conversation = j.value JOIN imports i ON i.id = r.import"""
    found = {}
    for row in store.rows(sql, json.dumps(sorted(conversations))):
        extra = json.loads(row["extra"]) if row["format"] == form.name else {}
        if form.name == "nightschool":
            extra.setdefault("imported", {name: row[name] for name in ("name", "format", "source", "licence")})
        found[row["conversation"]] = extra
    return found


def _record(kind: Kind, row: Row, told: Sequence[ReplyInContext], rater: str) -> Record:
    """A row of the ledger as what one rater said of its replies."""
    said = Annotation(kind.name, tuple(range(len(told))), rater, row["at"], **kind.says(row))
    replies = tuple(Reply(each.text, each.model, each.id) for each in told)
    return Record(told[0].messages, replies, (said,), message=told[0].parent)


def _as_held(kind: Kind, whole: Record, holds: Set[str]) -> Iterator[Record]:
    """A record as the kind itself where a format holds it, else as the first thing that it holds instead."""
    if kind.name in holds:
        yield whole
    else:
        yield from next(made for name, made in kind.instead.items() if name in holds)(whole)
