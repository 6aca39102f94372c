"""Trusted proxies in front of the server, and their forwarding headers.

The X-Forwarded headers of a client not named by `--trusted-proxy` are removed before the gate, the sessions or Gradio
can read them.
"""

import ipaddress
import logging
import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from feedback.errors import Refused

TRUSTED = "NIGHTSCHOOL_TRUSTED_PROXY"
HOST = re.compile(rb"[A-Za-z0-9._\-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")

log = logging.getLogger(__name__)


def trusted(named: Sequence[str]) -> list[str]:
    """Addresses and networks; each text holds one or several, separated by commas.

    Raises `Refused` on anything else, and on a network that holds every address.
    """
    found = []
    for each in (part.strip() for text in named for part in text.split(",") if part.strip()):
        try:
            network = ipaddress.ip_network(each, strict=False)
        except ValueError as error:
            raise Refused(
                f"--trusted-proxy takes an address or a network, as in 10.0.0.2 or 10.0.0.0/24, not {each!r}"
            ) from error
        if network.prefixlen == 0:
            raise Refused(f"--trusted-proxy {each} would believe everybody; name the proxy's own address or network")
        found.append(str(network) if "/" in each else each)
    return found


class Forwarded:
    """ASGI middleware: applies the forwarding headers of the named proxies, and removes those of all other clients."""

    def __init__(self, app: ASGIApp, proxies: Sequence[str] = ()) -> None:
        self.app = app
        self._proxied = ProxyHeadersMiddleware(self._with_host, list(proxies))  # type: ignore[arg-type]
        self._is_told = bool(proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if scope.get("client"):
            scope["client"] = (plain(scope["client"][0]), scope["client"][1])
        peer = scope["client"][0] if scope.get("client") else None
        if peer in self._proxied.trusted_hosts:
            await self._proxied(scope, receive, send)  # type: ignore[arg-type]
            return
        kept = [each for each in scope["headers"] if not is_claim(each[0])]
        if len(kept) < len(scope["headers"]) and not self._is_told:
            self._is_told = True
            log.warning("X-Forwarded headers of %s are not believed; a proxy is named by --trusted-proxy", peer)
        scope["headers"] = kept
        await self.app(scope, receive, send)

    async def _with_host(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take the host from X-Forwarded-Host; of several, the one that the nearest proxy saw."""
        told = [value for name, value in scope["headers"] if name == b"x-forwarded-host"]
        host = told[-1].split(b",")[-1].strip() if told else b""
        if host and HOST.fullmatch(host):
            others = [each for each in scope["headers"] if each[0] not in (b"host", b"x-forwarded-host")]
            scope["headers"] = [*others, (b"host", host), (b"x-forwarded-host", host)]
        scope["client"] = (plain(scope["client"][0]), scope["client"][1])
        await self.app(scope, receive, send)


def is_claim(header: bytes) -> bool:
    """Whether a header describes how a request reached a proxy."""
    return header.startswith(b"x-forwarded-") or header in (b"forwarded", b"x-real-ip")


def plain(address: str) -> str:
    """An address without the `::ffff:` that IPv4 addresses get on an IPv6 socket."""
    return address.removeprefix("::ffff:") if "." in address else address
