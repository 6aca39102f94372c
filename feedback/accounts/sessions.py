"""Sessions: who logged in from where, until they log out, change their password or stay away for long.

A session's key is known to the browser alone; what is kept is its hash.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database, now
from feedback.errors import NotFound

LASTS = timedelta(days=14)  # from logging in
SEEN_EVERY = timedelta(minutes=5)  # how exactly it is known when somebody was last here
MOST = 50  # kept of one person; the oldest ends


@dataclass(frozen=True)
class Session:
    """One login that stands."""

    id: int
    user: int
    address: str
    agent: str
    made_at: str
    seen_at: str


def begin(store: Database, user: User, address: str, agent: str, instead_of: str = "") -> str:
    """The key of a new session; the browser's former one ends, and what is long over is removed."""
    key = secrets.token_urlsafe(32)
    row = {"user": user.id, "sha256": users.sha256(key), "address": address[:64], "agent": agent[:64]}
    with store.transaction() as db:
        db.conn.execute("DELETE FROM sessions WHERE made_at < ? OR sha256 = ?", (limit(), users.sha256(instead_of)))
        store.insert("sessions", row | {"made_at": now(), "seen_at": now()})
        newest = "SELECT id FROM sessions WHERE user = ? ORDER BY id DESC LIMIT ?"
        db.conn.execute(f"DELETE FROM sessions WHERE user = ? AND id NOT IN ({newest})", (user.id, user.id, MOST))
    return key


def find(store: Database, key: str) -> Session | None:
    """The standing session of that key."""
    sql = """SELECT s.id, s.user, s.address, s.agent, s.made_at, s.seen_at FROM sessions s JOIN users u ON u.id = s.user
        WHERE s.sha256 = ? AND s.ended_at IS NULL AND s.made_at >= ?
        AND u.disabled_at IS NULL AND u.password_hash IS NOT NULL"""
    row = store.row(sql, users.sha256(key), limit())
    return Session(**row) if row else None


def of(store: Database, user: User) -> list[Session]:
    """A person's standing sessions, newest first."""
    sql = """SELECT id, user, address, agent, made_at, seen_at FROM sessions
        WHERE user = ? AND ended_at IS NULL AND made_at >= ? ORDER BY id DESC"""
    return [Session(**row) for row in store.rows(sql, user.id, limit())]


def end(store: Database, user: User, session: int) -> None:
    """End one. Raises `NotFound` where this person has no such session."""
    with store.transaction() as db:
        sql = "UPDATE sessions SET ended_at = ? WHERE id = ? AND user = ? AND ended_at IS NULL"
        if not db.conn.execute(sql, (now(), session, user.id)).rowcount:
            raise NotFound(f"there is no session {session}")


def end_by_id(store: Database, session: int) -> None:
    """End one that may have ended already."""
    with store.transaction() as db:
        db.conn.execute("UPDATE sessions SET ended_at = ? WHERE id = ? AND ended_at IS NULL", (now(), session))


def end_all(store: Database, user: User, but: int | None = None) -> int:
    """End every session of a person, or all but one; how many."""
    with store.transaction() as db:
        sql = "UPDATE sessions SET ended_at = ? WHERE user = ? AND id IS NOT ? AND ended_at IS NULL AND made_at >= ?"
        return db.conn.execute(sql, (now(), user.id, but, limit())).rowcount


def is_seen_long_ago(session: Session) -> bool:
    """Whether it is time to write down that somebody is here."""
    return datetime.fromisoformat(session.seen_at) < datetime.now(UTC) - SEEN_EVERY


def see(store: Database, session: int) -> None:
    """Write down that somebody is here now; one write each `SEEN_EVERY`, however many requests say so."""
    row = store.row("SELECT id, user, address, agent, made_at, seen_at FROM sessions WHERE id = ?", session)
    if row and is_seen_long_ago(Session(**row)):
        with store.transaction() as db:
            db.conn.execute("UPDATE sessions SET seen_at = ? WHERE id = ?", (now(), session))


def limit() -> str:
    """A session made before this is over."""
    return (datetime.now(UTC) - LASTS).isoformat(timespec="milliseconds")
