"""`nightschool user`: accounts, their roles, passwords, tokens and sessions; each action is in the audit trail."""

import getpass
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assistant.command_line import data_option
from feedback.errors import Conflict, NotFound, Refused
from ui.cli.command import Command, InOrder, Word, json_option, new_or_existing, show

if TYPE_CHECKING:
    from feedback.accounts.users import User
    from feedback.database.database import Database


def roles() -> Sequence[str]:
    """The roles that people can have."""
    from feedback.accounts.users import ROLES

    return ROLES


def asking(question: str) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """A callback that refuses a missing argument with a short question."""

    def asked(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
        if value is None and not context.resilient_parsing:
            raise click.UsageError(question, context)
        return value

    return asked


name_argument = click.argument(
    "name", metavar="NAME", required=False, callback=asking("whose?"), help="The account's name."
)


@click.group("user", cls=InOrder, no_args_is_help=False)
@data_option
@json_option
def user(**_: Any) -> None:
    """Manage accounts."""


@contextmanager
def person(data: Path, name: str) -> Iterator[tuple["Database", "User"]]:
    """Open the database and find a person by name. Raises `NotFound`."""
    from feedback.accounts.users import find_user

    with new_or_existing(data) as store:
        found = find_user(store, name)
        if found is None:
            raise NotFound(f"there is no user {name!r}")
        yield store, found


@user.command("add", cls=Command)
@name_argument
@click.option("--role", type=Word(roles), help="The account's role (default: chatter; with --take-over: operator).")
@click.option("--take-over", is_flag=True, help="Also give the account the chats from before there were accounts.")
@data_option
def add(name: str, role: str | None, take_over: bool, data: Path) -> None:
    """Add an account. With --take-over it gets the chats from before there were accounts."""
    from feedback.accounts import users
    from feedback.accounts.roles import left_with_owner, require_left

    with new_or_existing(data) as store:
        name = users.usable_name(name)
        taken = users.find_user(store, name)
        if taken and not (take_over and taken.name == users.OWNER):
            raise Conflict(f"there is already a user {name!r}")
        if role is not None:
            users.require_role(role)  # before a password is asked for
        if take_over:
            require_left(store)
        left = left_with_owner(store)
        is_first = not users.has_accounts(store)
        taking = take_over or bool(is_first and left and wanted(left.chats, name))
        make(store, name, role or ("operator" if taking else "chatter"), taking)
        tell_of_earlier_chats(store, name, left.chats if left else 0, taking, is_first)


def make(store: "Database", name: str, role: str, taking: bool) -> None:
    """Ask for a password and make the account."""
    from feedback.accounts import roles
    from ui.accounts.passwords import hashed

    roles.add(store, None, name, role, hashed(asked_password(), name), taking)
    print(f"{name} may log in as {role}")


def tell_of_earlier_chats(store: "Database", name: str, count: int, taking: bool, is_first: bool) -> None:
    """Print who has the chats from before there were accounts, and a warning if nobody can operate."""
    from feedback.accounts import roles
    from feedback.accounts.users import OWNER

    if count and taking:
        print(f"{name} has the {chats(count)} of {OWNER!r}")
    elif count and is_first:
        them = f"the {chats(count)} had so far" if count > 1 else "the one chat had so far"
        print(f"{them} stay with {OWNER!r}; to hand them over: nightschool user take-over {name}")
    if not roles.is_operated(store):
        print(f"nobody can operate yet; to let {name}: nightschool user role {name} operator", file=sys.stderr)


def wanted(count: int, name: str) -> bool:
    """Ask whether the first account gets the earlier chats; False without a terminal."""
    if not sys.stdin.isatty():
        return False
    asked = f"{chats(count)} had before there were accounts: shall {name} have them? Only if they are {name}'s. [y/N] "
    return input(asked).strip().lower() in ("y", "yes")


def chats(count: int) -> str:
    """A number of chats, in words."""
    return f"{count:,} chat{'' if count == 1 else 's'}"


@user.command("list", cls=Command)
@data_option
@json_option
def list_(data: Path, as_json: bool) -> None:
    """List the accounts."""
    from feedback.accounts.users import users

    with new_or_existing(data) as store:
        found = users(store)
    facts = [
        {"name": each.name, "role": each.role, "password": each.password_hash is not None}
        | {"disabled": each.disabled_at is not None}
        for each in found
    ]
    show(as_json, facts, [f"{each.name}  {each.role}{'  disabled' if each.disabled_at else ''}" for each in found])


@user.command("password", cls=Command)
@name_argument
@data_option
def password(name: str, data: Path) -> None:
    """Set a new password. Ends the account's sessions and revokes its tokens."""
    from feedback.accounts.users import set_password
    from ui.accounts.passwords import hashed

    with person(data, name) as (store, user):
        set_password(store, user.name, hashed(asked_password(), user.name))
    print(f"{user.name} has a new password; sessions have ended, and tokens are revoked")


@user.command("role", cls=Command)
@name_argument
@click.argument(
    "role",
    metavar="ROLE",
    type=Word(roles),
    required=False,
    help="The new role; without it, the roles are listed.",
)
@data_option
def role(name: str, role: str | None, data: Path) -> None:
    """Set what they may do."""
    from feedback.accounts import roles, users

    with person(data, name) as (store, user):
        if not role:
            raise Refused(f"which role? nightschool user role {user.name} {'|'.join(users.ROLES)}")
        roles.set_role(store, None, user, role)
    print(f"{user.name} is from now on {role}; was {user.role}")


@user.command("disable", cls=Command)
@name_argument
@data_option
def disable(name: str, data: Path) -> None:
    """Disable an account at once."""
    from feedback.accounts import roles

    with person(data, name) as (store, user):
        roles.disable(store, None, user)
    print(f"{user.name} is let in no more; what they said stays")


@user.command("enable", cls=Command)
@name_argument
@data_option
def enable(name: str, data: Path) -> None:
    """Enable an account."""
    from feedback.accounts import roles

    with person(data, name) as (store, user):
        roles.enable(store, None, user)
    print(f"{user.name} may log in again")


@user.command("remove", cls=Command)
@name_argument
@data_option
def remove(name: str, data: Path) -> None:
    """Remove an account that has said nothing. To remove what somebody said, use nightschool forget."""
    from feedback.accounts import roles

    with person(data, name) as (store, user):
        roles.remove(store, None, user)
    print(f"{user.name} is removed")


@user.command("sessions", cls=Command)
@name_argument
@click.option("--end", is_flag=True, help="Log them out everywhere.")
@data_option
@json_option
def sessions(name: str, end: bool, data: Path, as_json: bool) -> None:
    """Show where they are logged in, or end that."""
    from feedback.accounts import roles, sessions

    with person(data, name) as (store, user):
        if end:
            print(f"ended: {roles.end_sessions(store, None, user)}")
            return
        found = sessions.of(store, user)
    lines = [
        f"{each.made_at[:16]}  last seen {each.seen_at[:16]}  {each.address}  {each.agent}".rstrip() for each in found
    ]
    show(as_json, [asdict(each) for each in found], lines or [f"{user.name} is logged in nowhere"])


token_name_option = click.option(
    "--token-name", default="api", show_default=True, help="A name for the token, to revoke it by."
)


@user.command("token", cls=Command)
@name_argument
@token_name_option
@data_option
def token(name: str, token_name: str, data: Path) -> None:
    """Make an API token, shown once."""
    from feedback.accounts.users import add_token

    with person(data, name) as (store, user):
        print(add_token(store, user, token_name))


@user.command("revoke", cls=Command)
@name_argument
@token_name_option
@data_option
def revoke(name: str, token_name: str, data: Path) -> None:
    """Revoke the tokens of that name."""
    from feedback.accounts.users import revoke_token

    with person(data, name) as (store, user):
        print(f"revoked {revoke_token(store, user, token_name)}")


@user.command("take-over", cls=Command)
@name_argument
@data_option
def take_over(name: str, data: Path) -> None:
    """Give them the chats had before accounts."""
    from feedback.accounts import roles
    from feedback.accounts.users import OWNER

    with person(data, name) as (store, user):
        count = roles.take_over(store, None, user)
    print(f"{user.name} has the {chats(count)} of {OWNER!r}")


def asked_password() -> str:
    """A password typed twice, or one line of standard input if that is no terminal. Raises `Refused` if two differ."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass("password: ")
    if getpass.getpass("again: ") != password:
        raise Refused("the two passwords differ")
    return password
