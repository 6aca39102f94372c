"""The HTTP API for operators to manage accounts: roles, disabling, removal and sessions."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from feedback.accounts import roles, sessions, users
from feedback.accounts.users import User
from feedback.errors import Refused
from ui.accounts.auth import Operator
from ui.accounts.dependencies import REFUSALS, STRICT, TheStore, Writing

router = APIRouter(prefix="/api/users", responses=REFUSALS, tags=["accounts"])


class Account(BaseModel):
    """Somebody who may log in, or whose ratings came with an import."""

    id: int
    name: str
    role: str = Field(description="chatter, rater or operator.")
    password: bool = Field(description="false: nobody can log in by this account.")
    disabled: bool


class AccountAsked(BaseModel):
    """What to change; what is left out stays."""

    model_config = STRICT
    role: str | None = Field(None, description="chatter, rater or operator.")
    disabled: bool | None = Field(None, description="true: sessions end and tokens rest; false: let in again.")


class Session(BaseModel):
    """A current session."""

    id: int
    address: str
    agent: str
    made_at: str
    seen_at: str = Field(description="To within some minutes.")


class Count(BaseModel):
    """How many."""

    ended: int


class Removed(BaseModel):
    """The removed account."""

    removed: str


def in_short(user: User) -> dict[str, Any]:
    """An account as the API shows it."""
    facts = {"id": user.id, "name": user.name, "role": user.role}
    return facts | {"password": user.password_hash is not None, "disabled": user.disabled_at is not None}


@router.get("", response_model=list[Account])
def list_users(user: Operator, store: TheStore) -> list[dict[str, Any]]:
    """Every account, oldest first."""
    return [in_short(each) for each in users.users(store)]


@router.patch("/{account}", response_model=Account)
def change_user(account: int, body: AccountAsked, user: Operator, store: TheStore, write: Writing) -> dict[str, Any]:
    """Change an account's role, disable it or enable it; the last operator stays one."""

    def act() -> dict[str, Any]:
        theirs = roles.require_user(store, account)
        if body.role is None and body.disabled is None:
            raise Refused("say a role, or whether the account is disabled")
        if body.role is not None:
            roles.set_role(store, user.id, theirs, body.role)
        if body.disabled is not None:
            (roles.disable if body.disabled else roles.enable)(store, user.id, theirs)
        return in_short(roles.require_user(store, account))

    return write.at_once(body, act)


@router.delete("/{account}", response_model=Removed)
def remove_user(account: int, user: Operator, store: TheStore, write: Writing) -> dict[str, Any]:
    """Remove an account that has said and done nothing."""

    def act() -> dict[str, Any]:
        theirs = roles.require_user(store, account)
        if theirs.id == user.id:
            raise Refused("somebody else must remove you")
        roles.remove(store, user.id, theirs)
        return {"removed": theirs.name}

    return write.at_once(None, act)


@router.get("/{account}/sessions", response_model=list[Session])
def list_sessions(account: int, user: Operator, store: TheStore) -> list[dict[str, Any]]:
    """An account's sessions, newest first."""
    return [asdict(each) for each in sessions.of(store, roles.require_user(store, account))]


@router.delete("/{account}/sessions", response_model=Count)
def end_sessions(account: int, user: Operator, store: TheStore, write: Writing) -> dict[str, Any]:
    """Log an account out everywhere."""
    return write.at_once(
        None, lambda: {"ended": roles.end_sessions(store, user.id, roles.require_user(store, account))}
    )
