"""The one door to the database: open it, read it, write to it.

Every write is one transaction under one lock that all threads and processes share, and is on the disk
(WAL, `synchronous=FULL`) before `write` returns. The lock covers checkpoints too: SQLite before 3.51.3 can
corrupt its log when two connections checkpoint and write at once, and a checkpoint here only ever happens
inside a commit or a close, both under the lock.
Left out on purpose: what the tables mean. `people`, `talk`, `ratings`, `nights` and `adapters` each read and
write their own.
"""

import atexit
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlite_utils import Database

from feedback.schema import steps

LOCK_WAIT_S = 30.0


class Refused(Exception):
    """What was asked cannot be done; the message says why and the way out, in one sentence."""


class NotFound(Refused):
    """No such thing, or it is another person's: the two look the same from outside."""


class Conflict(Refused):
    """It contradicts something that already stands."""


class Unavailable(Refused):
    """The database cannot be read or written now (disk full, read-only, locked). Nothing was changed."""


def now() -> str:
    """This moment in UTC, to the millisecond, as the database keeps time."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_id() -> str:
    """An id that cannot be guessed or counted up to: 16 hexadecimal digits."""
    return secrets.token_hex(8)


class Store:
    """The database of one data folder. Safe to share between threads; each gets its own connection.

    Raises `Unavailable` when the folder or the file cannot be used.
    """

    def __init__(self, data: Path | str) -> None:
        self.data = Path(data)
        self.path = self.data / "nightschool.db"
        self._local = threading.local()
        self._in_process = threading.Lock()
        try:
            self.data.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"cannot make the data folder {self.data}: {error.strerror}") from error
        self._across_processes = FileLock(f"{self.path}.lock", poll_interval=0.005)
        with self._alone(), translated(self.path):
            # The last connection to close checkpoints. This one outlives those of the threads, so that it is
            # the one, and `close` does it under the lock.
            self._keeper: sqlite3.Connection | None = self._connect()
            steps.apply(self.db)
        atexit.register(self.close)
        with suppress(OSError):
            self.path.chmod(0o600)  # what people said is for this account's eyes

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    @property
    def db(self) -> Database:
        """This thread's connection. Read with it; write only inside `write`."""
        if not hasattr(self._local, "db"):
            with translated(self.path):
                self._local.db = Database(self._connect(), execute_plugins=False)
        return self._local.db

    @contextmanager
    def write(self) -> Iterator[Database]:
        """One durable transaction; inside another `write` of the same thread it joins that one.

        Raises `Unavailable` when the disk is full or read-only, or the lock is held for over 30 s.
        """
        db = self.db
        if db.conn.in_transaction:
            yield db
            return
        with self._alone(), translated(self.path):
            db.conn.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.conn.execute("COMMIT")
            except BaseException:
                if db.conn.in_transaction:  # a full disk may have rolled it back already
                    db.conn.execute("ROLLBACK")
                raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock against every other thread and process."""
        if not self._in_process.acquire(timeout=LOCK_WAIT_S):
            raise Unavailable("the database is busy with another write; try again")
        try:
            try:
                self._across_processes.acquire(timeout=LOCK_WAIT_S)
            except Timeout as error:
                raise Unavailable("the database is busy in another process; try again") from error
            except OSError as error:
                raise Unavailable(f"cannot write in {self.data}: {error.strerror}") from error
            try:
                yield
            finally:
                self._across_processes.release()
        finally:
            self._in_process.release()

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """All rows of a query."""
        with translated(self.path):
            return list(self.db.query(sql, values))

    def row(self, sql: str, *values: Any) -> dict[str, Any] | None:
        """The first row of a query, if any."""
        rows = self.rows(sql, *values)
        return rows[0] if rows else None

    def insert(self, table: str, row: dict[str, Any]) -> int:
        """Insert one row, dicts and lists as JSON; its rowid. Inside `write` it joins that transaction."""
        values = [json.dumps(value) if isinstance(value, dict | list) else value for value in row.values()]
        marks = ", ".join("?" * len(row))
        with self.write() as db:
            cursor = db.conn.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", values)
            return int(cursor.lastrowid or 0)

    def close(self) -> None:
        """Close the store, checkpointing under the lock. Closing it twice is no harm."""
        atexit.unregister(self.close)
        if self._keeper is None:
            return
        with self._alone():
            if hasattr(self._local, "db"):
                self._local.db.close()
                del self._local.db
            self._keeper.close()
            self._keeper = None


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's own troubles as `Unavailable`, in words a person can act on."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text:
            raise Unavailable(f"the disk of {path} is full; nothing was saved, free some space") from error
        if "readonly" in text or "unable to open" in text:
            raise Unavailable(f"cannot write {path}; check that the folder exists and is writable") from error
        if "locked" in text or "I/O" in text:
            raise Unavailable(f"{path} cannot be used now ({text}); try again") from error
        raise
    except sqlite3.DatabaseError as error:
        if "not a database" in str(error) or "malformed" in str(error):
            raise Unavailable(f"{path} is damaged ({error}); restore it from a backup") from error
        raise
