"""Logging in and out with passwords, and the owner's password from the environment.

A wrong name takes as long as a wrong password. Guesses are limited per guesser, never per account, so that nobody can
lock another person out: an address has few tries for one name and some for all names; a browser that has logged in
before (OWASP's device cookie) has tries of its own. Hashing has threads of its own: a few requests may wait for them,
and any more are refused at once.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

from anyio import to_thread
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from fastapi import APIRouter, Form
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from assistant.engine.background import give_way
from feedback.accounts import sessions, users
from feedback.accounts.users import User
from feedback.database.database import Database, new_id
from feedback.errors import Refused, Unavailable
from ui.accounts.auth import KEY, address_of, came_by_tls, network_of, open_session
from ui.accounts.passwords import MOST, require_usable
from ui.accounts.patience import Pace
from ui.accounts.tries import Tries
from ui.prefix import prefix_of, without
from ui.refusals import Forbidden, NotLoggedIn, TooMany, retry_after, status_of, template

WITHIN_S = 300.0  # failed tries count for so long, to within a minute
FAILURES = 10  # of one address, or of one known browser, for one name
FAILURES_OF_ADDRESS = 60  # for all names
SIEGE = 100  # failures for one name from everywhere, after which
FAILURES_IN_SIEGE = 3  # is the limit of one address for that name
HASHING, KNOWN_HASHING = 2, 1  # threads, each with 64 MB; those for known browsers are reserved for them
WAITING = 8  # requests, for each of the two
DEVICE = "nightschool-device"  # the cookie of a browser that has logged in before
DEVICE_S = 180 * 24 * 3600
OWNER_PASSWORD = "NIGHTSCHOOL_OWNER_PASSWORD"

Answer = TypeVar("Answer")

router = APIRouter(include_in_schema=False)


class Passwords:
    """Checks and hashes passwords, without any limit on tries."""

    def __init__(self, store: Database, hasher: PasswordHasher | None = None) -> None:
        self.store = store
        self._hasher = hasher or PasswordHasher()
        self._nobody = self._hasher.hash("nobody's password")

    def check(self, name: str, password: str) -> User:
        """The person with this name and password. Raises `NotLoggedIn`, or `Forbidden` on a disabled account."""
        user = users.find_user(self.store, name)
        known = (user.password_hash if user else None) or self._nobody
        if not self.matches(known, password) or user is None or known is self._nobody:
            raise NotLoggedIn("this name and password do not belong together")
        if user.disabled_at:
            raise Forbidden(f"the account {user.name} is disabled; ask an operator")
        if self._hasher.check_needs_rehash(known):
            users.set_hash(self.store, user, self.hash(password))
        return users.find_user(self.store, name) or user

    def matches(self, password_hash: str, password: str) -> bool:
        """Whether a password has this hash."""
        try:
            return self._hasher.verify(password_hash, password[:MOST])
        except (VerificationError, InvalidHashError):
            return False

    def hash(self, password: str) -> str:
        """A new salted hash of a password."""
        return self._hasher.hash(password[:MOST])


class Lane:
    """Threads for slow work; a few requests may wait for one, and any more are refused at once."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, "passwords", give_way)  # chats come first
        self._places = threads + WAITING

    def require_place(self) -> None:
        """Raises `TooMany` when enough wait already."""
        if not self._places:
            raise TooMany("the server is busy with other logins; try again in a few seconds")

    async def run(self, act: Callable[[], Answer]) -> Answer:
        """Act in one of the threads. Raises `TooMany`, and what `act` raises."""
        self.require_place()
        self._places -= 1
        done = asyncio.get_running_loop().run_in_executor(self._threads, act)
        done.add_done_callback(lambda _: self._leave())
        return await asyncio.shield(done)  # a client that disconnects keeps its place until the work is done

    def _leave(self) -> None:
        self._places += 1


class Logins:
    """Checks passwords, with limits on tries and on how many run at once. Lives in the event loop's thread."""

    def __init__(self, passwords: Passwords, secret: str) -> None:
        self.passwords = passwords
        self.failures = Tries(WITHIN_S)
        self._devices = URLSafeTimedSerializer(secret, "device")
        self._strangers, self._known = Lane(HASHING), Lane(KNOWN_HASHING)

    async def check(self, request: Request, name: str, password: str) -> User:
        """The same within the limits. Raises `NotLoggedIn`, `Forbidden` on a disabled account, or `TooMany`."""
        device = self._device(request, name)
        lane = self._known if device else self._strangers
        lane.require_place()
        keys = [device] if device else self._stranger(network_of(address_of(request)), short(name))
        tries = [(key, self.failures.add(key)) for key in keys]  # failed until known better: many come at once
        try:
            return await lane.run(partial(self.passwords.check, name, password))
        except (NotLoggedIn, Forbidden):
            tries = []
            raise
        finally:
            for key, slice in tries:
                self.failures.take_back(key, slice)

    def require_tries(self, request: Request) -> None:
        """Raises `TooMany` when the address of an unknown browser has used up its tries for all names."""
        self._require_fewer(f"address {network_of(address_of(request))}", FAILURES_OF_ADDRESS, "from this address")

    def require_place(self) -> None:
        """Raises `TooMany` while too many tries of unknown browsers wait."""
        self._strangers.require_place()

    async def hash(self, request: Request, password: str) -> str:
        """The hash of a new password, for a person who is logged in. Raises `TooMany`."""
        return await self._known.run(partial(self.passwords.hash, password))

    def _stranger(self, network: str, name: str) -> list[str]:
        """The keys under which a try of an unknown browser counts. Raises `TooMany` when one is used up."""
        pair, address, everywhere = f"pair {network} {name}", f"address {network}", f"name {name}"
        most = FAILURES if self.failures.count(everywhere) < SIEGE else FAILURES_IN_SIEGE
        self._require_fewer(pair, most, "for this name from this address")
        self._require_fewer(address, FAILURES_OF_ADDRESS, "from this address")
        return [pair, address, everywhere]

    def _require_fewer(self, key: str, most: int, what: str) -> None:
        if self.failures.count(key) >= most:
            words = f"too many failed logins {what}; try again in {WITHIN_S / 60:.0f} minutes"
            raise TooMany(words, self.failures.wait_s(key, most))

    def _device(self, request: Request, name: str) -> str | None:
        """The key of a browser that has logged in under this name before and has tries left."""
        try:
            user, mark = self._devices.loads(request.cookies.get(DEVICE, ""), max_age=DEVICE_S)
        except (BadSignature, ValueError, TypeError):
            return None
        known = users.user_by_id(self.passwords.store, user)
        key = f"device {mark}"
        is_theirs = known is not None and short(known.name) == short(name)
        return key if is_theirs and self.failures.count(key) < FAILURES else None

    def know(self, request: Request, response: Response, user: User) -> None:
        """Set the device cookie, by which the browser is known from now on."""
        response.set_cookie(
            DEVICE,
            str(self._devices.dumps([user.id, new_id()])),
            max_age=DEVICE_S,
            path=prefix_of(request) or "/",
            secure=came_by_tls(request),
            httponly=True,
            samesite="lax",
        )


class Doorman:
    """ASGI middleware: refuses hopeless logins before their body is read, so that a flood of guesses costs little.

    An address that has used up its tries is refused at a limited rate: its flood slows, and nobody else waits.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/login" and scope["method"] == "POST":
            request = Request(scope)
            if not request.cookies.get(DEVICE) and (error := await self._why_hopeless(request)):
                words = f"{str(error)[:1].upper()}{str(error)[1:]}."
                await PlainTextResponse(words, 429, headers_of(error))(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _why_hopeless(self, request: Request) -> TooMany | None:
        logins: Logins = request.app.state.logins
        try:
            logins.require_tries(request)
        except TooMany as error:
            await self._pace.wait(network_of(address_of(request)))
            return error
        try:
            logins.require_place()
        except TooMany as error:
            return error
        return None


def short(name: str) -> str:
    """The form of a name under which its tries are counted."""
    return name.strip().casefold()[:64]


def set_owner_password(store: Database, environ: Mapping[str, str]) -> None:
    """Make the operator account "owner", or update its password, when the environment names one. Raises `Refused`."""
    password = named_password(environ)
    if password is None:
        return
    passwords = Passwords(store)
    owner = users.find_user(store, users.OWNER)
    if owner is not None and not owner.may("operator"):
        raise Refused(f"the account {owner.name!r} is a {owner.role}, and {OWNER_PASSWORD} is for an operator's")
    if owner is not None and owner.password_hash and passwords.matches(owner.password_hash, password):
        return
    try:
        require_usable(password, users.OWNER)
    except Refused as error:
        raise Refused(f"the owner's password in {OWNER_PASSWORD} cannot be used: {error}") from error
    if owner is None:
        users.add_user(store, users.OWNER, "operator", passwords.hash(password))
    else:
        users.set_password(store, owner.name, passwords.hash(password))


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
    """The login page, or a redirect to the chat where there are no accounts."""
    if not users.has_accounts(request.app.state.assistant.store):
        return RedirectResponse(f"{prefix_of(request)}/", 303)
    return _page(request, next)


@router.post("/login")
async def login(
    request: Request,
    name: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",
) -> Response:
    """Open a session, or show the page again with what was wrong."""
    logins: Logins = request.app.state.logins
    try:
        user = await logins.check(request, name, password)
        await to_thread.run_sync(open_session, request, user)
    except Refused as error:
        return _page(request, next, name, error)
    response = RedirectResponse(prefix_of(request) + _local(request, next), 303)
    logins.know(request, response, user)
    return response


@router.get("/logout")
def logout_page(request: Request) -> Response:
    """A page with a log-out button. A GET must not log out: another site's image could send one."""
    if not sessions.find(request.app.state.assistant.store, str(request.session.get(KEY, ""))):
        return RedirectResponse(f"{prefix_of(request)}/login", 303)
    return HTMLResponse(template("logout.html").render(prefix=prefix_of(request)))


@router.post("/logout")
def logout(request: Request) -> Response:
    """End the session, in the cookie and in the database."""
    store: Database = request.app.state.assistant.store
    session = sessions.find(store, str(request.session.get(KEY, "")))
    if session:
        sessions.end_by_id(store, session.id)
    request.session.clear()
    return RedirectResponse(f"{prefix_of(request)}/login", 303)


def _page(request: Request, next: str, name: str = "", error: Refused | None = None) -> Response:
    facts = {"prefix": prefix_of(request), "next": _local(request, next), "name": name, "error": str(error or "")}
    page = template("login.html").render(facts)
    return HTMLResponse(page, status_of(error) if error else 200, headers_of(error))


def headers_of(error: Refused | None) -> dict[str, str]:
    """The headers of a page about passwords: Retry-After for `TooMany`."""
    return {"Retry-After": retry_after(error)} if isinstance(error, TooMany) else {}


def _local(request: Request, path: str) -> str:
    """A path of ours to redirect to, without our prefix; never an address elsewhere, nor the log-out page."""
    path = without(prefix_of(request), path)
    ours = path.startswith("/") and not path.startswith(("//", "/\\", "/logout")) and path.isprintable()
    return path if ours else "/"
