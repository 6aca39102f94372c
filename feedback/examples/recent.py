"""The making of examples from the ledger, without reading what a rater's cap would leave out anyway.

Of each imported rater, and of everybody once several people rate, the examples of the newest prompts alone are kept
(`filtering`). A rater of an imported file may have said so much that reading all of it takes far longer than what is
kept, so their rows are read from the newest back, until there are enough prompts. With each row come all others whose
prompts begin alike: only they can repeat or contradict it, or be kept beside it. What is made of these rows is what
would be made of all.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from feedback.database.database import Database
from feedback.example_types import Made
from feedback.examples import filtering
from feedback.kinds import current
from feedback.kinds.base import Context, Kind, Row, teaching
from feedback.raters import propensity

AT_ONCE = 1_000  # rows read back at a time
MANY = 5_000  # rows from which a rater's are read from the newest back
Rows = dict[str, list[Row]]  # by table, oldest first
Place = tuple[int, int]  # the number of a kind among those that teach, and of a row


def made(store: Database, left_out: Counter[str], most: Mapping[int, int]) -> list[Made]:
    """The examples of all current rows, kind by kind, each with its time; `most` as in `filtering.within_share`.

    Rows that the cap would leave out are not read, and counted as that; rows that teach nothing are counted by reason.
    """
    many = _with_many_rows(store)
    rows = {kind.table: current.rows_of_others(store, kind, list(many)) for kind in teaching()}
    found = list(made_from(store, rows, left_out))
    raters = {example.user for _, (_, example) in found}
    newest: dict[int, Rows | None] = {}
    if len(raters) + len(many) >= filtering.PEOPLE:
        newest = {user: _newest(store, user, filtering.MOST_PROMPTS) for user in many}
    if len(raters) + sum(each is not None for each in newest.values()) < filtering.PEOPLE:
        newest = {user: _newest(store, user, most[user]) for user in many if user in most}
    for user, count in many.items():
        some = newest.get(user)
        if some is None:
            some = {kind.table: current.rows(store, kind, user=user) for kind in teaching()}
        else:
            left_out[filtering.OVER_CAP] += count - sum(map(len, some.values()))
        found += made_from(store, some, left_out)
    return [each for _, each in sorted(found, key=itemgetter(0))]


def made_from(
    store: Database, rows: Mapping[str, Sequence[Row]], left_out: Counter[str]
) -> Iterator[tuple[Place, Made]]:
    """The examples of rows, kind by kind, each with its place; counts the rows that teach nothing, by reason."""
    kinds = teaching()
    replies = (reply for kind in kinds for row in rows[kind.table] for reply in kind.replies(row))
    told = current.texts(store, replies)
    said = {kind.table: _giving(kind, rows[kind.table], left_out) for kind in kinds}
    drawn = propensity.of_rows(store, chain.from_iterable(said.values()))
    context = Context(told, said, left_out, drawn)
    for number, kind in enumerate(kinds):
        for row in said[kind.table]:
            for each in kind.examples(row, context) if kind.examples else ():
                yield (number, row["id"]), each


def _giving(kind: Kind, rows: Sequence[Row], left_out: Counter[str]) -> list[Row]:
    """The rows that may teach; counts the others by reason."""
    giving = []
    for row in rows:
        if row["usable"] and not kind.is_taken_back(row):
            giving.append(row)
        elif not kind.seldom_teaches:
            left_out["taken back" if row["usable"] else "no consent"] += 1
    return giving


def _with_many_rows(store: Database) -> dict[int, int]:
    """The raters of imported files who gave many rows, with their number. `identity` has noted how those begin."""
    counts: Counter[int] = Counter()
    for kind in teaching():
        sql = f"""SELECT t.user, t.count FROM (SELECT user, count(*) AS count FROM {kind.table} GROUP BY user) t
            JOIN users u ON u.id = t.user WHERE u.kind = 'imported' AND u.forgotten_at IS NULL"""
        counts.update({row["user"]: row["count"] for row in store.rows(sql)})
    noted = store.row("SELECT 1 FROM imports WHERE next_row IS NULL") is None
    return {user: count for user, count in sorted(counts.items()) if noted and count >= MANY}


def _newest(store: Database, user: int, prompts: int) -> Rows | None:
    """The rows of a rater's newest `prompts`, and all whose prompts begin like one of theirs; None if there are fewer.

    "Newest" is in the order in which examples are kept: the last kinds first, then the last rows.
    """
    kinds = teaching()
    rows: dict[str, dict[int, Row]] = {kind.table: {} for kind in kinds}
    known: set[str] = set()  # conversations whose rows are all read
    for number, kind in reversed(list(enumerate(kinds))):
        before, most = 2**63 - 1, max(AT_ONCE, prompts)
        while some := current.rows_before(store, kind, user, before, most):
            most *= 2  # so that few prompts of many rows are not counted again and again
            before = some[-1]["id"]
            new = set(_beginning_alike(store, {row["conversation"] for row in some})) - known
            known |= new
            for each in kinds:
                more = current.rows_about(store, each, user, sorted(new))
                rows[each.table].update({row["id"]: row for row in more})
            found = {table: [some[id] for id in sorted(some)] for table, some in rows.items()}
            if _prompts_from(store, found, (number, before)) >= prompts:
                return found
    return None


def _beginning_alike(store: Database, conversations: set[str]) -> Iterator[str]:
    """These imported conversations, and those of the same file whose prompts begin alike."""
    sql = """SELECT DISTINCT other.conversation FROM json_each(?) j JOIN imported_rows r ON r.conversation = j.value
        JOIN imported_rows other ON other.beginning = r.beginning AND other.import = r.import"""
    yield from conversations
    yield from (row["conversation"] for row in store.rows(sql, json.dumps(sorted(conversations))))


def _prompts_from(store: Database, rows: Mapping[str, Sequence[Any]], first: Place) -> int:
    """The number of prompts of the examples of rows that are kept from a place on."""
    made = list(made_from(store, rows, Counter()))
    kept = filtering.unrepeated([each for _, each in made], Counter())
    return len({filtering.prompt(made[at][1][1]) for at in kept if made[at][0] >= first})
