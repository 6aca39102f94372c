"""The only access to the database: open, read and write.

Every write is on disk (WAL, `synchronous=FULL`) before `transaction` returns. Threads that write at the same time share
one transaction and one wait for the disk: they run one at a time, each behind its own savepoint, and all return when
the transaction is on disk, or all fail (`group_commit`). One lock is shared by all processes and covers checkpoints
too: SQLite before 3.51.3 can corrupt its log when two connections checkpoint and write at once. Checkpoints happen only
in a commit, when the log is shortened, in `checkpoint` and on close, always under the lock.
"""

import atexit
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlite_utils
from filelock import FileLock, Timeout

from feedback.database import migrations, private_files
from feedback.database.group_commit import CommitGroup, GroupCommit, TooLong
from feedback.errors import Refused, Unavailable

LOCK_WAIT_S = 30.0
MB = 1024 * 1024
LONGEST_LOG = 64 * MB  # the write-ahead log never grows past this
SHORTENED_FROM = 16 * MB  # above this it is emptied as soon as no reader needs it
ROOM = 16 * MB  # headroom for one transaction; bulk writers must commit before they exceed it
PATIENCE_S = 2.0  # wait for readers before a full log makes a write fail


def now() -> str:
    """The current UTC time to the millisecond, in the database's format."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_id() -> str:
    """A random, unguessable id of 16 hexadecimal digits."""
    return secrets.token_hex(8)


class Database:
    """The database of one data folder. Safe to share between threads; each reads on its own connection.

    `wait_s` is how long a write waits for others. Raises `Unavailable` if the folder or the file cannot be used.
    """

    def __init__(self, data: Path | str, wait_s: float = LOCK_WAIT_S) -> None:
        self.data = Path(data)
        self.path = self.data / "nightschool.db"
        self.wait_s = wait_s
        self._local = threading.local()
        self._turns = GroupCommit()
        self._shorten_from = SHORTENED_FROM
        try:
            private_files.make_data_folder(self.data)
        except OSError as error:
            raise Unavailable(f"cannot make the data folder {self.data}: {error.strerror}") from error
        # Not per thread: the leader of a shared transaction acquires and releases it, whichever thread that is.
        self._across_processes = FileLock(f"{self.path}.lock", mode=0o600, poll_interval=0.005, thread_local=False)
        with self._lock(wait_s), translated(self.path):
            # All writes use this one connection. It outlives the threads' own, because the last connection to close
            # checkpoints, and `close` must do that under the lock.
            with private_files.making_private():  # the log inherits the database's permissions
                self._writer: sqlite_utils.Database | None = sqlite_utils.Database(
                    self._connect(), execute_plugins=False
                )
            self._require_known_schema()
            self._take_steps()
        atexit.register(self.close)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self.wait_s, isolation_level=None, check_same_thread=False)
        pragmas = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON")
        for pragma in (*pragmas, f"journal_size_limit = {SHORTENED_FROM}"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _take_steps(self) -> None:
        """Apply the migrations that are still missing."""
        assert self._writer is not None
        known = len(migrations.more_steps)
        migrations.apply(self._writer)
        self._steps = known

    def _take_new_steps(self) -> None:
        """Apply steps added since: a kind of feedback may be registered after the database was opened."""
        writing = getattr(self._local, "writing", False)
        if self._steps != len(migrations.more_steps) and self._writer is not None and not writing:
            with self.alone():
                self._take_steps()

    def _require_known_schema(self) -> None:
        """Raises `Unavailable` on a database with migrations that this version does not know."""
        assert self._writer is not None
        unknown = migrations.unknown_steps(self._writer)
        if unknown:
            self._writer.close()
            raise Unavailable(f"{self.path} was written by a newer Nightschool (step {unknown[-1]}); use that one")

    @property
    def db(self) -> sqlite_utils.Database:
        """This thread's connection for reading: inside `transaction` the writing connection, else its own."""
        if getattr(self._local, "writing", False):
            assert self._writer is not None, "the store is closed"
            return self._writer
        if not hasattr(self._local, "db"):
            with translated(self.path):
                self._local.db = sqlite_utils.Database(self._connect(), execute_plugins=False)
                self._local.db.conn.execute("PRAGMA query_only = ON")
        return self._local.db

    @contextmanager
    def transaction(self) -> Iterator[sqlite_utils.Database]:
        """One durable, atomic write; inside another `transaction` of the same thread it joins that one.

        Raises `Unavailable` if the disk is full or read-only, or others hold the lock for longer than `wait_s`.
        """
        if getattr(self._local, "writing", False):
            yield self.db
            return
        self._take_new_steps()
        assert self._writer is not None, "the store is closed"
        connection, until = self._writer.conn, time.monotonic() + self.wait_s
        try:
            group, leads = self._turns.take(self.wait_s)
        except TooLong as error:
            raise Unavailable("the database is busy with another write; try again") from error
        with translated(self.path):
            try:
                self._begin(connection, leads, until)
                self._local.writing = True
                yield self._writer
                if not leads:
                    connection.execute("RELEASE turn")
            except BaseException as error:
                self._undo(connection, group, leads, error)
                self._turns.leave(leads)
                raise
            finally:
                self._local.writing = False
            self._turns.share(group, leads, self._commit)

    def _begin(self, connection: sqlite3.Connection, leads: bool, until: float) -> None:
        if not leads:
            connection.execute("SAVEPOINT turn")
            return
        self._acquire(max(until - time.monotonic(), 0))
        self._bound_log(connection)
        connection.execute("BEGIN IMMEDIATE")

    def _undo(self, connection: sqlite3.Connection, group: CommitGroup, leads: bool, error: BaseException) -> None:
        """Roll back one turn. If SQLite rolled back the whole transaction (full disk), the group has failed."""
        if leads:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._release()
        elif connection.in_transaction:
            connection.execute("ROLLBACK TO turn")
            connection.execute("RELEASE turn")
        else:
            group.error = error

    def _commit(self, group: CommitGroup) -> None:
        """Commit a group's writes, or set its error; release the lock either way."""
        assert self._writer is not None, "the store is closed"
        connection = self._writer.conn
        try:
            if group.error is None:
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            group.error = error
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        self._release()

    def _bound_log(self, connection: sqlite3.Connection) -> None:
        """Keep the log under `LONGEST_LOG`. Raises `Unavailable` if readers of an old state prevent that."""
        length = self.log_bytes()
        if length < self._shorten_from:
            return
        full = length > LONGEST_LOG - ROOM
        self._empty_log(connection, PATIENCE_S if full else 0.05)
        length = self.log_bytes()
        self._shorten_from = max(SHORTENED_FROM, length + SHORTENED_FROM // 4)
        if length > LONGEST_LOG - ROOM:
            self._shorten_from = 0  # check again before the next write
            raise Unavailable(
                f"nothing was saved: a program has been reading an old state of {self.path.name} for so long that its "
                f"log is full ({LONGEST_LOG // MB} MB); end that program"
            )

    def _empty_log(self, connection: sqlite3.Connection, patience_s: float) -> None:
        connection.execute(f"PRAGMA busy_timeout = {int(patience_s * 1000)}")
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(self.wait_s * 1000)}")

    def log_bytes(self) -> int:
        """Size of the write-ahead log."""
        try:
            return self.path.with_name(f"{self.path.name}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def checkpoint(self) -> None:
        """Move the log into the database file, and empty the log if no reader needs it."""
        with self.alone() as connection:
            self._empty_log(connection, PATIENCE_S)

    @contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """The writing connection outside any transaction, while nothing else writes, in this process or another."""
        assert self._writer is not None, "the store is closed"
        try:
            with self._turns.alone(self.wait_s), self._lock(self.wait_s), translated(self.path):
                yield self._writer.conn
        except TooLong as error:
            raise Unavailable("the database is busy with another write; try again") from error

    @contextmanager
    def _lock(self, wait_s: float) -> Iterator[None]:
        self._acquire(wait_s)
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        if self._across_processes.is_locked:
            self._across_processes.release()

    def _acquire(self, wait_s: float) -> None:
        """Acquire the lock that excludes every other process. Raises `Unavailable`."""
        try:
            self._across_processes.acquire(timeout=wait_s)
        except Timeout as error:
            raise Unavailable("the database is busy in another process; try again") from error
        except OSError as error:
            raise Unavailable(f"cannot write in the data folder: {error.strerror}") from error

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """All rows of a query; its values are given by position or, in one dict, by name."""
        self._take_new_steps()
        with translated(self.path):
            return list(self.db.query(sql, values[0] if values and isinstance(values[0], dict) else values))

    def row(self, sql: str, *values: Any) -> dict[str, Any] | None:
        """The first row of a query, if any."""
        rows = self.rows(sql, *values)
        return rows[0] if rows else None

    def insert(self, table: str, row: dict[str, Any]) -> int:
        """Insert one row, dicts and lists as JSON; return its rowid. Inside `transaction` it joins that transaction."""
        values = [json.dumps(value) if isinstance(value, dict | list) else value for value in row.values()]
        marks = ", ".join("?" * len(row))
        with self.transaction() as db:
            cursor = db.conn.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", values)
            return int(cursor.lastrowid or 0)

    def close(self) -> None:
        """Close the database, checkpointing under the lock. Closing it twice is harmless."""
        atexit.unregister(self.close)
        if self._writer is None:
            return
        with self.alone():
            if hasattr(self._local, "db"):
                self._local.db.close()
                del self._local.db
            self._writer.close()
            self._writer = None


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Translate SQLite errors to `Unavailable`, with advice, and a number too large for SQLite to `Refused`.

    Pages show these messages, so they do not reveal the path of the data folder.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text:
            raise Unavailable(f"the disk of {path.name} is full; nothing was saved, free some space") from error
        if "readonly" in text or "unable to open" in text:
            raise Unavailable(f"cannot write {path.name}; check that the data folder exists and is writable") from error
        if "locked" in text or "I/O" in text:
            raise Unavailable(f"{path.name} cannot be used now ({text}); try again") from error
        raise
    except sqlite3.DatabaseError as error:
        if "not a database" in str(error) or "malformed" in str(error):
            raise Unavailable(f"{path.name} is damaged ({error}); restore it from a backup") from error
        raise
    except OverflowError as error:  # SQLite's integers have 64 bits
        raise Refused("a number is too large to be anything here") from error
