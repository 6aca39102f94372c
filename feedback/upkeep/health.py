"""Health checks that need no model: the database, the adapters' files, the disk.

They repair nothing; each finding says what an operator can do.
"""

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from feedback.database.database import LONGEST_LOG, MB, Database

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
        imports,
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


def imports(store: Database) -> Finding:
    """Check that every import finished."""
    left = [row["name"] for row in store.rows("SELECT name FROM imports WHERE ended_at IS NULL")]
    if left:
        return Finding("imports", False, f"interrupted: {', '.join(left)}; import the same file again, and it goes on")
    return Finding("imports", True, "none is half done")


def disk(store: Database) -> Finding:
    """Check that there is enough free disk space."""
    free = shutil.disk_usage(store.data).free
    words = f"{free / MB:,.0f} MB free"
    if free < LEAST_FREE:
        return Finding("disk", False, f"{words}, and {LEAST_FREE // MB:,} should be; free some space")
    return Finding("disk", True, words)


def sqlite(store: Database) -> Finding:
    """Report the SQLite version; versions before 3.51.3 are safe only because of the lock."""
    guarded = sqlite3.sqlite_version_info < (3, 51, 3)
    return Finding("sqlite", True, sqlite3.sqlite_version + (", one writer at a time behind a lock" if guarded else ""))
