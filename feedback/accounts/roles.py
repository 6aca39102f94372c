"""Account management by operators, with every action in the audit trail.

The last operator cannot be removed, disabled or given another role. `by` is the user who acts; None: the command line.
"""

from dataclasses import dataclass

from feedback.accounts import sessions, users
from feedback.accounts.users import OWNER, User
from feedback.database.database import Database, now
from feedback.errors import Conflict, NotFound, Refused
from feedback.records import audit

KEYS = ("tokens", "sessions", "answered_requests", "consents")  # not counted as said or done


@dataclass(frozen=True)
class Left:
    """The chats on this machine from before there were accounts."""

    owner: User
    chats: int


def left_with_owner(store: Database) -> Left | None:
    """The local owner and the number of their chats, if they have chats and no password."""
    owner = users.find_user(store, OWNER)
    if owner is None or owner.password_hash is not None:
        return None
    row = store.row("SELECT count(*) AS n FROM conversations WHERE user = ? AND hidden_at IS NULL", owner.id)
    return Left(owner, row["n"]) if row and row["n"] else None


def require_left(store: Database) -> Left:
    """As `left_with_owner`. Raises `NotFound` if there is nothing to take over."""
    left = left_with_owner(store)
    if left is None:
        raise NotFound(f"there is nothing to take over: {OWNER!r} has a password, or no chats")
    return left


def add(store: Database, by: int | None, name: str, role: str, password_hash: str, take_over: bool = False) -> User:
    """Add an account; with `take_over`, turn the local owner into it. Raises as `add_user` and `require_left` do."""
    return (
        become(store, name, role, password_hash, by)
        if take_over
        else users.add_user(store, name, role, password_hash, by)
    )


def become(store: Database, name: str, role: str, password_hash: str, by: int | None) -> User:
    """Turn the local owner's row into an account, so that they keep all that is theirs."""
    name = users.usable_name(name)
    users.require_role(role)
    with store.transaction() as db:
        owner, taken = require_left(store).owner, users.find_user(store, name)
        if taken and taken.id != owner.id:
            raise Conflict(f"there is already a user {name!r}; to hand it the chats: nightschool user take-over {name}")
        sql = "UPDATE users SET name = ?, role = ?, password_hash = ? WHERE id = ?"
        db.conn.execute(sql, (name, role, password_hash, owner.id))
        audit.record(store, by, "add user", name, {"role": role, "took over": OWNER})
    return User(owner.id, name, role, password_hash)


def take_over(store: Database, by: int | None, user: User) -> int:
    """Give an account everything that the local owner said before there were accounts; return the number of chats.

    Raises `NotFound` if there is nothing, and `Refused` if the account is the local owner itself.
    """
    with store.transaction() as db:
        left = require_left(store)
        if left.owner.id == user.id:
            raise Refused(f"these chats are {OWNER}'s own; give {OWNER} a password: nightschool user password {OWNER}")
        for table, column in referring(store):
            # IGNORE: where both have a request key or a place in the split, the owner keeps theirs.
            sql = f"UPDATE OR IGNORE {table} SET {column} = ? WHERE {column} = ?"
            db.conn.execute(sql, (user.id, left.owner.id))
        audit.record(store, by, "take over", user.name, {"from": OWNER, "chats": left.chats})
    return left.chats


def set_role(store: Database, by: int | None, user: User, role: str) -> None:
    """Change an account's role. Raises `Refused` on an unknown role, `Conflict` for the last operator."""
    users.require_role(role)
    with store.transaction() as db:
        standing = require_user(store, user.id)
        if role != "operator":
            require_another_operator(store, standing)
        db.conn.execute("UPDATE users SET role = ? WHERE id = ?", (role, user.id))
        audit.record(store, by, "set role", standing.name, {"from": standing.role, "to": role})


def disable(store: Database, by: int | None, user: User) -> None:
    """Disable an account: its sessions end, its tokens are suspended.

    Raises `Conflict` for the last operator, or if it is disabled already.
    """
    with store.transaction() as db:
        standing = require_user(store, user.id)
        if standing.disabled_at:
            raise Conflict(f"{standing.name} is disabled already")
        require_another_operator(store, standing)
        db.conn.execute("UPDATE users SET disabled_at = ? WHERE id = ?", (now(), user.id))
        sessions.end_all(store, user)
        audit.record(store, by, "disable user", standing.name)


def enable(store: Database, by: int | None, user: User) -> None:
    """Enable a disabled account. Raises `Conflict` if it is not disabled."""
    with store.transaction() as db:
        standing = require_user(store, user.id)
        if not standing.disabled_at:
            raise Conflict(f"{standing.name} is not disabled")
        db.conn.execute("UPDATE users SET disabled_at = NULL WHERE id = ?", (user.id,))
        audit.record(store, by, "enable user", standing.name)


def remove(store: Database, by: int | None, user: User) -> None:
    """Remove an account that has said and done nothing. Raises `Conflict` for any other, or for the last operator."""
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
        audit.record(store, by, "remove user", standing.name)


def end_sessions(store: Database, by: int | None, user: User) -> int:
    """End all sessions of an account; return their number."""
    with store.transaction():
        ended = sessions.end_all(store, user)
        audit.record(store, by, "end sessions", user.name, {"sessions": ended})
    return ended


def require_user(store: Database, user_id: int) -> User:
    """The current state of an account. Raises `NotFound`."""
    user = users.user_by_id(store, user_id)
    if user is None:
        raise NotFound(f"there is no user {user_id}")
    return user


def is_operated(store: Database, but: int | None = None) -> bool:
    """Whether any operator other than `but` can log in."""
    sql = """SELECT 1 FROM users WHERE role = 'operator' AND password_hash IS NOT NULL AND disabled_at IS NULL
        AND id IS NOT ? LIMIT 1"""
    return store.row(sql, but) is not None


def require_another_operator(store: Database, user: User) -> None:
    """Raises `Conflict` if this is an active operator and no other operator can log in."""
    if user.role == "operator" and not user.disabled_at and not is_operated(store, user.id):
        raise Conflict(f"{user.name} is the last operator; make another first (nightschool user role NAME operator)")


def referring(store: Database) -> list[tuple[str, str]]:
    """Every (table, column) that refers to an account."""
    sql = """SELECT m.name AS name, f."from" AS part FROM sqlite_master m, pragma_foreign_key_list(m.name) f
        WHERE m.type = 'table' AND f."table" = 'users' ORDER BY m.name"""
    return [(row["name"], row["part"]) for row in store.rows(sql)]
