"""Decisions about adapters: each with what it rests on, and the risk that it took of the year's account."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from feedback.database.database import Database, now
from feedback.database.openings import name_of

OFFLINE = "offline"  # the door of held-out conversations
YEAR = timedelta(days=365)


class Side(NamedTuple):
    """What one person's feedback on one held-out conversation says of an adapter: 1 for it, 0 against it, 1/2."""

    user: int
    conversation: str  # its opening
    side: float


@dataclass(frozen=True)
class Decision:
    """A decision about `adapter` in comparison with `against` (None: the base)."""

    adapter: str
    against: str | None
    night: int | None
    door: str
    outcome: str  # "promoted", "candidate", "refused"
    risk: float  # the chance of a false promotion that it took
    reason: str
    evidence: dict[str, Any]
    id: int = 0
    at: str = ""


def record(store: Database, decision: Decision, sides: Iterable[Side] = (), secret: str = "") -> int:
    """Record a new decision, with who judged offline and how; `secret` keys the openings. Returns its id."""
    row = {name: value for name, value in asdict(decision).items() if name not in ("id", "at")}
    with store.transaction() as db:  # one statement for any number of votes, since other writers wait for it
        done = store.insert("decisions", row | {"at": now()})
        sql = "INSERT INTO held_out_votes (decision, conversation, user, side) VALUES (?, ?, ?, ?)"
        said = [(done, name_of(secret, each.conversation), each.user, each.side) for each in sides]
        db.conn.executemany(sql, said)
    return done


def decisions(store: Database, night: int | None = None, limit: int = 100) -> list[Decision]:
    """The newest decisions, of one night or of all, newest first."""
    where, of = ("", ()) if night is None else ("WHERE night = ?", (night,))
    rows = store.rows(f"SELECT * FROM decisions {where} ORDER BY id DESC LIMIT ?", *of, limit)
    return [Decision(**row | {"evidence": json.loads(row["evidence"])}) for row in rows]


def counts(store: Database) -> dict[tuple[str, str], int]:
    """The number of decisions by door and outcome."""
    rows = store.rows(
        "SELECT door, outcome, count(*) AS n FROM decisions GROUP BY door, outcome ORDER BY door, outcome"
    )
    return {(row["door"], row["outcome"]): int(row["n"]) for row in rows}


def tested(store: Database, against: str | None, since: str) -> int:
    """The number of held-out conversations at the last look at a candidate for the place of `against`; 0: none yet."""
    sql = """SELECT evidence FROM decisions WHERE against IS ? AND door = ? AND at > ?
        AND json_extract(evidence, '$.held_out.looked') ORDER BY id DESC LIMIT 1"""
    row = store.row(sql, against, OFFLINE, since)
    return int(json.loads(row["evidence"])["held_out"]["conversations"]) if row else 0


def spent(store: Database) -> float:
    """The risk that was taken in the last 365 days."""
    since = (datetime.now(UTC) - YEAR).isoformat(timespec="milliseconds")
    row = store.row("SELECT coalesce(sum(risk), 0.0) AS spent FROM decisions WHERE at > ?", since)
    return float(row["spent"]) if row else 0.0
