"""The audit trail: every action of an operator, and who took it."""

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from feedback.database.database import Database, now

TERMINAL = "terminal"  # key in an audit entry's detail: the operating-system account that typed the command

_typed_by: ContextVar[str] = ContextVar("typed_by", default="")


@dataclass(frozen=True)
class AuditEntry:
    """One action by `user`; None: by the program, or by a command, whose account `detail` names."""

    id: int
    user: str | None
    action: str
    subject: str
    detail: dict[str, Any]
    at: str


def record(store: Database, user: int | None, action: str, subject: str, detail: dict[str, Any] | None = None) -> None:
    """Add an audit entry; without a user, inside `at_terminal`, it names the operating-system account."""
    typed = {TERMINAL: _typed_by.get()} if user is None and _typed_by.get() else {}
    row = {"user": user, "action": action, "subject": subject, "detail": (detail or {}) | typed, "at": now()}
    store.insert("audit", row)


@contextmanager
def at_terminal() -> Iterator[None]:
    """Attribute audit entries made inside to the operating-system account that runs this program."""
    before = _typed_by.set(account_here())
    try:
        yield
    finally:
        _typed_by.reset(before)


def account_here() -> str:
    """The name of the operating-system account that runs this program, or its number if it has no name."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except ImportError:  # Windows
        return getpass.getuser()
    except KeyError:  # as in a container
        return f"account {os.getuid()}"


def trail(store: Database, limit: int = 50) -> list[AuditEntry]:
    """The newest audit entries, newest first."""
    sql = """SELECT audit.id, users.name AS user, action, subject, detail, at
        FROM audit LEFT JOIN users ON users.id = audit.user ORDER BY audit.id DESC LIMIT ?"""
    return [AuditEntry(**row | {"detail": json.loads(row["detail"])}) for row in store.rows(sql, limit)]
