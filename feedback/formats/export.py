"""Export from the ledger to a file of any format: the current feedback that may be used, or all of one person's.

People appear as numbers, so that a file does not tell who they are; imported raters keep the name in their file. Rows
come kind by kind, each in ledger order, at most `AT_ONCE` in memory. What a format cannot express is counted.
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
from feedback.formats.storable import UNREADABLE, json_form, without_personal
from feedback.kinds import current
from feedback.kinds.base import Kind, ReplyInContext, Row, spoken
from feedback.records import audit
from feedback.upkeep import privacy

AT_ONCE = 2000  # rows of a table whose texts are in memory at a time


def rows(store: Database, form: Format, left_out: Counter[str], of: User | None = None) -> Iterator[dict[str, Any]]:
    """Every row that a format can hold. Counts what is left out, by reason.

    With `of`, this person's feedback whether they consent or not, but on others' conversations only if the owners do.
    """
    assert form.write is not None, f"{form.name} is for import only"
    number = 0
    numbers: dict[str, str] = {}  # id of a message or reply -> number, in order of appearance
    for row in said(store, form, left_out, of):
        if form.name == "nightschool":
            row = _numbered(row, numbers)
        try:
            made = form.write(row, number + 1)
        except Dropped as reason:
            left_out[str(reason)] += 1
            continue
        made |= {name: value for name, value in row.extra.items() if name not in made or name == "id"}
        if not _is_read_again(made, row, form):
            left_out["would not be read again"] += 1
            continue
        number += 1
        yield made


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
    """Write rows, after `change`, to a file or (name without suffix) a new folder; audit it and return their number."""
    found = change(rows(store, form, left_out, of))
    if out.suffix:
        count = files.write(out, found)
    else:
        card = {"format": form.name, "words": form.words, "licence": licence, "at": now()[:10]}
        count = files.write_folder(out, found, card)
    person = {"of": f"user {of.id}"} if of else {}
    audit.record(store, by, "export to", str(out), {"format": form.name, "rows": count} | person)
    return count


def export_own(store: Database, out: Path, of: User, by: int | None = None) -> None:
    """Write all data of one person to a file, and audit it. Raises `Refused`."""
    files.write_document(out, privacy.own_data(store, of))
    audit.record(store, by, "export to", str(out), {"format": "own", "of": f"user {of.id}"})


def _is_read_again(made: dict[str, Any], row: Record, form: Format) -> bool:
    """Whether an import would take a row of a format, and read no other texts than are said in it."""
    try:
        again = form.record(dict(made))
    except (Dropped, *UNREADABLE):
        return False
    return _texts(again) <= _texts(row)


def _texts(row: Record) -> Counter[str]:
    return Counter([*(each.content for each in row.messages), *(each.text for each in row.replies)])


def _numbered(row: Record, numbers: dict[str, str]) -> Record:
    """A row with numbers for ids, so that the same ledger exports the same file anywhere."""

    def number(of: str) -> str:
        return numbers.setdefault(of, str(len(numbers) + 1))

    message = number(row.message)
    return replace(row, message=message, replies=tuple(replace(each, id=number(each.id)) for each in row.replies))


def said(store: Database, form: Format, left_out: Counter[str], of: User | None) -> Iterator[Record]:
    """The current feedback of the kinds that a format holds, one annotation per record."""
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
    """The reason that a row may not be exported; empty if it may."""
    if not (row["usable"] or (of and (row["shared"] or row["owner"] == of.id))):
        return "no consent"
    return "taken back" if kind.is_taken_back(row) else ""


def held_as(kind: Kind) -> set[str]:
    """The names under which a format may hold a kind: its own, and those of what it can be converted to."""
    return {kind.name, *kind.instead}


def _rater(user: dict[str, Any]) -> str:
    """A rater's name in an export: an imported rater's original name, or a number."""
    if user["kind"] == "imported":
        return str(user["name"]).partition(": ")[2]
    return f"rater-{user['id']}"


def _extras(store: Database, form: Format, conversations: set[str]) -> dict[str, dict[str, Any]]:
    """Extra fields of imported rows, by conversation: those of the same format, and in the ledger's own the origin."""
    sql = """SELECT r.conversation, r.extra, i.format, i.source, i.licence, i.name FROM json_each(?) j
        JOIN imported_rows r ON r.conversation = j.value JOIN imports i ON i.id = r.import"""
    found = {}
    for row in store.rows(sql, json.dumps(sorted(conversations))):
        extra = json.loads(row["extra"]) if row["format"] == form.name else {}
        extra = without_personal(json_form(extra, Counter()), Counter())  # older versions kept what they found
        if form.name == "nightschool":
            extra.setdefault("imported", {name: row[name] for name in ("name", "format", "source", "licence")})
        found[row["conversation"]] = extra
    return found


def _record(kind: Kind, row: Row, told: Sequence[ReplyInContext], rater: str) -> Record:
    """A row of the ledger as a record with one annotation."""
    said = Annotation(kind.name, tuple(range(len(told))), rater, row["at"], **kind.says(row))
    replies = tuple(Reply(each.text, each.model, each.id) for each in told)
    return Record(told[0].messages, replies, (said,), message=told[0].parent)


def _as_held(kind: Kind, whole: Record, holds: Set[str]) -> Iterator[Record]:
    """A record unchanged if the format holds its kind, else converted to the first alternative that it holds."""
    if kind.name in holds:
        yield whole
    else:
        yield from next(made for name, made in kind.instead.items() if name in holds)(whole)
