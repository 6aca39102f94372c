"""Who a request is, and whether it may come in.

Without accounts there is one local owner, and only requests to a loopback address are theirs: a page elsewhere that
points its own name at this machine is refused. With accounts it takes a session cookie or an API token. A write that
another site's page sends is refused whoever's cookie it carries.
Left out on purpose: passwords and the login page (`login`).
"""

import ipaddress
import os
import secrets
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from feedback import people
from feedback.people import User
from feedback.store import Refused, Store, Unavailable
from ui.refusals import Forbidden, NotLoggedIn, TooLarge, refusal, refusal_page

COOKIE = "nightschool"
SESSION_DAYS = 14
OPEN = ("/login", "/healthz")  # for everybody
OPERATE = "/operate"  # the operators' page; it and all below it are for them alone
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
LARGEST_BODY = 16 << 20


def cookie_secret(store: Store) -> str:
    """What session cookies are signed with; made once, readable by this account only."""
    path = store.data / "secret"
    try:
        with store.write():  # one process at a time
            if not path.exists() or len(path.read_text()) < 32:
                new = path.with_suffix(".new")
                new.unlink(missing_ok=True)
                with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(secrets.token_urlsafe(32))
                    file.flush()
                    os.fsync(file.fileno())
                new.rename(path)
        return path.read_text()
    except OSError as error:
        raise Unavailable(f"cannot keep {path}: {error.strerror}") from error


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def admitted(store: Store, request: Request) -> User | None:
    """Who sent a request; None for nobody in particular at a door that is open to all.

    Raises `NotLoggedIn` or `Forbidden`.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = scheme.lower() == "bearer"
    user = people.user_of_token(store, token.strip()) if bearer else None
    if user is not None:
        return user
    if request.method not in SAFE_METHODS:
        require_same_origin(request.headers)
    if request.url.path in OPEN:
        return None
    if not people.has_accounts(store):
        require_loopback(request.headers)
        return people.find_user(store, people.OWNER) or people.local_owner(store)
    user = None if bearer else user_of_session(store, request.session)
    if user is None:
        raise NotLoggedIn("this API token is not valid" if bearer else "log in first, or send an API token")
    return user


def require_loopback(headers: Headers) -> None:
    """Raises `Forbidden` unless the request was addressed to this machine by a name that only it has."""
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if not is_loopback(host):
        raise Forbidden(f"without accounts Nightschool answers at 127.0.0.1 and localhost only, not at {host!r}")


def require_same_origin(headers: Headers) -> None:
    """Raises `Forbidden` when a browser says that another site's page sent this."""
    origin = headers.get("origin")
    other_site = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if other_site if origin is None else urlsplit(origin).netloc != headers.get("host"):
        raise Forbidden("a page of another site cannot write here; behind a proxy, pass the Host header on unchanged")


def mark(user: User) -> str:
    """What a session remembers of the password it was opened with; a new password has another."""
    return people.sha256(user.password_hash or "")[:32]


def open_session(session: dict[str, Any], user: User) -> None:
    """Let the session be this person's."""
    session.update(user=user.id, mark=mark(user))


def user_of_session(store: Store, session: dict[str, Any]) -> User | None:
    """Whose session this is; None also when the password has changed since."""
    user = people.user_by_id(store, session["user"]) if isinstance(session.get("user"), int) else None
    return (
        user if user and user.password_hash and secrets.compare_digest(mark(user), str(session.get("mark"))) else None
    )


class Gate:
    """The one way in, before any route: who is let through stands in `request.state.user`."""

    def __init__(self, app: ASGIApp, store: Store) -> None:
        self.app = app
        self.store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http":
            request = Request(scope)
            answer = self._answer(request)
            if answer is not None:
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _answer(self, request: Request) -> Response | None:
        """What to answer instead of going on, if anything."""
        path = request.url.path
        try:
            request.state.user = admitted(self.store, request)
            require_fitting(request.headers)
            if path == OPERATE or path.startswith(f"{OPERATE}/"):
                require_operator(request.state.user)
        except NotLoggedIn as error:
            if wants_html(request):
                return RedirectResponse(f"/login?next={quote(path)}", 303)
            return refusal(path, error)
        except Refused as error:
            return refusal_page(path, error) if wants_html(request) else refusal(path, error)
        return None


def wants_html(request: Request) -> bool:
    """Whether a person's browser opens a page."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


def require_fitting(headers: Headers) -> None:
    """Raises `TooLarge` for a body that is too large, or does not say how large it is."""
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not length.isdigit() or int(length) > LARGEST_BODY:
        raise TooLarge(f"send at most {LARGEST_BODY >> 20} MB, with a Content-Length")


def person(request: Request) -> User:
    """Who sent this request."""
    user = request.state.user
    assert isinstance(user, User)  # the gate lets nobody else through to a route that asks
    return user


def operator(user: Annotated[User, Depends(person)]) -> User:
    """Who sent this request, being an operator. Raises `Forbidden`."""
    return require_operator(user)


def require_operator(user: User) -> User:
    """The same person, being an operator. Raises `Forbidden`."""
    if not user.may("operator"):
        raise Forbidden(f"this takes the role operator, and {user.name} is a {user.role}")
    return user


Person = Annotated[User, Depends(person)]
Operator = Annotated[User, Depends(operator)]


def page_user(request: Any, store: Store) -> User:
    """Who is at a Gradio page, from the `gr.Request` of a handler. Raises `NotLoggedIn`."""
    user = people.find_user(store, request.username) if request.username else None
    if user is None:
        raise NotLoggedIn("log in first; reload the page")
    return user
