"""What was acknowledged is kept: through kills, cut logs, full logs, held locks and many processes."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from feedback.accounts import idempotency, users
from feedback.accounts.users import User
from feedback.database import database as store_module
from feedback.database.database import Database
from feedback.errors import Unavailable
from feedback.kinds import tally
from feedback.kinds.vote import DOWN, UP, vote
from tests.conftest import two_replies

CLIENTS = 20
READY_S = 10.0

# Twenty threads, each with keys of its own: "asked KEY" before a vote, "acknowledged KEY" after it.
CLIENTS_VOTING = """
import sys, threading
from feedback.accounts import idempotency, users
from feedback.database.database import Database
from feedback.kinds.vote import vote
store = Database(sys.argv[1])
reply, trial, clients = sys.argv[2], sys.argv[3], int(sys.argv[4])
user = users.local_owner(store)
say = threading.Lock()

def client(number):
    for count in range(1_000_000):
        key = f"{trial}-{number}-{count}"
        with say:
            print("asked", key, flush=True)
        idempotency.once(store, user, key, {}, lambda: {"id": vote(store, user, reply, 1, words=key)})
        with say:
            print("acknowledged", key, flush=True)

threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def kill_trial(data: Path, reply: str, trial: int, after_s: float) -> int:
    """Kill a process of twenty clients, open its store again, let every client repeat what it was not told of.

    How many votes had been acknowledged; checks that all of them are there, once.
    """
    command = [sys.executable, "-c", CLIENTS_VOTING, str(data), reply, str(trial), str(CLIENTS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(after_s)
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
    said = [line.split() for line in lines if line.endswith("\n")]
    asked = {key for word, key in said if word == "asked"}
    acknowledged = {key for word, key in said if word == "acknowledged"}

    began = time.monotonic()
    store = Database(data)
    user = users.local_owner(store)
    for key in asked - acknowledged:
        idempotency.once(store, user, key, {}, lambda key=key: {"id": vote(store, user, reply, 1, words=key)})
    assert time.monotonic() - began < READY_S

    kept = Counter(row["words"] for row in store.rows("SELECT words FROM votes WHERE words LIKE ?", f"{trial}-%"))
    assert acknowledged <= set(kept)
    assert asked == set(kept)
    assert set(kept.values()) <= {1}
    assert store.row("PRAGMA integrity_check") == {"integrity_check": "ok"}
    store.close()
    return len(acknowledged)


def kill_trials(store: Database, owner: User, trials: int) -> None:
    _, reply, _ = two_replies(store, owner)
    store.close()
    chance = random.Random(20)
    counts = [kill_trial(store.data, reply, trial, chance.uniform(0, 0.6)) for trial in range(trials)]
    assert sum(counts) > 10 * trials


def test_twenty_clients_of_a_killed_store_lose_nothing_and_double_nothing(store: Database, owner: User) -> None:
    kill_trials(store, owner, 5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_three_hundred_kills_lose_nothing_and_double_nothing(store: Database, owner: User) -> None:
    kill_trials(store, owner, 300)


def commits_within(log: bytes, length: int) -> int:
    """How many commits the first `length` bytes of a write-ahead log hold whole (sqlite.org/fileformat2, section 4)."""
    page_size = struct.unpack(">I", log[8:12])[0]
    frame, commits = 24 + page_size, 0
    for start in range(32, length - frame + 1, frame):
        commits += (
            struct.unpack(">I", log[start + 4 : start + 8])[0] != 0
        )  # the database's size, in a commit's last frame
    return commits


def cut_logs(store: Database, owner: User, cuts: int) -> None:
    """Each commit holds a vote and a consent; a log cut anywhere holds the same number of both."""
    _, reply, _ = two_replies(store, owner)
    store.checkpoint()
    for number in range(60):
        with store.transaction():
            vote(store, owner, reply, UP, words=str(number) * 50)
            users.set_consent(store, owner, True)
    log = Path(f"{store.path}-wal").read_bytes()
    copied = store.path.read_bytes()
    assert commits_within(log, len(log)) == 60
    chance = random.Random(7)
    there = store.data.parent / "cut"
    for _ in range(cuts):
        length = chance.randrange(len(log) + 1)
        shutil.rmtree(there, ignore_errors=True)
        there.mkdir()
        (there / "nightschool.db").write_bytes(copied)
        (there / "nightschool.db-wal").write_bytes(log[:length])
        opened = Database(there)
        counted = opened.row("SELECT (SELECT count(*) FROM votes) AS v, (SELECT count(*) FROM consents) AS c")
        assert counted == {"v": commits_within(log, length), "c": commits_within(log, length)}, length
        assert opened.row("PRAGMA quick_check") == {"quick_check": "ok"}
        opened.close()


def test_a_log_cut_anywhere_keeps_every_whole_commit_and_no_part_of_one(store: Database, owner: User) -> None:
    cut_logs(store, owner, 100)


@pytest.mark.soak
def test_a_log_cut_in_a_thousand_places(store: Database, owner: User) -> None:
    cut_logs(store, owner, 1000)


VOTES = """
import os, sys
from feedback.accounts import users
from feedback.database.database import Database
from feedback.kinds.vote import vote
store = Database(sys.argv[1])
user = users.local_owner(store)
for number in range(20):
    vote(store, user, sys.argv[2], 1)
    os.write(1, b"acknowledged\\n")
"""


def test_the_disk_was_waited_for_before_each_acknowledgement(store: Database, owner: User, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not on this machine")
    _, reply, _ = two_replies(store, owner)
    store.close()
    traced = tmp_path / "trace"
    command = [strace, "-f", "-y", "-s", "16", "-e", "trace=write,fdatasync,fsync", "-o", str(traced)]
    done = subprocess.run(
        [*command, sys.executable, "-c", VOTES, str(store.data), reply], capture_output=True, text=True
    )
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.stdout.count("acknowledged") == 20, done.stderr
    synced, acknowledged = 0, 0
    for line in traced.read_text().splitlines():
        if re.search(r"(fdatasync|fsync)\(\d+<[^>]*nightschool\.db-wal>.*= 0", line):
            synced += 1
        elif '"acknowledged' in line:
            acknowledged += 1
            assert synced >= acknowledged
            synced = acknowledged  # one wait for the disk counts for one acknowledgement
    assert acknowledged == 20


def write_and_checkpoint(data: str, reply: str, seconds: float, seed: int) -> None:
    store, chance = Database(data), random.Random(seed)
    user = users.local_owner(store)
    until, done = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        vote(store, user, reply, UP, words=f"{seed} " + "x" * chance.randrange(4000))
        done += 1
        if chance.random() < 0.05:
            store.checkpoint()
    (store.data / f"done-{seed}").write_text(str(done))
    store.close()


def side_by_side(store: Database, owner: User, seconds: float) -> None:
    _, reply, _ = two_replies(store, owner)
    spawn = multiprocessing.get_context("spawn")
    arguments = [(str(store.data), reply, seconds, seed) for seed in range(4)]
    workers = [spawn.Process(target=write_and_checkpoint, args=each) for each in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    done = [int((store.data / f"done-{seed}").read_text()) for seed in range(4)]
    assert min(done) > 0
    assert tally.counts(store)["votes"] == sum(done)
    assert store.row("PRAGMA integrity_check") == {"integrity_check": "ok"}


def test_four_processes_write_and_checkpoint_without_harm(store: Database, owner: User) -> None:
    side_by_side(store, owner, 1.5)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_four_processes_write_and_checkpoint_for_ten_minutes(store: Database, owner: User) -> None:
    side_by_side(store, owner, 600)


HOLDS = """
import sqlite3, sys, time
from filelock import FileLock
path, kind, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
connection = sqlite3.connect(path, isolation_level=None)
if kind == "file":
    lock = FileLock(path + ".lock")
    lock.acquire()
else:
    connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(seconds)
"""


@contextmanager
def held(store: Database, kind: str, seconds: float) -> Iterator[None]:
    """Another process holds our lock, or SQLite's own, for so long."""
    command = [sys.executable, "-c", HOLDS, str(store.path), kind, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_lock_held_for_a_while_delays_and_loses_nothing(store: Database, owner: User, kind: str) -> None:
    _, reply, _ = two_replies(store, owner)
    with held(store, kind, 3):
        for value in (UP, DOWN):
            vote(store, owner, reply, value)
    assert tally.counts(store)["votes"] == 2


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_lock_held_too_long_is_a_clean_refusal_and_the_next_try_is_saved(
    store: Database, owner: User, kind: str
) -> None:
    _, reply, _ = two_replies(store, owner)
    hasty = Database(store.data, wait_s=0.2)
    with held(store, kind, 2):
        with pytest.raises(Unavailable, match="try again"):
            vote(hasty, owner, reply, UP)
        assert tally.counts(hasty)["votes"] == 0
    vote(hasty, owner, reply, UP)
    assert tally.counts(hasty)["votes"] == 1
    hasty.close()


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_lock_held_for_a_minute_is_a_clean_refusal(store: Database, owner: User, kind: str) -> None:
    _, reply, _ = two_replies(store, owner)
    with held(store, kind, 60):
        with pytest.raises(Unavailable, match="try again"):
            vote(store, owner, reply, UP)
        assert tally.counts(store)["votes"] == 0
    vote(store, owner, reply, UP)
    assert tally.counts(store)["votes"] == 1


def test_the_log_stays_short_though_somebody_keeps_reading(
    store: Database, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LONGEST_LOG", 2 * store_module.MB)
    monkeypatch.setattr(store_module, "ROOM", store_module.MB // 2)
    monkeypatch.setattr(store_module, "SHORTENED_FROM", store_module.MB // 2)
    monkeypatch.setattr(store_module, "PATIENCE_S", 0.1)
    store._shorten_from = store_module.SHORTENED_FROM
    _, reply, _ = two_replies(store, owner)
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM votes").fetchall()

    def vote_on() -> None:
        for _ in range(500):
            vote(store, owner, reply, UP, words="x" * 5000)
            assert store.log_bytes() <= store_module.LONGEST_LOG

    with pytest.raises(Unavailable, match="end that program"):
        vote_on()
    before = tally.counts(store)["votes"]
    assert before > 20
    reader.close()
    for _ in range(300):
        vote(store, owner, reply, UP, words="x" * 5000)
        assert store.log_bytes() <= store_module.LONGEST_LOG
    assert tally.counts(store)["votes"] == before + 300
