"""Imports as things to look after: the lock that they hold, and the users that they made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from feedback import process_lock
from feedback.database.database import Database, now
from feedback.errors import Conflict
from feedback.numerals import natural

LOCK = "import.lock"


@contextmanager
def alone(store: Database) -> Iterator[None]:
    """Hold the lock that allows one import at a time on a data folder. Raises `Conflict` while another one runs."""
    with process_lock.alone(store.data / LOCK, "another import is running; wait for it"):
        yield


def is_running(store: Database) -> bool:
    """Whether an import runs now, in this process or another."""
    try:
        with alone(store):
            return False
    except Conflict:
        return True


def interrupted(store: Database) -> list[dict[str, Any]]:
    """The imports that have begun and not ended, oldest first: id, name, and the number of rows kept."""
    return store.rows(
        """SELECT id, name, (SELECT count(*) FROM imported_rows WHERE import = i.id) AS rows FROM imports i
        WHERE ended_at IS NULL AND forgotten_at IS NULL ORDER BY id"""
    )


def owned(store: Database, user: int) -> int | None:
    """The import whose conversations this user stands for; None for a person, or a rater named in a file."""
    row = store.row("SELECT name FROM users WHERE id = ? AND kind = 'imported'", user)
    number = str(row["name"]).removeprefix("import ") if row else ""
    return natural(number)


def raters(store: Database, number: int) -> list[int]:
    """The users that an import made: one for its conversations, and one for each rater that its file names."""
    sql = """SELECT id FROM users WHERE kind = 'imported' AND forgotten_at IS NULL
        AND (name = ? OR name GLOB ? OR name GLOB ?) ORDER BY id"""
    name = f"import {number}"
    return [row["id"] for row in store.rows(sql, name, f"{name}: *", f"{name}.*: *")]


def forget(store: Database, number: int) -> None:
    """Note that an import is forgotten: its file may be imported again, and all that it says is new then."""
    with store.transaction() as db:
        db.conn.execute("DELETE FROM imported_pieces WHERE import = ?", (number,))
        db.conn.execute("UPDATE imports SET forgotten_at = ? WHERE id = ?", (now(), number))
