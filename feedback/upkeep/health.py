"""Is everything well? What can be found out without a model: the database, the adapters' files, the disk.

It mends nothing: each finding says the way out, and a person takes it.
"""

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from feedback.database.database import LONGEST_LOG, MB, Database

LEAST_FREE = 1024 * MB  # bytes: a night's checkpoint and adapter, and a backup, want as much


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `words` say what was seen and, where it is not well, the way out."""

    name: str
    well: bool
    words: str


def examine(store: Database) -> list[Finding]:
    """Look at everything, in order of weight. Changes nothing."""
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
    """Is every page of the database whole?"""
    wrong = [row["integrity_check"] for row in store.rows("PRAGMA integrity_check") if row["integrity_check"] != "ok"]
    if wrong:
        return Finding("database", False, f"damaged: {wrong[0]}; restore a backup (nightschool restore)")
    size = store.path.stat().st_size
    return Finding("database", True, f"whole, {size / MB:,.1f} MB")


def references(store: Database) -> Finding:
    """Does every row refer to rows that exist?"""
    wrong = store.rows("PRAGMA foreign_key_check")
    if wrong:
        return Finding("references", False, f"{len(wrong)} rows of {wrong[0]['table']} and others refer to nothing")
    return Finding("references", True, "every row refers to rows that exist")


def log(store: Database) -> Finding:
    """Is the write-ahead log being emptied?"""
    length = store.log_bytes()
    words = f"{length / MB:.1f} MB of at most {LONGEST_LOG // MB}"
    if length > LONGEST_LOG / 2:
        return Finding("log", False, f"{words}: some program keeps reading an old state of the database; end it")
    return Finding("log", True, words)


def adapter_folders(store: Database) -> Finding:
    """Has every adapter its folder, and every folder its adapter?"""
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
    """Did something that was killed leave half of its work?"""
    left = sorted(str(each.relative_to(store.data)) for each in store.data.glob("**/.*.making"))
    left += [each.name for each in store.data.glob(".restoring")]
    if left:
        return Finding(
            "leftovers", False, f"half-made {', '.join(left)}; the next night removes its own, else remove it"
        )
    return Finding("leftovers", True, "nothing half-made")


def imports(store: Database) -> Finding:
    """Did every import end?"""
    left = [row["name"] for row in store.rows("SELECT name FROM imports WHERE ended_at IS NULL")]
    if left:
        return Finding("imports", False, f"interrupted: {', '.join(left)}; import the same file again, and it goes on")
    return Finding("imports", True, "none is half done")


def disk(store: Database) -> Finding:
    """Is there room to go on?"""
    free = shutil.disk_usage(store.data).free
    words = f"{free / MB:,.0f} MB free"
    if free < LEAST_FREE:
        return Finding("disk", False, f"{words}, and {LEAST_FREE // MB:,} should be; free some space")
    return Finding("disk", True, words)


def sqlite(store: Database) -> Finding:
    """Which SQLite it is; versions below 3.51.3 are safe here behind the lock alone."""
    guarded = sqlite3.sqlite_version_info < (3, 51, 3)
    return Finding("sqlite", True, sqlite3.sqlite_version + (", one writer at a time behind a lock" if guarded else ""))
