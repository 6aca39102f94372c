"""Trusted proxies in front of the server, their forwarding headers, and the prefix of the paths at which they serve it.

The X-Forwarded headers of a client not named by `--trusted-proxy` are removed before the gate, the sessions or Gradio
can read them. Behind this middleware a request's path has no prefix: what answers it is the same under any prefix, and
what sends the browser somewhere writes `prefix_of` before the path.
"""

import ipaddress
import logging
import re
from collections.abc import Sequence

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from feedback.errors import Refused
from ui.prefix import PREFIX, without

TRUSTED = "NIGHTSCHOOL_TRUSTED_PROXY"
# Headers by which a proxy says what it was asked, and by whom. Browsers and programs send none of them.
CLAIMS = {
    *(b"forwarded", b"via", b"cdn-loop", b"front-end-https", b"x-forwarded", b"x-real-ip", b"x-original-host"),
    *(b"x-original-forwarded-for", b"x-client-ip", b"x-cluster-client-ip", b"x-envoy-external-address"),
    *(b"true-client-ip", b"cf-connecting-ip", b"fastly-client-ip", b"x-azure-clientip", b"x-appengine-user-ip"),
}
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
    """ASGI middleware: applies the forwarding headers of the named proxies, and removes those of all other clients.

    `prefix` is where proxies serve this server, unless a named one says otherwise; they may pass it on or strip it.
    """

    def __init__(self, app: ASGIApp, proxies: Sequence[str] = (), prefix: str = "") -> None:
        self.app = app
        self.prefix = prefix
        self._proxied = ProxyHeadersMiddleware(self._believe, list(proxies))  # type: ignore[arg-type]
        self._is_told = bool(proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if scope.get("client"):
            scope["client"] = (plain(scope["client"][0]), scope["client"][1])
        peer = scope["client"][0] if scope.get("client") else None
        kept = [each for each in scope["headers"] if not is_claim(each[0])]
        scope["proxied"] = len(kept) < len(scope["headers"])
        if peer in self._proxied.trusted_hosts:
            await self._proxied(scope, receive, send)  # type: ignore[arg-type]
            return
        if scope["proxied"] and not self._is_told:
            self._is_told = True
            log.warning("X-Forwarded headers of %s are not believed; a proxy is named by --trusted-proxy", peer)
        scope["headers"] = kept
        await self._pass(scope, receive, send, self.prefix)

    async def _believe(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take the host and the prefix from their headers; of several, what the nearest proxy saw."""
        host, prefix = (last(scope, name) for name in (b"x-forwarded-host", b"x-forwarded-prefix"))
        if HOST.fullmatch(host):
            others = [each for each in scope["headers"] if each[0] not in (b"host", b"x-forwarded-host")]
            scope["headers"] = [*others, (b"host", host), (b"x-forwarded-host", host)]
        scope["client"] = (plain(scope["client"][0]), scope["client"][1])
        told = prefix.decode("latin-1").rstrip("/")
        await self._pass(scope, receive, send, told if PREFIX.fullmatch(told) else self.prefix)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, prefix: str) -> None:
        """Pass a request on without the prefix in its path."""
        scope["prefix"] = prefix
        if prefix and scope["type"] == "http" and scope["path"] == prefix:  # links on a page begin at its last slash
            away = RedirectResponse(f"{prefix}/", 308, {"Cache-Control": "no-store"})
            await away(scope, receive, send)
            return
        scope["path"] = without(prefix, scope["path"])
        if "raw_path" in scope:
            scope["raw_path"] = without(prefix.encode(), scope["raw_path"])
        await self.app(scope, receive, send)


def last(scope: Scope, header: bytes) -> bytes:
    """The last value of a header that may come several times or hold several."""
    told = [value for name, value in scope["headers"] if name == header]
    return told[-1].split(b",")[-1].strip() if told else b""


def is_claim(header: bytes) -> bool:
    """Whether a header describes how a request reached a proxy."""
    return header.startswith(b"x-forwarded-") or header in CLAIMS


def plain(address: str) -> str:
    """An address without the `::ffff:` that IPv4 addresses get on an IPv6 socket."""
    return address.removeprefix("::ffff:") if "." in address else address
