"""The speed of the ledger: votes written to disk, and queries on a ledger of a million votes. The last line is JSON.

`python -m benchmarks.ledger [--votes N] [--seconds S] [--keep DIR]`. Votes are measured in the temporary folder, in the
same run as bare `fdatasync` there, so that the two can be compared; the large ledger is in DIR if that is given.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import Database
from feedback.examples import build
from feedback.formats import export, files
from feedback.formats.registry import FORMATS
from feedback.kinds import current
from feedback.kinds.correction import standing_correction
from feedback.kinds.tally import by_day, counts
from feedback.kinds.vote import standing_vote, vote
from feedback.messages import Message
from feedback.records import adapters, audit, nights

WRITERS = (1, 8, 32)
RATERS = 500
PER_CONVERSATION = 5  # votes
NEW = 2_000
EXPORTED = 100_000  # rows
AT_ONCE = 2_000  # conversations per transaction
WORDS = ["the", "night", "school", "keeps", "what", "people", "said", "of", "each", "reply", "and", "learns", "from it"]


def main() -> int:
    """Measure, print results as they come, and all of them as JSON at the end."""
    parser = argparse.ArgumentParser(prog="benchmarks.ledger", description="How fast the ledger is here.")
    parser.add_argument("--votes", type=int, default=1_000_000, help="votes of the large ledger")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number of writers")
    parser.add_argument("--keep", type=Path, help="a folder for the large ledger, used again where it is there")
    parser.add_argument("--vote-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.vote_in:
        return vote_in(options.vote_in, options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        found = disk(Path(folder), options.seconds)
        found |= votes(Path(folder) / "votes", options.seconds, found["fdatasync_s"])
        found |= large(options.keep or Path(folder) / "large", options.votes)
    found["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))
    return 0


def disk(folder: Path, seconds: float) -> dict[str, float]:
    """The disk's speed at appending 4 KB and `fdatasync`, one after another."""
    taken = []
    handle = os.open(folder / "raw", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        os.write(handle, b"x" * 4096)
        os.fdatasync(handle)
        taken.append(time.perf_counter() - began)
    os.close(handle)
    return {"fdatasync_p50_ms": statistics.median(taken) * 1000, "fdatasync_s": len(taken) / sum(taken)}


def votes(folder: Path, seconds: float, raw_s: float) -> dict[str, float]:
    """The speed of acknowledged votes by 1, 8 and 32 threads."""
    store, user, replies = prepared(folder)
    found: dict[str, float] = {}
    for writers in WRITERS:
        taken = voted(store, user, replies, writers, seconds)
        found[f"votes_s_{writers}"] = len(taken) / seconds
        if writers == 1:
            found["vote_p50_ms"] = statistics.median(taken) * 1000
            found["vote_p99_ms"] = statistics.quantiles(taken, n=100)[98] * 1000
        print(f"{writers} writers: {len(taken) / seconds:,.0f} votes a second", flush=True)
    store.close()
    found["group_commit_gain"] = found["votes_s_32"] / found["votes_s_1"]
    found["disk_share"] = min(1.0, found["votes_s_1"] / min(0.7 * raw_s, 2000))  # of what one writer should reach
    found["fsyncs_per_vote_32"] = syncs_per_vote(folder, seconds)
    return found


def prepared(folder: Path) -> tuple[Database, User, list[str]]:
    """A database with a few replies to vote on."""
    store = Database(folder)
    user = users.local_owner(store)
    by = Provenance(None, "b" * 64, "t" * 64, {})
    replies = []
    for number in range(20):
        parent = conversations.record_messages(store, user, "chat", [Message("user", f"question {number}")])
        replies.append(conversations.add_reply(store, parent, "an answer", by))
    return store, user, replies


def voted(store: Database, user: User, replies: list[str], writers: int, seconds: float) -> list[float]:
    """Vote in several threads; return the seconds that each acknowledged vote took."""
    taken: list[float] = []
    until = time.monotonic() + seconds

    def vote_on(number: int) -> None:
        mine, chance = [], random.Random(number)
        while time.monotonic() < until:
            began = time.perf_counter()
            vote(store, user, chance.choice(replies), chance.choice((-1, 1)))
            mine.append(time.perf_counter() - began)
        taken.extend(mine)

    threads = [threading.Thread(target=vote_on, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def vote_in(folder: Path, seconds: float) -> int:
    """Vote in 32 threads and print the number of votes, for `syncs_per_vote`, which counts the system calls."""
    store, user, replies = prepared(folder)
    before = counts(store)["votes"]
    voted(store, user, replies, 32, seconds)
    print(counts(store)["votes"] - before)
    return 0


def syncs_per_vote(folder: Path, seconds: float) -> float:
    """Waits for the disk per vote of 32 writers, as strace counts them; -1 if there is no strace."""
    strace = shutil.which("strace")
    if strace is None:
        return -1.0
    traced = folder / "trace"
    command = [strace, "-f", "-e", "trace=fdatasync,fsync", "-o", str(traced), sys.executable, "-m", __spec__.name]
    command += ["--vote-in", str(folder), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return len(re.findall(r"\d+ +(?:fdatasync|fsync)\(", traced.read_text())) / int(done.stdout)


def large(folder: Path, count: int) -> dict[str, float]:
    """Measure a large ledger, and, if it is a new one, its examples at a tenth of the size as well."""
    begun = not (folder / "nightschool.db").exists()
    if begun:
        grow(folder, count // 10)
    store = Database(folder)
    found: dict[str, float] = {}
    if begun:
        found["examples_2000_new_tenth_s"] = timed_examples(store, NEW)
        store.close()
        grow(folder, count - count // 10)
        store = Database(folder)
    found["examples_200_new_s"] = timed_examples(store, NEW // 10)
    found["examples_2000_new_s"] = timed_examples(store, NEW)
    found["open_conversation_ms"] = opening(store)
    found["operate_query_ms"] = operating(store)
    found["export_rows_s"] = exported(store, folder / "out.jsonl")
    store.close()
    return found


def grow(folder: Path, count: int) -> None:
    """Add votes in a process of its own, whose memory does not count as ours."""
    print(f"writing {count:,} votes", flush=True)
    command = f"from benchmarks.ledger import write; write({str(folder)!r}, {count})"
    subprocess.run([sys.executable, "-c", command], check=True)


def write(data: str, count: int) -> None:
    """Write conversations of four messages and five votes, over the last year, as the ledger would hold them."""
    store, chance = Database(data), random.Random(count)
    raters = [person(store, number) for number in range(RATERS)]
    conversations = count // PER_CONVERSATION
    for start in range(0, conversations, AT_ONCE):
        made = [conversation(chance, raters) for _ in range(min(AT_ONCE, conversations - start))]
        with store.transaction() as db:
            for table in ("conversations", "messages", "replies", "votes"):
                rows = [row for each in made for row in each[table]]
                marks = ", ".join("?" * len(rows[0]))
                db.conn.executemany(f"INSERT INTO {table} ({', '.join(rows[0])}) VALUES ({marks})",
                                    [list(row.values()) for row in rows])  # fmt: skip
    store.close()


def person(store: Database, number: int) -> int:
    """The id of a rater who has consented to learning."""
    user = users.find_user(store, f"rater {number}") or users.add_user(store, f"rater {number}", "rater", None)
    users.set_consent(store, user, True)
    return user.id


def conversation(chance: random.Random, raters: list[int]) -> dict[str, list[dict[str, Any]]]:
    """The rows of one conversation."""
    name, at = f"{chance.getrandbits(64):016x}", moment(chance.random() * 365)
    user = chance.choice(raters)
    ids = [f"{chance.getrandbits(64):016x}" for _ in range(4)]
    said = [" ".join(chance.choices(WORDS, k=chance.randrange(5, 60))) for _ in range(4)]
    messages = [
        {"id": ids[n], "conversation": name, "parent": ids[n - 1] if n else None, "role": ("user", "assistant")[n % 2],
         "content": said[n], "created_at": at}
        for n in range(4)
    ]  # fmt: skip
    author = {"base_sha256": "b" * 64, "template_sha256": "t" * 64, "sampling": "{}", "finish": "stop"}
    replies = [{"message": ids[n], **author, "token_ids": bytes(4 * (len(said[n]) // 5))} for n in (1, 3)]
    votes = [
        {"user": chance.choice(raters), "reply": ids[1 + 2 * (n % 2)], "value": chance.choice((-1, 1)), "at": at}
        for n in range(PER_CONVERSATION)
    ]
    told = [{"id": name, "user": user, "source": "chat", "title": said[0][:60], "leaf": None, "created_at": at}]
    return {"conversations": told, "messages": messages, "replies": replies, "votes": votes}


def moment(days_ago: float) -> str:
    """A time as the ledger keeps it."""
    return (datetime.now(UTC) - timedelta(days=days_ago)).isoformat(timespec="milliseconds")


def timed_examples(store: Database, new: int) -> float:
    """Seconds from this many new votes to their examples."""
    here, chance = current.position(store), random.Random(new)
    rows = store.rows("SELECT message, c.user FROM replies JOIN messages m ON m.id = message"
                      " JOIN conversations c ON c.id = m.conversation LIMIT ?", new)  # fmt: skip
    with store.transaction():
        for row in rows:
            store.insert("votes", {"user": row["user"], "reply": row["message"], "value": chance.choice((-1, 1)),
                                   "at": moment(0)})  # fmt: skip
    began = time.perf_counter()
    gathered = build.gather(store, here)
    taken = time.perf_counter() - began
    print(f"{new:,} new votes: {len(gathered):,} examples in {taken:.2f} s", flush=True)
    return taken


def milliseconds(act: Callable[[], Any], times: int) -> float:
    """The median duration of several runs."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000


def opening(store: Database) -> float:
    """Milliseconds to open a conversation with its reader's feedback on it."""
    some = store.rows("SELECT id, user FROM conversations ORDER BY id LIMIT 200")

    def open_one() -> None:
        row = random.choice(some)
        user = users.user_by_id(store, row["user"])
        assert user is not None
        conversations.own_conversation(store, user, row["id"])
        for node in conversations.tree(store, row["id"]):
            if node.role == "assistant":
                standing_vote(store, user, node.id)
                standing_correction(store, user, node.id)

    return milliseconds(open_one, 100)


def operating(store: Database) -> float:
    """Milliseconds of the operate page's slowest query."""
    asked: dict[str, Callable[[], Any]] = {
        "counts": lambda: counts(store),
        "position": lambda: current.position(store),
        "by day": lambda: by_day(store, ZoneInfo("UTC")),
        "nights": lambda: nights.nights(store),
        "adapters": lambda: adapters.adapters(store),
        "promotions": lambda: adapters.promotions(store),
        "audit": lambda: audit.trail(store),
    }
    taken = {name: milliseconds(act, 5) for name, act in asked.items()}
    print("operate page: " + ", ".join(f"{name} {value:.1f} ms" for name, value in taken.items()), flush=True)
    return max(taken.values())


def exported(store: Database, path: Path) -> float:
    """Rows per second, from the ledger to a file."""
    began = time.perf_counter()
    count = files.write(path, islice(export.rows(store, FORMATS["trl-unpaired"], Counter()), EXPORTED))
    rate = count / (time.perf_counter() - began)
    path.unlink()
    print(f"exported {count:,} rows, {rate:,.0f} a second", flush=True)
    return rate


if __name__ == "__main__":
    sys.exit(main())
