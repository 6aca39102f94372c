"""The records of nights.

A night updates its own row as it runs, so pages, command line and API show its progress live.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedback.database.database import Database, now
from feedback.errors import NotFound
from feedback.records import old_names

RUNNING = "running"
EXAMPLES = "examples.json"  # in a night's folder: its training examples, as text


@dataclass(frozen=True)
class Night:
    """One training run, at `step` of `steps` in `phase`; `reason` says in words how it ended, or a warning before."""

    id: int
    state: str  # "running", "done", "nothing", "failed", "cancelled" or "abandoned"
    pid: int
    method: str
    settings: dict[str, Any]
    counts: dict[str, Any]
    data_sha256: str | None
    phase: str
    step: int
    steps: int
    eta_s: float | None
    adapter: str | None
    reason: str
    started_at: str
    beat_at: str
    ended_at: str | None
    verdict: str | None  # of the gate on its adapter: "promoted", "candidate" or "refused"


def start_night(store: Database, method: str, settings: dict[str, Any], pid: int, started_at: str | None = None) -> int:
    """Add a running night and return its id; `started_at` must precede its reading of feedback, or some is missed."""
    row = {"state": RUNNING, "pid": pid, "method": method, "settings": settings}
    return store.insert("nights", row | {"started_at": started_at or now(), "beat_at": now()})


def update_night(store: Database, night_id: int, **changes: Any) -> None:
    """Update a running night; every call also renews `beat_at`, its sign of life."""
    changes |= {"beat_at": now()}
    values = [json.dumps(value) if isinstance(value, dict) else value for value in changes.values()]
    with store.transaction() as db:
        assigned = ", ".join(f"{name} = ?" for name in changes)
        db.conn.execute(f"UPDATE nights SET {assigned} WHERE id = ?", (*values, night_id))


def record_people(store: Database, night_id: int, examples_of: dict[int, int]) -> None:
    """Record everybody whose words a night learns from, with each person's number of examples."""
    with store.transaction() as db:
        rows = [(night_id, user, count) for user, count in sorted(examples_of.items())]
        sql = "INSERT OR REPLACE INTO night_people (night, user, examples, complete) VALUES (?, ?, ?, 1)"
        db.conn.executemany(sql, rows)


def inherit_people(store: Database, night_id: int, earlier: int) -> None:
    """Record that a night's adapter begins as one of an earlier night, so that it holds what those people said, too."""
    with store.transaction() as db:
        sql = """INSERT OR IGNORE INTO night_people (night, user, examples, complete)
            SELECT ?, user, examples, complete FROM night_people WHERE night = ?"""
        db.conn.execute(sql, (night_id, earlier))


def forgotten_people(store: Database, night_id: int | None) -> list[int]:
    """The people whose words a night learns from and who have been forgotten, before it began or since."""
    sql = """SELECT p.user FROM night_people p JOIN users u ON u.id = p.user
        WHERE p.night = ? AND u.forgotten_at IS NOT NULL ORDER BY p.user"""
    return [row["user"] for row in store.rows(sql, night_id)]


def reward_models_of(store: Database, night_id: int) -> Path:
    """The folder for a night's reward models, which exists if it made any."""
    return store.data / "reward_models" / f"night-{night_id:04d}"


def folder_of(data: Path, night_id: int) -> Path:
    """The folder of a night's files while it runs."""
    return data / "nights" / str(night_id)


def end_night(
    store: Database, night_id: int, state: str, reason: str, adapter: str | None = None, verdict: str | None = None
) -> None:
    """End a night with its outcome. Its reward models are deleted if they learned from a forgotten person."""
    outcome = {"state": state, "reason": reason, "adapter": adapter, "verdict": verdict}
    with store.transaction():
        update_night(store, night_id, **outcome, phase=state, eta_s=None, ended_at=now())
        if forgotten_people(store, night_id):
            shutil.rmtree(reward_models_of(store, night_id), ignore_errors=True)


def add_step(store: Database, night_id: int, step: int, metrics: dict[str, float], **changes: Any) -> None:
    """Record an optimiser step's metrics and the night's progress; a step repeated after a resume replaces it."""
    with store.transaction() as db:
        sql = "INSERT OR REPLACE INTO night_steps (night, step, metrics, at) VALUES (?, ?, ?, ?)"
        db.conn.execute(sql, (night_id, step, json.dumps(metrics), now()))
        update_night(store, night_id, step=step, **changes)


def night_steps(store: Database, night_id: int, most: int | None = None) -> list[dict[str, Any]]:
    """The metrics of each step so far, in order: {"step": 1, "loss": ..., ...}, evenly thinned to about `most`."""
    newest = store.row("SELECT coalesce(max(step), 0) AS step FROM night_steps WHERE night = ?", night_id)
    every = 1 + newest["step"] // most if most and newest else 1
    sql = """SELECT step, metrics FROM night_steps WHERE night = ?
        AND (step % ? = 0 OR step = 1 OR step = ? OR metrics LIKE '%"held_out%') ORDER BY step"""
    rows = store.rows(sql, night_id, every, newest["step"] if newest else 0)
    return [{"step": row["step"]} | old_names.metrics(json.loads(row["metrics"])) for row in rows]


def night(store: Database, night_id: int) -> Night:
    """One night. Raises `NotFound`."""
    row = store.row("SELECT * FROM nights WHERE id = ?", night_id)
    if row is None:
        raise NotFound(f"there is no night {night_id}")
    return _night(row)


def nights(store: Database, limit: int = 50) -> list[Night]:
    """The newest nights, newest first."""
    return [_night(row) for row in store.rows("SELECT * FROM nights ORDER BY id DESC LIMIT ?", limit)]


def last_trained(store: Database) -> Night | None:
    """The newest night that made an adapter."""
    row = store.row("SELECT * FROM nights WHERE state = 'done' ORDER BY id DESC LIMIT 1")
    return _night(row) if row else None


def _night(row: dict[str, Any]) -> Night:
    return Night(
        **row | {"settings": old_names.settings(json.loads(row["settings"])), "counts": json.loads(row["counts"])}
    )
