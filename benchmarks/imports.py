"""The speed of a large import, and of a night's examples on that ledger. The last line is JSON.

`python -m benchmarks.imports [--pairs N] [--new N] [--keep DIR]`. Each step runs in a process of its own, as the
command would, so that its peak memory is its own.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from feedback.database.database import Database, now
from feedback.examples import build
from feedback.formats import export, load
from feedback.formats.registry import FORMATS
from feedback.records import settings

PAIRS = 500_000
NEW = 2_000  # votes of people here
RATERS = 10
WORDS = 60  # of each text; a pair is about 1 KB, as in the usual data sets


def main() -> int:
    """Measure, print results as they come, and all of them as JSON at the end."""
    parser = argparse.ArgumentParser(prog="benchmarks.imports", description="How fast a large import is here.")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--new", type=int, default=NEW, help="votes of people here, after the import")
    parser.add_argument("--keep", type=Path, help="a folder for the file and the ledger")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = options.keep or Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {"pairs": options.pairs, "new": options.new}
        found["file_mb"] = synthesized(where / "pairs.jsonl", options.pairs)
        for step, act in STEPS.items():
            took = measured(step, where, options.new)
            found |= {f"{step}_{name}": value for name, value in took.items()}
            print(f"{act.__doc__}: {took['count']:,} in {took['s']:.1f} s, {took['rss_mb']:.0f} MB at most", flush=True)
        found["ledger_mb"] = (where / "data" / "nightschool.db").stat().st_size / 2**20
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))
    return 0


def synthesized(path: Path, count: int) -> float:
    """Write a file of pairs; return its size in MB."""
    chance = random.Random(0)
    words = [
        f"{first}{second}" for first in ("ba", "ne", "lo", "mi", "su") for second in ("ra", "to", "ki", "en", "va")
    ]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked, better, worse = (" ".join(chance.choices(words, k=WORDS)) for _ in range(3))
            row = {"prompt": f"{number} {asked}", "chosen": better, "rejected": worse, "score": chance.random()}
            file.write(json.dumps(row) + "\n")
    return path.stat().st_size / 2**20


def measured(step: str, where: Path, new: int) -> dict[str, float]:
    """The seconds and the peak memory, in MB, of a step in a process of its own, and what it counts."""
    command = [sys.executable, "-c", f"from benchmarks.imports import run; run({step!r}, {str(where)!r}, {new})"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(step: str, where: str, new: int) -> None:
    """Run one step here, and print what it took."""
    store = Database(Path(where) / "data")
    before, began, cpu = peak_mb(), time.perf_counter(), time.process_time()
    count = STEPS[step](store, Path(where), new)
    taken = {"s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu, "count": count}
    print(json.dumps(taken | {"rss_mb": peak_mb(), "more_mb": peak_mb() - before}))
    store.close()


def peak_mb() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def imported(store: Database, where: Path, new: int) -> int:
    """The import"""
    return load.import_file(store, where / "pairs.jsonl").kept


def again(store: Database, where: Path, new: int) -> int:
    """The import of a repaired copy, in which one row is new"""
    text = (where / "pairs.jsonl").open(encoding="utf-8")
    with text, (where / "repaired.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(text)
        file.write(json.dumps({"prompt": "new", "chosen": "a", "rejected": "b"}) + "\n")
    return load.import_file(store, where / "repaired.jsonl").kept


def vote(store: Database, where: Path, new: int) -> int:
    """New votes by people here"""
    moment, chance = now(), random.Random(1)
    with store.transaction() as db:
        raters = []
        for number in range(RATERS):
            user = {"name": f"rater {number}", "role": "rater", "created_at": moment}
            raters.append(store.insert("users", user))
            store.insert("consents", {"user": raters[-1], "given": 1, "at": moment})
        for number in range(new):
            ids = [os.urandom(8).hex() for _ in range(3)]
            rater = chance.choice(raters)
            store.insert("conversations", {"id": ids[0], "user": rater, "source": "chat", "created_at": moment})
            turns = (("user", f"question {number}", None), ("assistant", f"answer {number}", ids[1]))
            for id, (role, content, parent) in zip(ids[1:], turns, strict=True):
                row = {"id": id, "conversation": ids[0], "parent": parent, "role": role, "content": content}
                store.insert("messages", row | {"created_at": moment})
            store.insert("replies", {"message": ids[2], "sampling": "{}", "finish": "stop", "base_sha256": "b" * 64})
            said: dict[str, Any] = {"user": rater, "reply": ids[2], "value": chance.choice((-1, 1)), "at": moment}
            db.conn.execute(f"INSERT INTO votes ({', '.join(said)}) VALUES (?, ?, ?, ?)", list(said.values()))
    return new


def gathered(store: Database, where: Path, new: int) -> int:
    """All that a night learns from, where several people rate"""
    return len(build.gather(store))


def gathered_new(store: Database, where: Path, new: int) -> int:
    """What was said since the import"""
    from feedback.kinds import current

    here = current.position(store)
    return len(build.gather(store, here | {"votes": here["votes"] - new}))


def exported(store: Database, where: Path, new: int) -> int:
    """The export of all pairs"""
    return export.export_file(store, where / "out.jsonl", FORMATS["trl"], Counter())


def gathered_alone(store: Database, where: Path, new: int) -> int:
    """All that a night learns from, where fewer than five rate"""
    with store.transaction() as db:
        db.conn.execute("UPDATE consents SET given = 0 WHERE user IN (SELECT id FROM users WHERE kind = 'person')")
    return len(build.gather(store))


def gathered_whole(store: Database, where: Path, new: int) -> int:
    """The same, where the operator wants all pairs"""
    settings.set_setting(store, None, "imported_prompts", 10_000_000)
    return len(build.gather(store))


STEPS = {
    "import": imported,
    "vote": vote,
    "gather": gathered,
    "gather_new": gathered_new,
    "export": exported,
    "again": again,
    "gather_alone": gathered_alone,
    "gather_whole": gathered_whole,
}

if __name__ == "__main__":
    sys.exit(main())
