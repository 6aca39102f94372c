"""The schedule of nights: when they are due, what became of each occurrence, and how much feedback is new.

A new schedule is a new row, and the newest is current. An occurrence is claimed by inserting its row, which only one
caller can do: that caller starts the night, so two servers on one data folder start one night.
"""

import sqlite3
from dataclasses import dataclass
from typing import Any

from feedback.database.database import Database, now
from feedback.errors import Refused
from feedback.kinds.base import Kind, spoken
from feedback.records import audit

CLOCK, FEEDBACK = "clock", "feedback"
STARTED, SKIPPED = "started", "skipped"
LONGEST_GRACE_MINUTES = 7 * 24 * 60
MOST_EVERY_NEW = 1_000_000


@dataclass(frozen=True)
class Schedule:
    """When nights start: by the clock, by the amount of new feedback, or by both."""

    cron: str  # as in crontab(5); empty: not by the clock
    time_zone: str
    enabled: bool  # false turns both off
    grace_minutes: int  # a missed time is made up for within this many minutes
    every_new: int | None  # a night after this many new pieces of feedback; None: not by feedback
    at: str


@dataclass(frozen=True)
class Occurrence:
    """An occasion on which a night was due, and its outcome."""

    id: int
    cause: str  # "clock" or "feedback"
    due: str  # the time in UTC, or the feedback that made it due: "50 since night 7"
    outcome: str  # "started" or "skipped"
    reason: str
    night: int | None  # None with "started": claimed, but the night is not known yet
    at: str


def schedule(store: Database) -> Schedule | None:
    """The current schedule, if one was set."""
    return next(iter(history(store, 1)), None)


def history(store: Database, limit: int = 50) -> list[Schedule]:
    """The newest schedules, newest first."""
    sql = "SELECT cron, time_zone, enabled, grace_minutes, every_new, at FROM schedules ORDER BY id DESC LIMIT ?"
    return [Schedule(**row | {"enabled": bool(row["enabled"])}) for row in store.rows(sql, limit)]


def set_schedule(
    store: Database,
    user: int | None,
    cron: str,
    time_zone: str,
    enabled: bool,
    grace_minutes: int = 60,
    every_new: int | None = None,
) -> None:
    """Set a new schedule; the caller has checked cron and time zone. Raises `Refused` on a number out of range."""
    check_numbers(grace_minutes, every_new)
    row = {"cron": cron, "time_zone": time_zone, "enabled": enabled}
    row |= {"grace_minutes": grace_minutes, "every_new": every_new}
    with store.transaction():
        store.insert("schedules", row | {"user": user, "enabled": int(enabled), "at": now()})
        audit.record(store, user, "set", "schedule", row)


def check_numbers(grace_minutes: int, every_new: int | None) -> None:
    """Raises `Refused` on a number out of range."""
    if type(grace_minutes) is not int or not 0 <= grace_minutes <= LONGEST_GRACE_MINUTES:
        raise Refused(f"grace_minutes is a whole number from 0 to {LONGEST_GRACE_MINUTES:,}, not {grace_minutes!r}")
    if every_new is not None and (type(every_new) is not int or not 1 <= every_new <= MOST_EVERY_NEW):
        raise Refused(f"every_new is a whole number from 1 to {MOST_EVERY_NEW:,}, or none, not {every_new!r}")


def claim(store: Database, cause: str, due: str, outcome: str, reason: str) -> Occurrence | None:
    """Claim an occurrence by recording it; None if it is recorded already."""
    if is_recorded(store, cause, due):
        return None  # without blocking other writers; between two at once the UNIQUE constraint decides
    row: dict[str, Any] = {"cause": cause, "due": due, "outcome": outcome, "reason": reason, "night": None}
    row["at"] = now()
    try:
        return Occurrence(store.insert("occurrences", row), **row)
    except sqlite3.IntegrityError as error:
        if "UNIQUE" not in str(error):
            raise
        return None


def is_recorded(store: Database, cause: str, due: str) -> bool:
    """Whether an occurrence has been claimed."""
    return store.row("SELECT 1 FROM occurrences WHERE cause = ? AND due = ?", cause, due) is not None


def settle(store: Database, occurrence: int, outcome: str, reason: str, night: int | None = None) -> None:
    """Record the outcome of a claimed occurrence."""
    with store.transaction() as db:
        sql = "UPDATE occurrences SET outcome = ?, reason = ?, night = ? WHERE id = ?"
        db.conn.execute(sql, (outcome, reason, night, occurrence))


def occurrences(store: Database, limit: int = 50) -> list[Occurrence]:
    """The newest occurrences, newest first."""
    return [Occurrence(**row) for row in store.rows("SELECT * FROM occurrences ORDER BY id DESC LIMIT ?", limit)]


def unsettled(store: Database) -> list[Occurrence]:
    """The claimed occurrences without a night, oldest first: it is starting, or its server stopped in between."""
    sql = "SELECT * FROM occurrences WHERE outcome = 'started' AND night IS NULL ORDER BY id"
    return [Occurrence(**row) for row in store.rows(sql)]


def last_due(store: Database, until: str) -> str | None:
    """The newest recorded time by the clock, up to a moment in UTC.

    Later records are ignored: a clock that once ran ahead must not hide the times before them.
    """
    sql = "SELECT due FROM occurrences WHERE cause = 'clock' AND due <= ? ORDER BY due DESC LIMIT 1"
    row = store.row(sql, until)
    return row["due"] if row else None


def night_alive_since(store: Database, moment: str) -> int | None:
    """The newest night, not an abandoned one, with a sign of life at or after a moment."""
    row = store.row("SELECT id FROM nights WHERE beat_at >= ? AND state <> 'abandoned' ORDER BY id DESC", moment)
    return row["id"] if row else None


def new_feedback(store: Database) -> int:
    """The number of pieces of feedback added since the last night that completed began.

    A piece is a row of any kind that is not a usage trace; taking feedback back counts too, as it changes what there is
    to learn. Only nights that trained or found nothing new count as completed: one that failed, was cancelled or was
    abandoned has learned nothing, and one that is running may still end so.
    """
    return sum(arrived_since(store, kind, heard_at(store)) for kind in spoken())


def arrived_since(store: Database, kind: Kind, moment: str) -> int:
    """The number of rows of a kind from a moment on. The cost grows with that number, not with the table."""
    sql = f"""SELECT count(*) AS n FROM {kind.table} WHERE id >
        coalesce((SELECT id FROM {kind.table} WHERE at < ? ORDER BY id DESC LIMIT 1), 0)"""
    return int(store.rows(sql, moment)[0]["n"])


def heard_at(store: Database) -> str:
    """The time from which feedback is new; empty if all of it is.

    All of it is new, too, if the last night began later than now: the clock was set back, so times no longer give the
    order. A superfluous night finds nothing and corrects this; a missing one would go unnoticed.
    """
    row = _last_to_hear(store)
    return row["started_at"] if row and row["started_at"] <= now() else ""


def heard_by(store: Database) -> str:
    """The night since which feedback is new, in words."""
    row = _last_to_hear(store)
    return f"night {row['id']}" if row else "the beginning"


def _last_to_hear(store: Database) -> dict[str, Any] | None:
    return store.row("SELECT id, started_at FROM nights WHERE state IN ('done', 'nothing') ORDER BY id DESC LIMIT 1")


def why_nothing_new(store: Database) -> str:
    """The reason that a night would learn nothing new; empty if it might.

    It might if there is new feedback, if a rater or the owner of a rated conversation has changed their consent since,
    or if an interrupted night can be resumed.
    """
    last = _last_to_hear(store)
    if new_feedback(store) or (last and _consent_changed(store, heard_at(store))):
        return ""
    if store.row("SELECT 1 FROM nights WHERE state = 'running'"):
        return ""
    return f"nothing new was said since night {last['id']} began" if last else "nobody has rated a reply yet"


def _consent_changed(store: Database, moment: str) -> bool:
    """Whether a rater or the owner of a rated conversation has answered about consent at or after a moment."""
    raters = " UNION ".join(f"SELECT user FROM {kind.table}" for kind in spoken())
    of = "SELECT 1 FROM messages m JOIN {} t ON t.{} = m.id WHERE m.conversation = c.id"
    rated = " OR ".join(f"EXISTS ({of.format(kind.table, kind.about)})" for kind in spoken())
    sql = f"""SELECT 1 FROM consents WHERE at >= :moment AND (user IN ({raters})
            OR EXISTS (SELECT 1 FROM conversations c WHERE c.user = consents.user AND ({rated})))
        UNION ALL SELECT 1 FROM conversation_consents s JOIN conversations c ON c.id = s.conversation
            WHERE s.at >= :moment AND ({rated}) LIMIT 1"""
    return store.row(sql, {"moment": moment}) is not None
