"""Passwords: logging in and out, and the owner's password from the environment.

A wrong name takes as long as a wrong password, and after ten failures a name rests for five minutes.
Left out on purpose: who a request is once it is logged in (`auth`), and making accounts (the command line).
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated

import jinja2
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from feedback import people
from feedback.people import User
from feedback.store import Refused, Store, Unavailable
from ui.auth import open_session
from ui.refusals import NotLoggedIn, TooMany, status_of

FAILURES = 10
WITHIN_S = 300.0
NAMES_REMEMBERED = 10_000
LEAST_PASSWORD = 8  # characters
LONGEST_PASSWORD = 1024
OWNER_PASSWORD = "NIGHTSCHOOL_OWNER_PASSWORD"

router = APIRouter(include_in_schema=False)


@cache
def template(name: str) -> jinja2.Template:
    """A page's template; everything put into it is escaped."""
    folder = Path(__file__).parent / "templates"
    return jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True).get_template(name)


class Passwords:
    """Checks passwords, and counts failures by name for as long as the process lives."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._hasher = PasswordHasher()
        self._nobody = self._hasher.hash("nobody's password")
        self._failures: defaultdict[str, deque[float]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._hashing = threading.Semaphore(2)  # each takes 64 MB

    def check(self, name: str, password: str) -> User:
        """Whose password this is. Raises `NotLoggedIn`, or `TooMany` after too many failures."""
        self._count(name)
        user = people.find_user(self.store, name)
        known = (user.password_hash if user else None) or self._nobody
        if not self.matches(known, password) or user is None or known is self._nobody:
            raise NotLoggedIn("this name and password do not belong together")
        if self._hasher.check_needs_rehash(known):
            people.set_password(self.store, user.name, self.hash(password), same=True)
        with self._lock:
            self._failures.pop(name.strip().casefold(), None)
        return people.find_user(self.store, name) or user

    def matches(self, password_hash: str, password: str) -> bool:
        """Whether a password has this hash."""
        try:
            with self._hashing:
                return self._hasher.verify(password_hash, password[:LONGEST_PASSWORD])
        except (VerificationError, InvalidHashError):
            return False

    def hash(self, password: str) -> str:
        """A new salted hash of a password."""
        with self._hashing:
            return self._hasher.hash(password[:LONGEST_PASSWORD])

    def _count(self, name: str) -> None:
        """Count a try as failed, until it is known better, so that tries sent at once count too."""
        now = time.monotonic()
        with self._lock:
            if len(self._failures) > NAMES_REMEMBERED:
                self._failures.clear()
            tries = self._failures[name.strip().casefold()[:64]]
            while tries and tries[0] < now - WITHIN_S:
                tries.popleft()
            if len(tries) >= FAILURES:
                wait_minutes = max(1, round((tries[0] + WITHIN_S - now) / 60))
                raise TooMany(f"too many failed logins for this name; try again in {wait_minutes} minutes")
            tries.append(now)


def set_owner_password(store: Store, environ: Mapping[str, str]) -> None:
    """Make the operator account "owner", or update its password, when the environment names one. Raises `Refused`."""
    password = named_password(environ)
    if password is None:
        return
    if len(password) < LEAST_PASSWORD:
        raise Refused(f"the owner's password in {OWNER_PASSWORD} needs at least {LEAST_PASSWORD} characters")
    passwords = Passwords(store)
    owner = people.find_user(store, people.OWNER)
    if owner is None:
        people.add_user(store, people.OWNER, "operator", passwords.hash(password))
    elif not owner.may("operator"):
        raise Refused(f"the account {owner.name!r} is a {owner.role}, and {OWNER_PASSWORD} is for an operator's")
    elif not owner.password_hash or not passwords.matches(owner.password_hash, password):
        people.set_password(store, owner.name, passwords.hash(password))


def named_password(environ: Mapping[str, str]) -> str | None:
    """The password in the environment, or in the file it names. Raises `Unavailable` on an unreadable file."""
    file = environ.get(f"{OWNER_PASSWORD}_FILE")
    if not file:
        return environ.get(OWNER_PASSWORD)
    try:
        return Path(file).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"cannot read the owner's password from {file}") from error


@router.get("/login")
def login_page(request: Request, next: str = "/") -> Response:
    """The login page; the chat, where there is nothing to log in to."""
    if not people.has_accounts(request.app.state.assistant.store):
        return RedirectResponse("/", 303)
    return _page(next)


@router.post("/login")
def login(
    request: Request,
    name: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",
) -> Response:
    """Open a session, or show the page again with what was wrong."""
    try:
        user = request.app.state.passwords.check(name, password)
    except Refused as error:
        return _page(next, name, str(error), status_of(error))
    open_session(request.session, user)
    return RedirectResponse(_local(next), 303)


@router.post("/logout")
def logout(request: Request) -> Response:
    """Close the session."""
    request.session.clear()
    return RedirectResponse("/login", 303)


def _page(next: str, name: str = "", error: str = "", status: int = 200) -> Response:
    return HTMLResponse(template("login.html").render(next=_local(next), name=name, error=error), status)


def _local(path: str) -> str:
    """A path of ours to go on to, never an address elsewhere."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"
