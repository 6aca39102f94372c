"""Health checks that need no model: the database, the adapters' files, the disk.

They repair nothing; each finding says what an operator can do. `mend` repairs what needs no decision but theirs: texts
that no program can read, and imports that will not go on.
"""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from feedback.accounts import users
from feedback.database.database import LONGEST_LOG, MB, Database
from feedback.messages import mended
from feedback.upkeep import imports, privacy

FULL = MB  # bytes; with less free, a message may not be kept
IMPORTED_JSON = (("replies", "sampling"), ("imported_rows", "extra"))
AT_ONCE = 2_000  # texts in memory
LEAST_FREE = 1024 * MB  # bytes; enough for a night's checkpoint and adapter, and a backup


@dataclass(frozen=True)
class Finding:
    """The result of one check; `words` say what was found and, if it is not well, what to do."""

    name: str
    well: bool
    words: str


def examine(store: Database) -> list[Finding]:
    """Run every check, most important first. Changes nothing."""
    looks: tuple[Callable[[Database], Finding], ...] = (
        integrity,
        references,
        log,
        adapter_folders,
        leftovers,
        half_imports,
        texts,
        disk,
        sqlite,
    )
    return [look(store) for look in looks]


def integrity(store: Database) -> Finding:
    """Check that every page of the database is intact."""
    wrong = [row["integrity_check"] for row in store.rows("PRAGMA integrity_check") if row["integrity_check"] != "ok"]
    if wrong:
        return Finding("database", False, f"damaged: {wrong[0]}; restore a backup (nightschool restore)")
    size = store.path.stat().st_size
    return Finding("database", True, f"whole, {size / MB:,.1f} MB")


def references(store: Database) -> Finding:
    """Check that rows refer only to rows that exist."""
    wrong = store.rows("PRAGMA foreign_key_check")
    if wrong:
        return Finding("references", False, f"{len(wrong)} rows of {wrong[0]['table']} and others refer to nothing")
    return Finding("references", True, "every row refers to rows that exist")


def log(store: Database) -> Finding:
    """Check that the write-ahead log is being emptied."""
    length = store.log_bytes()
    words = f"{length / MB:.1f} MB of at most {LONGEST_LOG // MB}"
    if length > LONGEST_LOG / 2:
        return Finding("log", False, f"{words}: some program keeps reading an old state of the database; end it")
    return Finding("log", True, words)


def adapter_folders(store: Database) -> Finding:
    """Check that adapters and their folders match one to one."""
    announced = {row["id"] for row in store.rows("SELECT id FROM adapters")}
    root = store.data / "adapters"
    present = {each.name for each in root.iterdir() if not each.name.startswith(".")} if root.is_dir() else set()
    if missing := sorted(announced - present):
        words = f"the files of {', '.join(missing)} are gone; restore them from a backup, or train again"
        return Finding("adapters", False, words)
    if unknown := sorted(present - announced):
        return Finding("adapters", False, f"nobody announced {', '.join(unknown)} in {root}; they may be removed")
    return Finding("adapters", True, f"{len(announced)}, each with its files")


def leftovers(store: Database) -> Finding:
    """Check for partial files left by a process that was killed."""
    left = sorted(str(each.relative_to(store.data)) for each in store.data.glob("**/.*.making"))
    left += [each.name for each in store.data.glob(".restoring")]
    if left:
        return Finding(
            "leftovers", False, f"half-made {', '.join(left)}; the next night removes its own, else remove it"
        )
    return Finding("leftovers", True, "nothing half-made")


def half_imports(store: Database) -> Finding:
    """Check that every import finished."""
    left = imports.interrupted(store)
    if not left:
        return Finding("imports", True, "none is half done")
    told = ", ".join(f"{row['name']} (import {row['id']}, {row['rows']:,} rows kept)" for row in left)
    if imports.is_running(store):
        return Finding("imports", True, f"running: {told}")
    ways = "import the same file again, and it goes on, or remove what it left: nightschool doctor --mend"
    return Finding("imports", False, f"interrupted: {told}; {ways}")


def texts(store: Database) -> Finding:
    """Check that what older versions imported holds no half of a character."""
    if wrong := sum(len(broken) for _, _, broken in _broken_texts(store)):
        return Finding("texts", False, f"{wrong:,} hold half of a character; mend them: nightschool doctor --mend")
    return Finding("texts", True, "every one can be read")


def _broken_texts(store: Database) -> Iterator[tuple[str, str, list[tuple[str, int]]]]:
    """Tables and columns of JSON that imports write, with the mended text and the rowid of each that is broken."""
    for table, column in IMPORTED_JSON:
        # An escape of one half of a character; most are of both.
        sql = f"""SELECT rowid AS row, {column} AS text FROM {table}
            WHERE rowid > ? AND {column} LIKE '%\\ud%' ORDER BY rowid LIMIT {AT_ONCE}"""
        broken: list[tuple[str, int]] = []
        seen = 0
        while some := store.rows(sql, seen):
            seen = some[-1]["row"]
            whole = ((json.dumps(json.loads(row["text"]), ensure_ascii=False), row["row"]) for row in some)
            broken += [(mended(text), row) for text, row in whole if mended(text) != text]
        yield table, column, broken


def mend(store: Database, by: int | None = None) -> list[str]:
    """Mend halves of characters, and remove what interrupted imports left; return what was done, in words.

    Raises `Conflict` while an import runs.
    """
    done = []
    with imports.alone(store):
        for table, column, broken in list(_broken_texts(store)):
            with store.transaction() as db:
                db.conn.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", broken)
            done += [f"mended {len(broken):,} texts in {table}"] * bool(broken)
        for row in imports.interrupted(store):
            owner = users.find_user(store, f"import {row['id']}")
            if owner is not None:  # made with the first rows
                privacy.forget(store, owner, by)
            imports.forget(store, row["id"])
            done.append(f"removed the {row['rows']:,} rows that the import of {row['name']} left")
    return done


def disk(store: Database) -> Finding:
    """Check that there is enough free disk space."""
    free = shutil.disk_usage(store.data).free
    words = f"{free / MB:,.0f} MB free"
    if is_full(store):
        return Finding("disk", False, f"the disk of {store.path.name} is full, so nothing is saved; free some space")
    if free < LEAST_FREE:
        return Finding("disk", False, f"{words}, and {LEAST_FREE // MB:,} should be; free some space")
    return Finding("disk", True, words)


def is_full(store: Database) -> bool:
    """Whether the disk has no room for another message."""
    return shutil.disk_usage(store.data).free < FULL


def sqlite(store: Database) -> Finding:
    """Report the SQLite version; versions before 3.51.3 are safe only because of the lock."""
    guarded = sqlite3.sqlite_version_info < (3, 51, 3)
    return Finding("sqlite", True, sqlite3.sqlite_version + (", one writer at a time behind a lock" if guarded else ""))
