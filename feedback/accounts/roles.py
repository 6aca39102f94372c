"""What an operator does with accounts, each act with its line in the audit trail.

Somebody can always operate: the last operator stays one. `by` is who did it; None: whoever is at the command line.
"""

from dataclasses import dataclass

from feedback.accounts import sessions, users
from feedback.accounts.users import OWNER, User
from feedback.database.database import Database, now
from feedback.errors import Conflict, NotFound, Refused
from feedback.records import adapters

KEYS = ("tokens", "sessions", "answered_requests", "consents")  # of an account, and no trace of what it said or did


@dataclass(frozen=True)
class Left:
    """What was said on this machine before there were accounts."""

    owner: User
    chats: int


def left_with_owner(store: Database) -> Left | None:
    """The local owner who has no password and yet has chats."""
    owner = users.find_user(store, OWNER)
    if owner is None or owner.password_hash is not None:
        return None
    row = store.row("SELECT count(*) AS n FROM conversations WHERE user = ? AND hidden_at IS NULL", owner.id)
    return Left(owner, row["n"]) if row and row["n"] else None


def require_left(store: Database) -> Left:
    """The same. Raises `NotFound` where there is nothing to take over."""
    left = left_with_owner(store)
    if left is None:
        raise NotFound(f"there is nothing to take over: {OWNER!r} has a password, or no chats")
    return left


def add(store: Database, by: int | None, name: str, role: str, password_hash: str, take_over: bool = False) -> User:
    """A new account; with `take_over` the local owner's, under that name. Raises as `users.add_user` does."""
    return (
        become(store, name, role, password_hash, by)
        if take_over
        else users.add_user(store, name, role, password_hash, by)
    )


def become(store: Database, name: str, role: str, password_hash: str, by: int | None) -> User:
    """The local owner's row as an account, so that all that is theirs stays theirs."""
    name = users.usable_name(name)
    users.require_role(role)
    with store.transaction() as db:
        owner, taken = require_left(store).owner, users.find_user(store, name)
        if taken and taken.id != owner.id:
            raise Conflict(f"there is already a user {name!r}; to hand it the chats: nightschool user take-over {name}")
        sql = "UPDATE users SET name = ?, role = ?, password_hash = ? WHERE id = ?"
        db.conn.execute(sql, (name, role, password_hash, owner.id))
        adapters.audit(store, by, "add user", name, {"role": role, "took over": OWNER})
    return User(owner.id, name, role, password_hash)


def take_over(store: Database, by: int | None, user: User) -> int:
    """Give an account all that the local owner said before there were accounts; how many chats.

    Raises `NotFound` where there is nothing.
    """
    with store.transaction() as db:
        left = require_left(store)
        if left.owner.id == user.id:
            raise Refused(f"these chats are {OWNER}'s own; give {OWNER} a password: nightschool user password {OWNER}")
        for table, column in referring(store):
            # A key or a placement that both have stays where it is.
            sql = f"UPDATE OR IGNORE {table} SET {column} = ? WHERE {column} = ?"
            db.conn.execute(sql, (user.id, left.owner.id))
        adapters.audit(store, by, "take over", user.name, {"from": OWNER, "chats": left.chats})
    return left.chats


def set_role(store: Database, by: int | None, user: User, role: str) -> None:
    """What somebody may do from now on. Raises `Refused` on an unknown role, `Conflict` for the last operator."""
    users.require_role(role)
    with store.transaction() as db:
        standing = require_user(store, user.id)
        if role != "operator":
            require_another_operator(store, standing)
        db.conn.execute("UPDATE users SET role = ? WHERE id = ?", (role, user.id))
        adapters.audit(store, by, "set role", standing.name, {"from": standing.role, "to": role})


def disable(store: Database, by: int | None, user: User) -> None:
    """Let somebody in no more: sessions end, tokens rest. Raises `Conflict` for the last operator, or a second time."""
    with store.transaction() as db:
        standing = require_user(store, user.id)
        if standing.disabled_at:
            raise Conflict(f"{standing.name} is disabled already")
        require_another_operator(store, standing)
        db.conn.execute("UPDATE users SET disabled_at = ? WHERE id = ?", (now(), user.id))
        sessions.end_all(store, user)
        adapters.audit(store, by, "disable user", standing.name)


def enable(store: Database, by: int | None, user: User) -> None:
    """Let somebody in again. Raises `Conflict` where nobody had kept them out."""
    with store.transaction() as db:
        standing = require_user(store, user.id)
        if not standing.disabled_at:
            raise Conflict(f"{standing.name} is not disabled")
        db.conn.execute("UPDATE users SET disabled_at = NULL WHERE id = ?", (user.id,))
        adapters.audit(store, by, "enable user", standing.name)


def remove(store: Database, by: int | None, user: User) -> None:
    """Remove an account that has said and done nothing. Raises `Conflict` for another, or for the last operator."""
    with store.transaction() as db:
        standing = require_user(store, user.id)
        require_another_operator(store, standing)
        for table, column in referring(store):
            if table in KEYS:
                db.conn.execute(f"DELETE FROM {table} WHERE {column} = ?", (user.id,))
            elif store.row(f"SELECT 1 FROM {table} WHERE {column} = ? LIMIT 1", user.id):
                raise Conflict(
                    f"{standing.name} has said or done something here; keep it and let them in no more (nightschool "
                    f"user disable {standing.name}), or remove it, too (nightschool forget {standing.name} --yes)"
                )
        db.conn.execute("DELETE FROM users WHERE id = ?", (user.id,))
        adapters.audit(store, by, "remove user", standing.name)


def end_sessions(store: Database, by: int | None, user: User) -> int:
    """Log somebody out everywhere; of how many sessions."""
    with store.transaction():
        ended = sessions.end_all(store, user)
        adapters.audit(store, by, "end sessions", user.name, {"sessions": ended})
    return ended


def require_user(store: Database, user_id: int) -> User:
    """An account as it stands now. Raises `NotFound`."""
    user = users.user_by_id(store, user_id)
    if user is None:
        raise NotFound(f"there is no user {user_id}")
    return user


def is_operated(store: Database, but: int | None = None) -> bool:
    """Whether some operator can log in, `but` one aside."""
    sql = """SELECT 1 FROM users WHERE role = 'operator' AND password_hash IS NOT NULL AND disabled_at IS NULL
        AND id IS NOT ? LIMIT 1"""
    return store.row(sql, but) is not None


def require_another_operator(store: Database, user: User) -> None:
    """Raises `Conflict` for the one person without whom nobody could operate."""
    if user.role == "operator" and not user.disabled_at and not is_operated(store, user.id):
        raise Conflict(f"{user.name} is the last operator; make another first (nightschool user role NAME operator)")


def referring(store: Database) -> list[tuple[str, str]]:
    """Every table and column in which an account is named."""
    sql = """SELECT m.name AS name, f."from" AS part FROM sqlite_master m, pragma_foreign_key_list(m.name) f
        WHERE m.type = 'table' AND f."table" = 'users' ORDER BY m.name"""
    return [(row["name"], row["part"]) for row in store.rows(sql)]
