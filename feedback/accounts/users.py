"""User accounts: roles, passwords, API tokens and consent."""

import hashlib
import secrets
from dataclasses import dataclass

from feedback.database.database import Database, now
from feedback.errors import Conflict, NotFound, Refused
from feedback.records import audit

ROLES = ("chatter", "rater", "operator")  # each includes the permissions of those before it
OWNER = "owner"  # the local user, while there are no accounts
USERS = "SELECT id, name, role, password_hash, disabled_at FROM users"


@dataclass(frozen=True)
class User:
    """A person with an account, or the local owner."""

    id: int
    name: str
    role: str
    password_hash: str | None
    disabled_at: str | None = None

    def may(self, role: str) -> bool:
        """Whether this person has the permissions of `role`."""
        return ROLES.index(self.role) >= ROLES.index(role)


def add_user(store: Database, name: str, role: str, password_hash: str | None, by: int | None = None) -> User:
    """Add an account. Raises `Refused` on an unusable name or role, `Conflict` on a taken name."""
    name = usable_name(name)
    require_role(role)
    with store.transaction():
        if find_user(store, name):
            raise Conflict(f"there is already a user {name!r}")
        made = _added(store, name, role, password_hash)
        audit.record(store, by, "add user", name, {"role": role})
        return made


def usable_name(name: str) -> str:
    """A user name, stripped. Raises `Refused` on an unusable one."""
    name = name.strip()
    if not name or len(name) > 64 or not name.isprintable():
        raise Refused("a user name has 1 to 64 printable characters")
    return name


def require_role(role: str) -> None:
    """Raises `Refused` on an unknown role."""
    if role not in ROLES:
        raise Refused(f"a role is one of {', '.join(ROLES)}, not {role!r}")


def _added(store: Database, name: str, role: str, password_hash: str | None) -> User:
    row = {"name": name, "role": role, "password_hash": password_hash, "created_at": now()}
    return User(store.insert("users", row), name, role, password_hash)


def set_password(store: Database, name: str, password_hash: str, by: int | None = None) -> None:
    """Give an account a new password, which ends its sessions and revokes its tokens. Raises `NotFound`."""
    with store.transaction() as db:
        user = find_user(store, name)
        if user is None:
            raise NotFound(f"there is no user {name!r}")
        db.conn.execute("UPDATE users SET password_hash = ? WHERE id = ?", (password_hash, user.id))
        db.conn.execute("UPDATE sessions SET ended_at = ? WHERE user = ? AND ended_at IS NULL", (now(), user.id))
        db.conn.execute("UPDATE tokens SET revoked_at = ? WHERE user = ? AND revoked_at IS NULL", (now(), user.id))
        audit.record(store, by, "set password of", user.name)


def set_hash(store: Database, user: User, password_hash: str) -> None:
    """Store the same password under a stronger hash, unless it has been changed meanwhile."""
    with store.transaction() as db:
        sql = "UPDATE users SET password_hash = ? WHERE id = ? AND password_hash = ?"
        db.conn.execute(sql, (password_hash, user.id, user.password_hash))


def find_user(store: Database, name: str) -> User | None:
    """The account of that name, if there is one."""
    row = store.row(f"{USERS} WHERE name = ?", name.strip())
    return User(**row) if row else None


def user_by_id(store: Database, user_id: int) -> User | None:
    """The account of that id, if there is one."""
    row = store.row(f"{USERS} WHERE id = ?", user_id)
    return User(**row) if row else None


def users(store: Database) -> list[User]:
    """Every account, oldest first."""
    return [User(**row) for row in store.rows(f"{USERS} ORDER BY id")]


def has_accounts(store: Database) -> bool:
    """Whether people must log in: true as soon as one account has a password."""
    return store.row("SELECT 1 FROM users WHERE password_hash IS NOT NULL LIMIT 1") is not None


def local_owner(store: Database) -> User:
    """The one user of a machine without accounts, created if missing."""
    with store.transaction():
        return find_user(store, OWNER) or _added(store, OWNER, "operator", None)


def add_token(store: Database, user: User, name: str, by: int | None = None) -> str:
    """Add an API token and return it; only its hash is stored."""
    token = "ns-" + secrets.token_urlsafe(32)
    with store.transaction():
        store.insert("tokens", {"user": user.id, "name": name, "sha256": sha256(token), "created_at": now()})
        audit.record(store, by, "make token of", user.name, {"token": name})
    return token


def count_tokens(store: Database, user: User) -> int:
    """The number of a person's valid API tokens."""
    row = store.row("SELECT count(*) AS n FROM tokens WHERE user = ? AND revoked_at IS NULL", user.id)
    return int(row["n"]) if row else 0


def revoke_token(store: Database, user: User, name: str, by: int | None = None) -> int:
    """Revoke a person's tokens of that name; return their number."""
    with store.transaction() as db:
        sql = "UPDATE tokens SET revoked_at = ? WHERE user = ? AND name = ? AND revoked_at IS NULL"
        revoked = db.conn.execute(sql, (now(), user.id, name)).rowcount
        audit.record(store, by, "revoke token of", user.name, {"token": name, "revoked": revoked})
        return revoked


def user_of_token(store: Database, token: str) -> User | None:
    """The user of a token, if it is valid and they are not disabled."""
    sql = f"""{USERS} WHERE disabled_at IS NULL
        AND id = (SELECT user FROM tokens WHERE sha256 = ? AND revoked_at IS NULL)"""
    row = store.row(sql, sha256(token))
    return User(**row) if row else None


def sha256(text: str) -> str:
    """Hex digest. Tokens have 256 random bits, so they need no salt and no slow hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def set_consent(store: Database, user: User, given: bool) -> None:
    """Record whether this person's ratings may be used for training, from now on and for all they gave before."""
    store.insert("consents", {"user": user.id, "given": int(given), "at": now()})


def set_conversation_consent(store: Database, user: User, conversation: str, given: bool) -> None:
    """Record whether one conversation may be used for training; a no overrides the person's general yes.

    Raises `NotFound` on a conversation that is not this person's.
    """
    with store.transaction():
        if not store.row("SELECT 1 FROM conversations WHERE id = ? AND user = ?", conversation, user.id):
            raise NotFound(f"there is no conversation {conversation!r}")
        row = {"conversation": conversation, "user": user.id, "given": int(given), "at": now()}
        store.insert("conversation_consents", row)


def consent(store: Database, user: User) -> bool | None:
    """The person's current answer; None if they have not answered yet."""
    row = store.row("SELECT given FROM consents WHERE user = ? ORDER BY id DESC LIMIT 1", user.id)
    return bool(row["given"]) if row else None
