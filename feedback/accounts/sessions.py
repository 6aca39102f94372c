"""Login sessions, which last until logout, a change of password, or 14 days after login.

Only the browser has a session's key; the database stores its hash.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database, now
from feedback.errors import NotFound

LASTS = timedelta(days=14)  # from logging in
SEEN_EVERY = timedelta(minutes=5)  # resolution of `seen_at`
MOST = 50  # sessions per person; beyond that the oldest end


@dataclass(frozen=True)
class Session:
    """One active login."""

    id: int
    user: int
    address: str
    agent: str
    made_at: str
    seen_at: str


def begin(store: Database, user: User, address: str, agent: str, instead_of: str = "") -> str:
    """Begin a session and return its key; the browser's former session, `instead_of`, and expired ones are deleted."""
    key = secrets.token_urlsafe(32)
    row = {"user": user.id, "sha256": users.sha256(key), "address": address[:64], "agent": agent[:64]}
    with store.transaction() as db:
        db.conn.execute("DELETE FROM sessions WHERE made_at < ? OR sha256 = ?", (limit(), users.sha256(instead_of)))
        store.insert("sessions", row | {"made_at": now(), "seen_at": now()})
        newest = "SELECT id FROM sessions WHERE user = ? ORDER BY id DESC LIMIT ?"
        db.conn.execute(f"DELETE FROM sessions WHERE user = ? AND id NOT IN ({newest})", (user.id, user.id, MOST))
    return key


def find(store: Database, key: str) -> Session | None:
    """The active session with that key, if any."""
    sql = """SELECT s.id, s.user, s.address, s.agent, s.made_at, s.seen_at FROM sessions s JOIN users u ON u.id = s.user
        WHERE s.sha256 = ? AND s.ended_at IS NULL AND s.made_at >= ?
        AND u.disabled_at IS NULL AND u.password_hash IS NOT NULL"""
    row = store.row(sql, users.sha256(key), limit())
    return Session(**row) if row else None


def of(store: Database, user: User) -> list[Session]:
    """A person's active sessions, newest first."""
    sql = """SELECT id, user, address, agent, made_at, seen_at FROM sessions
        WHERE user = ? AND ended_at IS NULL AND made_at >= ? ORDER BY id DESC"""
    return [Session(**row) for row in store.rows(sql, user.id, limit())]


def end(store: Database, user: User, session: int) -> None:
    """End one session. Raises `NotFound` if this person has no such active session."""
    with store.transaction() as db:
        sql = "UPDATE sessions SET ended_at = ? WHERE id = ? AND user = ? AND ended_at IS NULL"
        if not db.conn.execute(sql, (now(), session, user.id)).rowcount:
            raise NotFound(f"there is no session {session}")


def end_by_id(store: Database, session: int) -> None:
    """End one session, which may have ended already."""
    with store.transaction() as db:
        db.conn.execute("UPDATE sessions SET ended_at = ? WHERE id = ? AND ended_at IS NULL", (now(), session))


def end_all(store: Database, user: User, but: int | None = None) -> int:
    """End every session of a person, or all but one; return their number."""
    with store.transaction() as db:
        sql = "UPDATE sessions SET ended_at = ? WHERE user = ? AND id IS NOT ? AND ended_at IS NULL AND made_at >= ?"
        return db.conn.execute(sql, (now(), user.id, but, limit())).rowcount


def is_seen_long_ago(session: Session) -> bool:
    """Whether `seen_at` is due for an update."""
    return datetime.fromisoformat(session.seen_at) < datetime.now(UTC) - SEEN_EVERY


def see(store: Database, session: int) -> None:
    """Update a session's `seen_at`, at most once per `SEEN_EVERY` however many requests there are."""
    row = store.row("SELECT id, user, address, agent, made_at, seen_at FROM sessions WHERE id = ?", session)
    if row and is_seen_long_ago(Session(**row)):
        with store.transaction() as db:
            db.conn.execute("UPDATE sessions SET seen_at = ? WHERE id = ?", (now(), session))


def limit() -> str:
    """The time such that sessions begun before it have expired."""
    return (datetime.now(UTC) - LASTS).isoformat(timespec="milliseconds")
