"""The prefix under which a proxy serves us, such as /ns, and paths with it and without.

`ui.proxies` takes it off every request's path, so what answers is the same under any prefix; what sends a browser
somewhere writes it before the path again.
"""

import re
from typing import AnyStr

from starlette.requests import HTTPConnection

from feedback.errors import Refused

PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")


def prefix_of(request: HTTPConnection) -> str:
    """The prefix under which the sender of a request sees our paths; empty at the root of a host."""
    return str(request.scope.get("prefix", ""))


def without(prefix: AnyStr, path: AnyStr) -> AnyStr:
    """A path without the prefix, if it has it."""
    is_below = prefix and path.startswith(prefix) and path[len(prefix) :][:1] in ("/", b"/")
    return path[len(prefix) :] if is_below else path


def root_path(named: str) -> str:
    """The prefix that `--root-path` names. Raises `Refused` on what is no path."""
    prefix = named.rstrip("/")
    if prefix and not PREFIX.fullmatch(prefix):
        raise Refused(f"--root-path takes the path at which a proxy serves Nightschool, as in /ns, not {named!r}")
    return prefix
