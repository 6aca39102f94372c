"""Authentication of requests, and the gate in front of every route.

Without accounts there is one local owner, and only requests to a loopback host are theirs: another site that points its
own name at this machine is refused. With accounts, a request needs a session cookie or an API token. A write sent by
another site's page is refused, whatever cookie it carries. A session is kept in the database, and ends there.
"""

import ipaddress
import logging
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feedback import atomic
from feedback.accounts import sessions, users
from feedback.accounts.sessions import Session
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import Refused, Unavailable
from feedback.numerals import natural
from ui.accounts.patience import Patience
from ui.prefix import prefix_of
from ui.refusals import Forbidden, NotLoggedIn, TooLarge, TooMany, refusal, refusal_page

COOKIE = "nightschool"
KEY = "session"  # in the cookie: the key by which the session is found
HEALTH = "/healthz"  # a health check must not wait because of other requests' refusals
OPEN = ("/login", "/logout", HEALTH)  # for everybody
FORMS = ("/login", "/logout", "/account")  # small bodies only
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
LARGEST_BODY = 16 << 20
LARGEST_FORM = 16 << 10
DEFAULT_PORTS = {"http": 80, "https": 443}

log = logging.getLogger(__name__)


def cookie_secret(store: Database) -> str:
    """The secret that signs session cookies; made once, readable by this account only. Raises `Unavailable`."""
    path = store.data / "secret"
    try:
        with store.transaction():  # one process at a time
            if not path.exists() or len(path.read_text()) < 32:
                atomic.write(path, secrets.token_urlsafe(32).encode())
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


def admitted(store: Database, request: Request) -> User | None:
    """The person who sent a request; None for an unknown sender on a path in `OPEN`.

    Raises `NotLoggedIn` or `Forbidden`.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = scheme.lower() == "bearer"
    user = users.user_of_token(store, token.strip()) if bearer else None
    if user is not None:
        return user
    if request.method not in SAFE_METHODS:
        require_same_origin(request)
    if request.url.path in OPEN:
        return None
    if not users.has_accounts(store):
        require_direct(request)
        return users.find_user(store, users.OWNER) or users.local_owner(store)
    user = None if bearer else user_of_session(store, request)
    if user is None:
        raise NotLoggedIn("this API token is not valid" if bearer else "log in first, or send an API token")
    return user


def require_direct(request: Request) -> None:
    """Raises `Forbidden` unless a request was sent to a loopback name or address, and by no proxy."""
    if request.scope.get("proxied"):
        raise Forbidden(
            "this came through a proxy, and without accounts everybody whom it lets through would be the owner: run "
            "'nightschool user add NAME --role operator', and name the proxy with --trusted-proxy (docs/proxy.md)"
        )
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if not is_loopback(host):
        raise Forbidden(
            f"without accounts Nightschool answers at 127.0.0.1 and localhost only, not at {host!r}: run 'nightschool "
            "user add NAME --role operator' to serve it elsewhere"
        )


def require_same_origin(request: Request) -> None:
    """Raises `Forbidden` when a browser says that another site's page sent this."""
    origin = request.headers.get("origin")
    other_site = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if other_site if origin is None else not is_ours(origin, request):
        raise Forbidden(
            "a page of another site cannot write here; behind a proxy, pass the Host header on unchanged, or name the "
            "proxy with --trusted-proxy and let it send X-Forwarded-Host"
        )


def is_ours(origin: str, request: Request) -> bool:
    """Whether an origin is the one that this request was sent to.

    TLS is not seen behind a proxy that was not named, so a request by http may have an https origin, but never the
    other way round.
    """
    try:
        theirs = urlsplit(origin)
        ours = urlsplit(f"//{request.headers.get('host', '')}")
        port = DEFAULT_PORTS.get(theirs.scheme)
        same_place = (theirs.hostname, theirs.port or port) == (ours.hostname, ours.port or port)
    except ValueError:  # the port is not a valid one
        return False
    schemes = ("https",) if request.url.scheme == "https" else ("http", "https")
    return theirs.hostname is not None and theirs.scheme in schemes and same_place


def came_by_tls(request: HTTPConnection) -> bool:
    """Whether the browser sent a request by TLS: as a named proxy says, or a browser that writes from an https page."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")


def open_session(request: Request, user: User) -> None:
    """Begin a session of this person in this browser, and end its former one."""
    store: Database = request.app.state.assistant.store
    former = str(request.session.get(KEY, ""))
    agent = agent_in_words(request.headers.get("user-agent", ""))
    key = sessions.begin(store, user, address_of(request), agent, instead_of=former)
    request.session.clear()
    request.session[KEY] = key


def user_of_session(store: Database, request: Request) -> User | None:
    """The person whose session a request belongs to, if it is valid; sets `request.state.session`."""
    request.state.session = sessions.find(store, str(request.session.get(KEY, "")))
    return users.user_by_id(store, request.state.session.user) if request.state.session else None


def session_of(request: Request) -> Session | None:
    """The session that a request belongs to; None for programs and on open paths."""
    return getattr(request.state, "session", None)


def address_of(request: Request) -> str:
    """The client's address, as far as the server and its proxies know; empty if unknown."""
    return request.client.host if request.client else ""


def network_of(address: str) -> str:
    """The network that counts as one client: the address itself, or in IPv6 the /64, which one customer holds."""
    try:
        found = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def agent_in_words(agent: str) -> str:
    """A user agent in words, such as Firefox on Linux."""
    browsers = {"Edg": "Edge", "OPR/": "Opera", "Firefox": "Firefox", "Chrom": "Chrome", "Safari": "Safari"}
    systems = {"Android": "Android", "iPhone": "iPhone", "iPad": "iPad", "Windows": "Windows", "Mac OS": "macOS"}
    named = [
        next((name for mark, name in kinds.items() if mark in agent), "")
        for kinds in (browsers, systems | {"Linux": "Linux"})
    ]
    return " on ".join(filter(None, named)) or "".join(filter(str.isprintable, agent))[:40]


class Sessions:
    """ASGI middleware: `request.session` from a signed cookie for our prefix, and for TLS if the request came by it."""

    def __init__(self, app: ASGIApp, secret: str) -> None:
        lasts_s = int(sessions.LASTS.total_seconds())
        self._by_tls, self._plain = (
            SessionMiddleware(app, secret, session_cookie=COOKIE, max_age=lasts_s, https_only=by_tls)
            for by_tls in (True, False)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._plain(scope, receive, send)
            return
        request = HTTPConnection(scope)
        kept = copy(self._by_tls if came_by_tls(request) else self._plain)
        kept.path = prefix_of(request) or "/"
        await kept(scope, receive, send)


class Gate:
    """ASGI middleware, the only way to every route: sets `request.state.user`, or refuses the request."""

    def __init__(self, app: ASGIApp, store: Database, roles: Mapping[str, str]) -> None:
        """`roles` maps a path to the role required for it and everything below it."""
        self.app = app
        self.store = store
        self._roles = roles
        self._patience = Patience()
        self._seeing = ThreadPoolExecutor(1, "seen")  # no request waits for it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here uses it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        answer = self._answer(request)
        if request.url.path == HEALTH:
            await (answer or self.app)(scope, receive, send)
            return
        user = getattr(request.state, "user", None)
        who = f"person {user.id}" if user else f"address {network_of(address_of(request))}"
        if not await self._patience.lasts(who):
            answer = refusal(request.url.path, TooMany("too many requests were refused; try again in a while"))
        receiving = counted(receive, largest_body(request.url.path))
        await (answer or self.app)(scope, receiving, self._patience.counting(who, send))

    def _answer(self, request: Request) -> Response | None:
        """The response to a request that is not admitted, if it is not."""
        path = request.url.path
        try:
            request.state.user = admitted(self.store, request)
            session = session_of(request)
            if session and sessions.is_seen_long_ago(session):
                self._seeing.submit(self._see, session)
            require_fitting(request.headers, largest_body(path))
            for place, role in self._roles.items():
                if path == place or path.startswith(f"{place}/"):
                    require_role(request.state.user, role)
        except NotLoggedIn as error:
            if wants_html(request):
                return RedirectResponse(f"{prefix_of(request)}/login?next={quote(path)}", 303)
            if path.startswith(FORMS) and "text/html" in request.headers.get("accept", ""):
                return RedirectResponse(f"{prefix_of(request)}/login", 303)  # a button of a page whose session is over
            return refusal(path, error)
        except Refused as error:
            return refusal_page(request, error) if wants_html(request) else refusal(path, error)
        return None

    def _see(self, session: Session) -> None:
        """Record that a session was seen."""
        try:
            sessions.see(self.store, session.id)
        except Refused as error:  # the next request tries again
            log.warning("could not write down when somebody was last here: %s", error)


def wants_html(request: Request) -> bool:
    """Whether a browser is opening a page."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


def largest_body(path: str) -> int:
    """The most bytes that a request for a path may send."""
    return LARGEST_FORM if path.startswith(FORMS) else LARGEST_BODY


def require_fitting(headers: Headers, largest: int) -> None:
    """Raises `TooLarge` for a body that is declared too large, or whose length is no number."""
    length = natural(headers.get("content-length", "0"))
    if length is None or length > largest:
        raise too_large(largest)


def counted(receive: Receive, largest: int) -> Receive:
    """A `receive` that counts a body of undeclared length while it is read, and raises `TooLarge`."""
    read = 0

    async def receiving() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > largest:
            raise too_large(largest)
        return message

    return receiving


def too_large(largest: int) -> TooLarge:
    """The refusal of a body of more than `largest` bytes."""
    size = f"{largest >> 20} MB" if largest >> 20 else f"{largest >> 10} kB"
    return TooLarge(f"this is too large; send at most {size}")


def person(request: Request) -> User:
    """The person who sent this request."""
    user = request.state.user
    assert isinstance(user, User)  # the gate admits nobody else to a route that asks
    return user


def operator(user: Annotated[User, Depends(person)]) -> User:
    """The operator who sent this request. Raises `Forbidden` for anyone else."""
    return require_operator(user)


def require_operator(user: User) -> User:
    """The same person, if they are an operator. Raises `Forbidden` if not."""
    return require_role(user, "operator")


def require_role(user: User, role: str) -> User:
    """The same person, if they may do what the role may. Raises `Forbidden` if not."""
    if not user.may(role):
        raise Forbidden(f"this takes the role {role}, and {user.name} is a {user.role}")
    return user


Person = Annotated[User, Depends(person)]
Operator = Annotated[User, Depends(operator)]


def page_user(request: Any, store: Database) -> User:
    """The person at a Gradio page, from the `gr.Request` of a handler. Raises `NotLoggedIn`."""
    user = users.find_user(store, request.username) if request.username else None
    if user is None or user.disabled_at:
        raise NotLoggedIn("log in first; reload the page")
    return user
