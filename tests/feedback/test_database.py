"""The door to the database: durable, alone while it writes, clear when it cannot."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from feedback.accounts import idempotency, users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database, translated
from feedback.database.migrations import steps
from feedback.errors import Conflict, NotFound, Refused, Unavailable
from feedback.kinds.tally import counts
from feedback.kinds.vote import DOWN, UP, vote
from tests.conftest import BY_BASE, two_replies


def test_a_store_opens_twice_and_migrates_once(tmp_path: Path) -> None:
    Database(tmp_path).close()
    again = Database(tmp_path)
    assert steps.pending(again.db) == []
    assert again.row("PRAGMA journal_mode") == {"journal_mode": "wal"}
    assert again.row("PRAGMA synchronous") == {"synchronous": 2}  # FULL
    assert again.row("PRAGMA foreign_keys") == {"foreign_keys": 1}
    again.close()


def test_a_failed_write_changes_nothing(store: Database, owner: User) -> None:

    def write_half() -> None:
        with store.transaction():
            store.insert("consents", {"user": owner.id, "given": 1, "at": "now"})
            store.insert("consents", {"user": 999, "given": 1, "at": "now"})

    with pytest.raises(sqlite3.IntegrityError):
        write_half()
    assert users.consent(store, owner) is None


def test_a_data_folder_that_is_a_file_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(Unavailable, match="cannot make the data folder"):
        Database(tmp_path / "data")


def test_a_damaged_database_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "nightschool.db").write_bytes(b"this is not a database, " * 100)
    with pytest.raises(Unavailable, match="damaged"):
        Database(tmp_path)


def test_a_full_disk_refuses_the_vote_and_keeps_what_was_there(store: Database, owner: User) -> None:
    _, left, _ = two_replies(store, owner)
    vote(store, owner, left, UP)
    pages = store.row("PRAGMA page_count")
    assert pages is not None
    # SQLite reports its own page limit just as it reports a full disk.
    with store.alone() as connection:
        connection.execute(f"PRAGMA max_page_count = {pages['page_count']}")

    def vote_until_it_is_full() -> None:
        for _ in range(1000):
            vote(store, owner, left, DOWN, words="x" * 5000)

    with pytest.raises(Unavailable, match="full"):
        vote_until_it_is_full()
    before = counts(store)["votes"]
    with store.alone() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    vote(store, owner, left, DOWN)
    assert counts(store)["votes"] == before + 1
    assert store.row("PRAGMA integrity_check") == {"integrity_check": "ok"}


def test_threads_write_side_by_side(store: Database, owner: User) -> None:
    _, left, _ = two_replies(store, owner)

    def vote_often() -> None:
        for _ in range(20):
            vote(store, owner, left, UP)

    threads = [threading.Thread(target=vote_often) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(store)["votes"] == 160


def vote_in_a_process(data: str, reply: str, times: int) -> None:
    store = Database(data)
    user = users.local_owner(store)
    for _ in range(times):
        vote(store, user, reply, DOWN)
    store.close()


def test_processes_write_and_checkpoint_side_by_side(store: Database, owner: User) -> None:
    _, left, _ = two_replies(store, owner)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=vote_in_a_process, args=(str(store.data), left, 300)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert counts(store)["votes"] == 900
    assert store.row("PRAGMA integrity_check") == {"integrity_check": "ok"}


BURST = """
import sys
from feedback.accounts import users
from feedback.database.database import Database
from feedback.kinds.vote import vote
store = Database(sys.argv[1])
user = users.local_owner(store)
while True:
    print(vote(store, user, sys.argv[2], 1), flush=True)
"""


@pytest.mark.parametrize("after_s", [0.3, 0.5, 0.8])
def test_a_process_killed_while_it_votes_loses_no_acknowledged_vote(
    store: Database, owner: User, after_s: float
) -> None:
    _, left, _ = two_replies(store, owner)
    command = [sys.executable, "-c", BURST, str(store.data), left]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline()]
        time.sleep(after_s)
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += process.stdout.readlines()
    numbers = {int(line) for line in acknowledged if line.endswith("\n")}
    kept = {row["id"] for row in store.rows("SELECT id FROM votes")}
    assert len(numbers) > 10
    assert numbers <= kept
    assert store.row("PRAGMA integrity_check") == {"integrity_check": "ok"}


def test_a_request_sent_twice_acts_once(store: Database, owner: User) -> None:
    _, left, _ = two_replies(store, owner)

    def act() -> dict[str, int]:
        return {"vote": vote(store, owner, left, UP)}

    first = idempotency.once(store, owner, "key-1", {"value": 1}, act)
    second = idempotency.once(store, owner, "key-1", {"value": 1}, act)
    assert (first[0], first[1], second[1]) == (second[0], False, True)
    assert counts(store)["votes"] == 1
    with pytest.raises(Conflict, match="different request"):
        idempotency.once(store, owner, "key-1", {"value": -1}, act)
    with pytest.raises(Refused, match="Idempotency-Key"):
        idempotency.once(store, owner, "", {"value": -1}, act)


def test_an_act_that_fails_leaves_its_key_free(store: Database, owner: User) -> None:
    def act() -> dict[str, int]:
        return {"vote": vote(store, owner, "nothing", UP)}

    with pytest.raises(NotFound):
        idempotency.once(store, owner, "key-1", {}, act)
    _, left, _ = two_replies(store, owner)
    _, repeated = idempotency.once(store, owner, "key-1", {}, lambda: {"v": vote(store, owner, left, 1)})
    assert not repeated


def test_a_reply_keeps_its_author(store: Database, owner: User) -> None:
    message, _, _ = two_replies(store, owner)
    by = BY_BASE.__class__(None, "b", "t", {"seed": 7}, (5, 2), (-0.5, -0.25), (-0.125, 0.0), "length", 0.5, 1.5)
    reply = conversations.add_reply(store, message, "well", by)
    assert conversations.provenance(store, reply) == by


def test_what_goes_wrong_with_the_database_is_told_without_saying_where_it_is(tmp_path: Path) -> None:
    for error in (
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.OperationalError("attempt to write a readonly database"),
        sqlite3.OperationalError("unable to open database file"),
        sqlite3.OperationalError("database is locked"),
        sqlite3.OperationalError("disk I/O error"),
        sqlite3.DatabaseError("database disk image is malformed"),
        OverflowError("Python int too large to convert to SQLite INTEGER"),
    ):
        with pytest.raises(Refused) as told, translated(tmp_path / "nightschool.db"):
            raise error
        assert str(tmp_path) not in str(told.value)


def test_a_number_that_the_database_cannot_hold_is_refused_and_changes_nothing(store: Database, owner: User) -> None:
    with pytest.raises(Refused, match="too large"):
        store.row("SELECT 1 FROM nights WHERE id = ?", 10**30)
    with pytest.raises(Refused, match="too large"):
        store.insert("consents", {"user": owner.id, "given": 10**30, "at": "now"})
    assert store.rows("SELECT * FROM consents") == []
