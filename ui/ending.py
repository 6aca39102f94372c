"""How the server ends: it begins no more replies, lets those being written finish, and tells the rest.

Uvicorn alone would close its sockets at the signal, cancel every request a second later and only then end the
application, whose replies would be cut in the middle of a chunk. Here they have a grace first, while everything but new
replies is answered and the health check says that the server is ending. What is left then is stopped, and ends as its
kind does: with 503, or with an error event and the stream's proper end. A second signal ends the grace.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from socket import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assistant.chat.writing import RepliesInWriting
from assistant.engine.request import Ending
from ui.refusals import refusal

# The streams that pages keep open; nobody waits for their end.
ENDLESS = re.compile(r".*/gradio_api/(heartbeat/[^/]*|queue/data)")
LOOK_EVERY_S = 0.02
TELLING_S = 1.5  # for what was stopped: recording it, and telling its reader
STREAMS_S = 0.2  # for the pages to hear of that, before their streams are cut

log = logging.getLogger(__name__)


class Requests:
    """ASGI middleware that counts the requests in progress, and answers those that the end cuts off."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or ENDLESS.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        is_begun = False

        async def sending(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        self.in_progress += 1
        try:
            await self.app(scope, receive, sending)
        except asyncio.CancelledError:
            if is_begun:
                raise
            await refusal(scope["path"], Ending())(scope, receive, send)
        finally:
            self.in_progress -= 1


class Server(uvicorn.Server):
    """The web server; at the first signal its replies get `grace_s` seconds to finish."""

    def __init__(self, app: ASGIApp, writing: RepliesInWriting, grace_s: float, **settings: object) -> None:
        self.requests = Requests(app)
        streams_s = {"timeout_graceful_shutdown": STREAMS_S}
        super().__init__(uvicorn.Config(self.requests, **streams_s, **settings))  # type: ignore[arg-type]
        self.writing = writing
        self.grace_s = grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; at the second signal, end at once."""
        if self.should_exit:
            self.force_exit = True
        self.writing.close()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Wait for what is being written, stop and tell what is left, then close."""
        self.writing.close()
        begun, until = len(self.writing.all()), time.monotonic() + self.grace_s
        await wait(lambda: self._is_quiet() or self.force_exit or time.monotonic() > until)
        cut, until = len(self.writing.stop()), time.monotonic() + TELLING_S
        await wait(lambda: self._is_quiet() or time.monotonic() > until)
        log.info(
            "the server ends: of %d replies being written, %d were finished and %d cut short, kept as far as they got",
            *(begun, begun - cut, cut),
        )
        await super().shutdown(sockets)

    def _is_quiet(self) -> bool:
        return not self.requests.in_progress and not self.writing.all()


async def wait(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    while not holds():
        await asyncio.sleep(LOOK_EVERY_S)
