"""Who people are, what they may do, and whether their ratings may be used."""

import hashlib
import secrets
from dataclasses import dataclass

from feedback.database.database import Database, now
from feedback.errors import Conflict, NotFound, Refused
from feedback.records import adapters

ROLES = ("chatter", "rater", "operator")  # each may do all that those before it may
OWNER = "owner"  # the local person, while there are no accounts
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
        """Whether this person may do what `role` may."""
        return ROLES.index(self.role) >= ROLES.index(role)


def add_user(store: Database, name: str, role: str, password_hash: str | None, by: int | None = None) -> User:
    """A new account, made by whom. Raises `Refused` on an unusable name or role, `Conflict` on a taken name."""
    name = usable_name(name)
    require_role(role)
    with store.transaction():
        if find_user(store, name):
            raise Conflict(f"there is already a user {name!r}")
        made = _added(store, name, role, password_hash)
        adapters.audit(store, by, "add user", name, {"role": role})
        return made


def usable_name(name: str) -> str:
    """A user name as it is kept. Raises `Refused`."""
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
        adapters.audit(store, by, "set password of", user.name)


def set_hash(store: Database, user: User, password_hash: str) -> None:
    """Keep the same password under a stronger hash, unless it has been changed meanwhile."""
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
    """Whether anyone must log in: true as soon as one account has a password."""
    return store.row("SELECT 1 FROM users WHERE password_hash IS NOT NULL LIMIT 1") is not None


def local_owner(store: Database) -> User:
    """The one person of a machine without accounts; made on first sight."""
    with store.transaction():
        return find_user(store, OWNER) or _added(store, OWNER, "operator", None)


def add_token(store: Database, user: User, name: str, by: int | None = None) -> str:
    """A new API token, shown this once."""
    token = "ns-" + secrets.token_urlsafe(32)
    with store.transaction():
        store.insert("tokens", {"user": user.id, "name": name, "sha256": sha256(token), "created_at": now()})
        adapters.audit(store, by, "make token of", user.name, {"token": name})
    return token


def count_tokens(store: Database, user: User) -> int:
    """How many API tokens of a person are valid."""
    row = store.row("SELECT count(*) AS n FROM tokens WHERE user = ? AND revoked_at IS NULL", user.id)
    return int(row["n"]) if row else 0


def revoke_token(store: Database, user: User, name: str, by: int | None = None) -> int:
    """Revoke a person's tokens of that name; how many there were."""
    with store.transaction() as db:
        sql = "UPDATE tokens SET revoked_at = ? WHERE user = ? AND name = ? AND revoked_at IS NULL"
        revoked = db.conn.execute(sql, (now(), user.id, name)).rowcount
        adapters.audit(store, by, "revoke token of", user.name, {"token": name, "revoked": revoked})
        return revoked


def user_of_token(store: Database, token: str) -> User | None:
    """Whose token this is, if it is valid and they are not disabled."""
    sql = f"""{USERS} WHERE disabled_at IS NULL
        AND id = (SELECT user FROM tokens WHERE sha256 = ? AND revoked_at IS NULL)"""
    row = store.row(sql, sha256(token))
    return User(**row) if row else None


def sha256(text: str) -> str:
    """Hex digest; tokens carry 256 random bits, so no salt and no slow hash is needed."""
    return hashlib.sha256(text.encode()).hexdigest()


def set_consent(store: Database, user: User, given: bool) -> None:
    """Whether this person's ratings may teach the assistant, from now on and for all they said before."""
    store.insert("consents", {"user": user.id, "given": int(given), "at": now()})


def set_conversation_consent(store: Database, user: User, conversation: str, given: bool) -> None:
    """Whether what is said in one conversation may teach; a no outweighs the person's yes for that conversation.

    Raises `NotFound` on a conversation that is not this person's.
    """
    with store.transaction():
        if not store.row("SELECT 1 FROM conversations WHERE id = ? AND user = ?", conversation, user.id):
            raise NotFound(f"there is no conversation {conversation!r}")
        row = {"conversation": conversation, "user": user.id, "given": int(given), "at": now()}
        store.insert("conversation_consents", row)


def consent(store: Database, user: User) -> bool | None:
    """The person's standing answer; None while they have not been asked."""
    row = store.row("SELECT given FROM consents WHERE user = ? ORDER BY id DESC LIMIT 1", user.id)
    return bool(row["given"]) if row else None
