"""The server: assembles and runs the pages, the HTTP API, the schedule and the assistant behind them.

Everything that can be checked without the model is checked before it is loaded. Nothing that is served loads anything
from another host, and the headers forbid it.
"""

import asyncio
import gc
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

from assistant import command_line
from assistant.environment import prepare
from feedback import plugins
from feedback.accounts import users
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.records import audit, settings
from ui.serve_options import ENGINE_URL, ServeOptions, serve_command

if TYPE_CHECKING:  # heavy: bad input must be refused before any of it is imported
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from assistant.chat.assistant import Assistant

LOOK_EVERY_S = 1.0  # how often to look for a promotion made by another process
SWITCH_S = 0.0005  # short, so that threads answering requests need not wait long for threads writing replies
IDLE_S = 75  # longer than proxies keep a connection (60 s), so that none sends on one that is being closed
TURN_S = 1.0  # for a page's turn to record its reply once that is stopped
POLICY = (
    "default-src 'self'",
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio needs both
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "font-src 'self' data:",
    "media-src 'self' data: blob:",
    "connect-src 'self' data: blob:",
    "worker-src 'self' blob:",
    "object-src 'none'",
    "base-uri 'self'",
    "form-action 'self'",
    "frame-ancestors 'none'",
)
HEADERS = {
    "Content-Security-Policy": "; ".join(POLICY),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
NO_STORE = (b"cache-control", b"no-store")
# For event streams: each event is to arrive when it is sent, and nginx would hold them back otherwise.
AT_ONCE = ((b"cache-control", b"no-cache, no-store"), (b"x-accel-buffering", b"no"))
# Only where the request came by TLS, or clients on plain HTTP would be cut off.
BY_TLS = {"Strict-Transport-Security": "max-age=31536000"}
ABOUT = (
    "A chat assistant that learns at night from what people said of its replies by day. Programs send a token, made "
    "with 'nightschool user token NAME', as Authorization: Bearer; on a machine without accounts none is needed."
)

log = logging.getLogger(__name__)


def create_app(
    assistant: "Assistant",
    lifespan: Callable[["FastAPI"], Any] | None = None,
    proxies: Sequence[str] = (),
    prefix: str = "",
) -> "FastAPI":
    """The ASGI application that serves an assistant; `proxies` are the ones it trusts, and serve it at `prefix`."""
    from fastapi import FastAPI

    from assistant.engine.engine import MOST_WAITING
    from assistant.engine.scheduling.scheduler import MOST_ROWS
    from ui import metrics, pages, refusals
    from ui import proxies as proxied
    from ui.accounts import account_page, auth, login, users
    from ui.api import admin, api, docs, feedback, nowhere, turns
    from ui.api.generating import Generating
    from ui.api.openai import routes as openai_routes
    from ui.api.openai.attempts import Attempts
    from ui.api.settings import routes as settings_routes

    app = FastAPI(
        title="Nightschool",
        description=ABOUT,
        lifespan=lifespan,
        docs_url=None,  # `ui.api.docs` has them
        redoc_url=None,
        openapi_url=None,
    )
    app.state.assistant = assistant
    secret = auth.cookie_secret(assistant.store)
    app.state.logins = login.Logins(login.Passwords(assistant.store), secret)
    app.state.numbers = metrics.registry(assistant)
    app.state.generating = Generating(MOST_ROWS + MOST_WAITING)
    app.state.attempts = Attempts()

    # Middleware runs from the last added to the first.
    app.add_middleware(nowhere.NoOtherOrigin)  # and with ours, Gradio adds no CORS middleware of its own
    app.add_middleware(auth.Gate, store=assistant.store, roles=pages.roles())
    app.add_middleware(auth.Sessions, secret=secret)
    app.add_middleware(login.Doorman)
    app.add_middleware(with_headers, program=program_of(pages.PAGES))
    app.add_middleware(proxied.Forwarded, proxies=proxies, prefix=prefix)
    refusals.add_handlers(app)
    for made in (settings_routes(), pages.redirects(), feedback.router()):
        app.include_router(made)
    programs = (api, turns, users, admin, openai_routes, metrics)
    for each in (*programs, login, account_page, docs, nowhere):  # nowhere last
        app.include_router(each.router)
    pages.mount(app, assistant)
    return app


def program_of(paths: Iterable[str]) -> re.Pattern[str]:
    """A pattern of the cacheable paths, which hold nothing personal: Gradio's scripts, styles and images.

    Our colours are in `theme.css`.
    """
    places = "|".join(re.escape(path.rstrip("/")) for path in paths)
    return re.compile(rf"({places})/(assets/|static/|theme\.css|favicon\.ico)")


def with_headers(app: "ASGIApp", program: re.Pattern[str]) -> "ASGIApp":
    """ASGI middleware: adds the security headers to every response, and `no-store` to all but the `program`."""

    def encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
        return [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    plain, by_tls = encoded(HEADERS), encoded(HEADERS | BY_TLS)

    async def wrapped(scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def sending(message: "Message") -> None:
            if message["type"] == "http.response.start":
                headers, own = by_tls if scope.get("scheme") == "https" else plain, message.get("headers", [])
                if not program.match(scope["path"]):
                    caching = AT_ONCE if is_stream(own) else (NO_STORE,)
                    names = [name for name, _ in caching]
                    own = [*((name, value) for name, value in own if name.lower() not in names), *caching]
                message["headers"] = [*own, *headers]
            await send(message)

        await app(scope, receive, sending)

    return wrapped


def is_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response is a stream of events, by its headers."""
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `Refused` when the address or the port cannot be used."""
    way_out = "choose another with --port"
    if not 0 <= port <= 65535:
        raise Refused(f"a port is a number from 0 to 65535, not {port}; {way_out}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=256)
    except (socket.gaierror, UnicodeError) as error:  # a label of over 63 letters is no name at all
        raise Refused(f"there is no address {host[:80]!r} on this machine; choose another with --host") from error
    except OSError as error:
        raise Refused(f"cannot listen at {host} port {port}: {error.strerror or error}; {way_out}") from error


def require_accounts(store: Database, host: str, proxies: Sequence[str] = ()) -> None:
    """Raises `Refused` when other machines could reach a server without accounts."""
    from ui.accounts.auth import is_loopback

    if (proxies or not is_loopback(host)) and not users.has_accounts(store):
        where = f"at {host}" if not is_loopback(host) else f"behind a proxy at {proxies[0]}"
        raise Refused(
            f"without accounts Nightschool answers on this machine only, not {where}: run 'nightschool user add NAME "
            "--role operator', or set NIGHTSCHOOL_OWNER_PASSWORD or NIGHTSCHOOL_OWNER_PASSWORD_FILE"
        )


def alive(assistant: "Assistant", url: str) -> Callable[["FastAPI"], Any]:
    """The lifespan of the application: runs the schedule and watches for promotions while the server runs."""
    from anyio import to_thread

    from ui.schedule.schedule import Schedule

    schedule = Schedule(assistant.store, assistant.base.name)
    over = threading.Event()

    @asynccontextmanager
    async def lifespan(_: "FastAPI") -> AsyncIterator[None]:
        threading.Thread(target=look_for_promotions, args=(assistant, over), name="promotions", daemon=True).start()
        schedule.start()
        print(f"Nightschool answers at {url}", flush=True)
        yield
        over.set()
        schedule.stop()
        await to_thread.run_sync(finish, assistant)

    return lifespan


def finish(assistant: "Assistant") -> None:
    """Stop every reply being written; each page's turn gets up to `TURN_S` seconds to record its own as cancelled."""
    assistant.close()
    for thread in threading.enumerate():
        if thread.name.startswith("turn-"):  # the pages write replies in threads of their own (`ui.chat.streams`)
            thread.join(timeout=TURN_S)


def look_for_promotions(assistant: "Assistant", over: threading.Event) -> None:
    """Load an adapter that another process promoted before the next message needs it."""
    while not over.wait(LOOK_EVERY_S):
        try:
            assistant.adapters.serving()
        except Exception:  # tried again at the next look
            log.exception("could not see which adapter serves")


def serve(options: ServeOptions) -> None:
    """Run the server until it is told to stop. Raises `Refused` when it cannot start."""
    from ui.accounts.login import set_owner_password
    from ui.prefix import root_path

    proxies = trusted_proxies(options)
    with closing(Database(options.data)) as store, bound(options.host, options.port) as listening:
        with audit.at_terminal():
            set_owner_password(store, os.environ)
        require_accounts(store, options.host, proxies)
        engine_url(options)
        root_path(options.root_path)
        share = options.side_by_side
        if share is not None and share != settings.setting(store, "side_by_side_share"):
            with audit.at_terminal():
                settings.set_setting(store, None, "side_by_side_share", share)
        run(store, listening, options)


def run(store: Database, listening: socket.socket, options: ServeOptions) -> None:
    """Load the assistant and serve on a socket until told to stop. Raises `Refused` on an unusable model."""
    prepare(options.model)
    plugins.load()
    from assistant.chat.assistant import open_assistant
    from ui.ending import Server
    from ui.prefix import root_path

    assistant = open_assistant(
        store, options.model, options.dtype, engine_url=engine_url(options), memory=options.memory, apart=True
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{listening.getsockname()[1]}"
    app = create_app(assistant, alive(assistant, url), trusted_proxies(options), root_path(options.root_path))
    server = Server(
        app,
        assistant.writing,
        options.grace,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # uvicorn would trust every local process; `ui.proxies` trusts those named
        timeout_keep_alive=IDLE_S,
        loop="asyncio",  # under uvloop a reply cut short at shutdown is not recorded
        lifespan="on",
    )
    for each in (signal.SIGTERM, signal.SIGINT):  # uvicorn stops on them, and then raises them again
        signal.signal(each, lambda *_: None)
    gc.collect()
    gc.freeze()  # the pages live as long as the server: scanning them for garbage would only cause pauses
    server.run(sockets=[listening])


def engine_url(options: ServeOptions) -> str | None:
    """The URL of the vLLM server; None for our own engine. Raises `Refused` on a URL without `--engine vllm`."""
    if options.engine == "local" and options.engine_url:
        raise Refused("--engine-url is the address of a vLLM server; say --engine vllm, too, or leave it out")
    return (options.engine_url or ENGINE_URL) if options.engine == "vllm" else None


def trusted_proxies(options: ServeOptions) -> list[str]:
    """The trusted proxies, from the options or the environment. Raises `Refused` on an invalid address or network."""
    from ui.proxies import TRUSTED, trusted

    return trusted(options.trusted_proxy or [os.environ.get(TRUSTED, "")])


def is_no_goodbye(record: logging.LogRecord) -> bool:
    """A log filter that drops the web server's complaints about streams of open pages cancelled at shutdown."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and not str(record.msg).startswith("Cancel %s running task")


def start(options: ServeOptions) -> int:
    """Serve until told to stop, logging to the terminal; the exit status. Raises `Refused` when it cannot start."""
    sys.setswitchinterval(SWITCH_S)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(is_no_goodbye)
    serve(options)
    return 0


command = serve_command(start)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m ui.app`, the same as `nightschool serve`; the exit status, 2 for a refusal."""
    return command_line.run(command, arguments, "nightschool serve")


if __name__ == "__main__":
    sys.exit(main())
