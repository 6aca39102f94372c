"""Adapters and promotions.

The newest promotion names the serving adapter; a rollback is a promotion of an older adapter or of the base. A caller
may state which adapter they believe is serving: of two promotions at once, one wins and the other raises `Conflict`.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feedback.database.database import Database, now
from feedback.errors import Conflict, NotFound
from feedback.records import audit, nights

BASE = "base"  # as an adapter's name
ANYTHING = "anything"  # as `instead_of`: whichever adapter serves
KEPT = "kept, because "  # begins the reason of a promotion that undoes one whose adapter could not serve


@dataclass(frozen=True)
class Adapter:
    """An announced adapter; its directory `adapters/<id>` is complete."""

    id: str
    parent: str | None
    night: int | None
    method: str
    base_sha256: str
    weights_sha256: str
    verdict: str  # "candidate", "refused" or "retired"
    reason: str
    created_at: str
    evidence: dict[str, Any] = field(default_factory=dict)  # the gate's measurements; empty if it did not judge


@dataclass(frozen=True)
class Promotion:
    """From `at` on, `adapter` serves (None: the base)."""

    id: int
    adapter: str | None
    user: int | None
    reason: str
    at: str


def directory(store: Database, adapter: str) -> Path:
    """The directory of an adapter's files."""
    return directory_in(store.data, adapter)


def directory_in(data: Path, adapter: str) -> Path:
    """The same in a data folder."""
    return data / "adapters" / adapter


def add_adapter(store: Database, adapter: Adapter) -> None:
    """Announce an adapter whose directory is complete. Raises `Conflict` on a taken id.

    If its night learned from people who have been forgotten, it is marked for a clean retrain at once.
    """
    with store.transaction():
        if store.row("SELECT 1 FROM adapters WHERE id = ?", adapter.id):
            raise Conflict(f"there is already an adapter {adapter.id!r}")
        store.insert("adapters", adapter.__dict__)
        for user in nights.forgotten_people(store, adapter.night):
            store.insert("retrains", {"adapter": adapter.id, "user": user, "at": now()})


def adapter(store: Database, name: str) -> Adapter:
    """One adapter. Raises `NotFound`."""
    row = store.row("SELECT * FROM adapters WHERE id = ?", name)
    if row is None:
        raise NotFound(f"there is no adapter {name!r}")
    return _adapter(row)


def adapters(store: Database) -> list[Adapter]:
    """Every adapter, newest first."""
    return [_adapter(row) for row in store.rows("SELECT * FROM adapters ORDER BY created_at DESC, id DESC")]


def _adapter(row: dict[str, Any]) -> Adapter:
    return Adapter(**row | {"evidence": json.loads(row["evidence"])})


def serving(store: Database) -> str | None:
    """The id of the serving adapter; None: the base."""
    row = store.row("SELECT adapter FROM promotions ORDER BY id DESC LIMIT 1")
    return row["adapter"] if row else None


def promoted_at(store: Database) -> str:
    """When what serves was promoted; empty if nothing ever was."""
    row = store.row("SELECT at FROM promotions ORDER BY id DESC LIMIT 1")
    return str(row["at"]) if row else ""


def promote(
    store: Database,
    name: str | None,
    user: int | None,
    reason: str,
    proof: dict[str, Any],
    instead_of: str | None = ANYTHING,
) -> int:
    """Make an adapter (None: the base) the serving adapter in place of `instead_of`; return the promotion's id.

    Raises `NotFound` on an unknown adapter, and `Conflict` if it serves already, was refused, or `instead_of` is not
    serving.
    """
    with store.transaction():
        require_promotable(store, name, instead_of)
        row = {"adapter": name, "user": user, "reason": reason, "proof": proof, "at": now()}
        done = store.insert("promotions", row)
        audit.record(store, user, "promote", name or BASE, {"reason": reason})
    return done


def require_promotable(store: Database, name: str | None, instead_of: str | None = ANYTHING) -> None:
    """Raises as `promote` does if an adapter cannot be promoted now."""
    if instead_of not in (ANYTHING, serving(store)):
        raise Conflict(f"{what_happened(store)}; look again before you promote")
    if name is not None and adapter(store, name).verdict == "refused":
        raise Conflict(f"adapter {name} was refused: {adapter(store, name).reason}")
    if serving(store) == name:
        raise Conflict(f"{name or 'the base'} serves already")


def what_happened(store: Database) -> str:
    """The newest promotion as a clause: who promoted what, and when."""
    newest = next(iter(promotions(store, 1)), None)
    if newest is None:
        return "the base serves, and nothing else ever did"
    row = store.row("SELECT name FROM users WHERE id = ?", newest.user)
    adapter = newest.adapter or "the base"
    done = f"{row['name']} promoted {adapter}" if row else f"{adapter} was promoted"
    minutes = int((datetime.now(UTC) - datetime.fromisoformat(newest.at)).total_seconds() // 60)
    if minutes < 1:
        return f"{done} a moment ago"
    ago = f"{minutes} minute{'s' if minutes > 1 else ''} ago"
    return f"{done} {ago}" if minutes < 60 else f"{done} at {newest.at[:16].replace('T', ' ')} UTC"


def before_serving(store: Database) -> str | None:
    """The adapter that served before the serving one (None: the base). Raises `Conflict` if the base serves."""
    current = serving(store)
    if current is None:
        raise Conflict("the base serves; there is nothing to go back to")
    # Look before the first promotion of the serving adapter, so that rolling back twice goes further back.
    sql = """SELECT adapter FROM promotions WHERE id <
        (SELECT min(id) FROM promotions WHERE adapter = ?) ORDER BY id DESC LIMIT 1"""
    row = store.row(sql, current)
    return row["adapter"] if row else None


def promotions(store: Database, limit: int = 50) -> list[Promotion]:
    """The newest promotions, newest first."""
    sql = "SELECT id, adapter, user, reason, at FROM promotions ORDER BY id DESC LIMIT ?"
    return [Promotion(**row) for row in store.rows(sql, limit)]
