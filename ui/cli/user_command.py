"""`nightschool user`: accounts, their roles, passwords, tokens and sessions; each act is in the audit trail."""

import argparse
import getpass
import sys
from collections.abc import Callable
from dataclasses import asdict

from feedback.accounts import roles, sessions, users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import Conflict, NotFound, Refused
from ui.accounts.passwords import hashed
from ui.cli.ledger_command import show

WAYS = """\
  add NAME [--role ROLE] [--take-over]   a new account; with --take-over it gets the chats had before there were any
  list                                   who there is
  password NAME                          a new password; ends their sessions and revokes their tokens
  role NAME ROLE                         what they may do: chatter, rater or operator
  disable NAME, enable NAME              let them in no more, at once; let them in again
  remove NAME                            an account that has said and done nothing (else: nightschool forget)
  sessions NAME [--end]                  where they are logged in; log them out everywhere
  token NAME, revoke NAME                a new API token, shown once; revoke those of --token-name
  take-over NAME                         give them the chats had before there were accounts"""


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add it; `command(name, run, words, reads)` makes a parser."""
    user = command("user", run_user, "manage accounts", reads=True)
    user.formatter_class = argparse.RawDescriptionHelpFormatter
    user.description = f"Manage accounts:\n{WAYS}"
    user.add_argument("act", choices=("add", "list", *ACTS), metavar="ACT")
    user.add_argument("name", nargs="?", metavar="NAME")
    user.add_argument("new_role", nargs="?", metavar="ROLE", help="for 'role'")
    user.add_argument("--role", choices=users.ROLES, help="for 'add' (default: chatter)")
    user.add_argument("--take-over", action="store_true", help="for 'add': the chats of the time without accounts, too")
    user.add_argument("--token-name", default="api", help="what a token is called, to revoke it by")
    user.add_argument("--end", action="store_true", help="for 'sessions': log them out everywhere")


def run_user(options: argparse.Namespace) -> None:
    """`nightschool user ACT`."""
    if options.act == "list":
        list_users(options)
        return
    if not options.name:
        raise Refused(f"whose? nightschool user {options.act} NAME")
    if options.new_role and options.act != "role":
        raise Refused(f"nightschool user {options.act} takes one NAME, and {options.new_role!r} is one too many")
    store = Database(options.data)
    if options.act == "add":
        add_user(store, options)
        return
    user = users.find_user(store, options.name)
    if user is None:
        raise NotFound(f"there is no user {options.name!r}")
    ACTS[options.act](store, user, options)


def list_users(options: argparse.Namespace) -> None:
    """`nightschool user list`."""
    found = users.users(Database(options.data))
    facts = [
        {"name": each.name, "role": each.role, "password": each.password_hash is not None}
        | {"disabled": each.disabled_at is not None}
        for each in found
    ]
    show(options, facts, [f"{each.name}  {each.role}{'  disabled' if each.disabled_at else ''}" for each in found])


def add_user(store: Database, options: argparse.Namespace) -> None:
    """`nightschool user add NAME`; the first one may have the chats of the time without accounts."""
    name = users.usable_name(options.name)
    taken = users.find_user(store, name)
    if taken and not (options.take_over and taken.name == users.OWNER):
        raise Conflict(f"there is already a user {name!r}")
    left = roles.left_with_owner(store)
    if options.take_over:
        roles.require_left(store)
    is_first = not users.has_accounts(store)
    taking = options.take_over or bool(is_first and left and wanted(left.chats, name))
    role = options.role or ("operator" if taking else "chatter")
    roles.add(store, None, name, role, hashed(asked_password(), name), taking)
    print(f"{name} may log in as {role}")
    if left and taking:
        print(f"{name} has the {chats(left.chats)} of {users.OWNER!r}")
    elif left and is_first:
        them = f"the {chats(left.chats)} had so far" if left.chats > 1 else "the one chat had so far"
        print(f"{them} stay with {users.OWNER!r}; to hand them over: nightschool user take-over {name}")
    if not roles.is_operated(store):
        print(f"nobody can operate yet; to let {name}: nightschool user role {name} operator", file=sys.stderr)


def wanted(count: int, name: str) -> bool:
    """Whether somebody at a terminal hands the earlier chats to the first account."""
    if not sys.stdin.isatty():
        return False
    asked = f"{chats(count)} had before there were accounts: shall {name} have them? Only if they are {name}'s. [y/N] "
    return input(asked).strip().lower() in ("y", "yes")


def chats(count: int) -> str:
    """So many chats, in words."""
    return f"{count:,} chat{'' if count == 1 else 's'}"


def give_password(store: Database, user: User, options: argparse.Namespace) -> None:
    """`nightschool user password NAME`."""
    users.set_password(store, user.name, hashed(asked_password(), user.name))
    print(f"{user.name} has a new password; sessions have ended, and tokens are revoked")


def give_role(store: Database, user: User, options: argparse.Namespace) -> None:
    """`nightschool user role NAME ROLE`."""
    if not options.new_role:
        raise Refused(f"which role? nightschool user role {user.name} {'|'.join(users.ROLES)}")
    roles.set_role(store, None, user, options.new_role)
    print(f"{user.name} is from now on {options.new_role}; was {user.role}")


def disable(store: Database, user: User, options: argparse.Namespace) -> None:
    """`nightschool user disable NAME`."""
    roles.disable(store, None, user)
    print(f"{user.name} is let in no more; what they said stays")


def enable(store: Database, user: User, options: argparse.Namespace) -> None:
    """`nightschool user enable NAME`."""
    roles.enable(store, None, user)
    print(f"{user.name} may log in again")


def remove(store: Database, user: User, options: argparse.Namespace) -> None:
    """`nightschool user remove NAME`."""
    roles.remove(store, None, user)
    print(f"{user.name} is removed")


def show_sessions(store: Database, user: User, options: argparse.Namespace) -> None:
    """`nightschool user sessions NAME [--end]`."""
    if options.end:
        print(f"ended: {roles.end_sessions(store, None, user)}")
        return
    found = sessions.of(store, user)
    lines = [
        f"{each.made_at[:16]}  last seen {each.seen_at[:16]}  {each.address}  {each.agent}".rstrip() for each in found
    ]
    show(options, [asdict(each) for each in found], lines or [f"{user.name} is logged in nowhere"])


def give_token(store: Database, user: User, options: argparse.Namespace) -> None:
    """`nightschool user token NAME`."""
    print(users.add_token(store, user, options.token_name))


def revoke(store: Database, user: User, options: argparse.Namespace) -> None:
    """`nightschool user revoke NAME`."""
    print(f"revoked {users.revoke_token(store, user, options.token_name)}")


def take_over(store: Database, user: User, options: argparse.Namespace) -> None:
    """`nightschool user take-over NAME`."""
    print(f"{user.name} has the {chats(roles.take_over(store, None, user))} of {users.OWNER!r}")


ACTS: dict[str, Callable[[Database, User, argparse.Namespace], None]] = {
    "password": give_password,
    "token": give_token,
    "revoke": revoke,
    "role": give_role,
    "disable": disable,
    "enable": enable,
    "remove": remove,
    "sessions": show_sessions,
    "take-over": take_over,
}


def asked_password() -> str:
    """A password typed twice, or one line of standard input where that is no terminal. Raises `Refused`."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass("password: ")
    if getpass.getpass("again: ") != password:
        raise Refused("the two passwords differ")
    return password
