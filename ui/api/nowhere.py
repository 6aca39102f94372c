"""What answers for /api and /v1 where no route does, and for the pages of other sites."""

from typing import Any

from fastapi import APIRouter
from fastapi.routing import iter_route_contexts
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.refusals import said


class Nowhere:
    """An ASGI application for every method: 405 where a route has others, 204 to ask for those, and 404 elsewhere.

    A path that ends in a slash is answered as the one without it.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, verb = scope["path"], scope["method"]
        if path.endswith("/") and len(path) > 1:
            plain = path.rstrip("/")
            await scope["app"].router({**scope, "path": plain, "raw_path": plain.encode()}, receive, send)
            return
        allowed = methods_of(scope["app"], path)
        answer: Response = said(path, 404, f"there is no {verb} {path} here; /docs lists what there is")
        if allowed:
            headers = {"Allow": ", ".join(allowed)}
            answer = said(path, 405, f"{path} takes {' and '.join(allowed)}, not {verb}", headers=headers)
            if verb == "OPTIONS":
                answer = Response(status_code=204, headers=headers)
        await answer(scope, receive, send)


def methods_of(app: Any, path: str) -> list[str]:
    """The methods that routes have at a path."""
    found: set[str] = set()
    for each in iter_route_contexts(app.routes):
        if each.methods and each.path and compile_path(each.path)[0].match(path):
            found |= each.methods
    return sorted(found)


class NoOtherOrigin(CORSMiddleware):
    """ASGI middleware: the question of another site's page, whether it may ask here, is answered with no."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, allow_origins=[])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers(scope=scope) if scope["type"] == "http" and scope["method"] == "OPTIONS" else {}
        if "origin" in asked and "access-control-request-method" in asked:
            answer = said(scope["path"], 403, "a page of another site cannot ask here")
            await answer(scope, receive, send)
            return
        await super().__call__(scope, receive, send)


router = APIRouter(include_in_schema=False)
for place in ("/api", "/v1"):
    for below in ("", "/{rest:path}"):
        router.add_route(f"{place}{below}", Nowhere())  # type: ignore[arg-type]
