"""Refusals as HTTP responses: one clear sentence, with the status code that fits.

`/v1` answers in the shape of OpenAI's errors, everything else as {"error": "one clear sentence"}.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from feedback.errors import Conflict, NotFound, Refused, TooOften, Unavailable

FAILED = "something went wrong here; the server's log says what"
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

router = APIRouter(include_in_schema=False)


class NotLoggedIn(Refused):
    """It is not known who sent the request."""


class Forbidden(Refused):
    """The sender is known, but not allowed to do this."""


class TooMany(Refused):
    """Too many requests; the message says when to try again."""

    def __init__(self, words: str, wait_s: float = 5) -> None:
        super().__init__(words)
        self.wait_s = wait_s


class TooLarge(Refused):
    """The request is larger than the limit."""


class Unknown(NotFound):
    """No model has that name; the response has the code that OpenAI's clients expect."""


def status_of(error: Exception) -> int:
    """The HTTP status of a refusal."""
    from assistant.engine.request import Busy, EngineError  # heavy, and loaded long before the first request

    statuses = {
        NotLoggedIn: 401,
        Forbidden: 403,
        NotFound: 404,
        Conflict: 409,
        TooLarge: 413,
        TooMany: 429,
        TooOften: 429,
        Busy: 429,
        Unavailable: 503,
        EngineError: 503,
        Refused: 400,
    }
    return next(status for kind, status in statuses.items() if isinstance(error, kind))


def refusal(path: str, error: Exception) -> JSONResponse:
    """A refusal as the JSON response to a request for a path."""
    code = "model_not_found" if isinstance(error, Unknown) else None
    answer = said(path, status_of(error), str(error), code)
    if isinstance(error, TooOften):
        answer.headers["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, TooMany):
        answer.headers["Retry-After"] = retry_after(error)
    return answer


def retry_after(error: TooMany) -> str:
    """The value of a Retry-After header, in whole seconds."""
    return str(math.ceil(error.wait_s))


@cache
def template(name: str) -> jinja2.Template:
    """A page's template; everything put into it is escaped."""
    folder = Path(__file__).parent / "templates"
    return jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True).get_template(name)


def refusal_page(path: str, error: Exception) -> Response:
    """A refusal as an HTML page, for a person who opened a page."""
    return HTMLResponse(template("refused.html").render(sentence=str(error), where=path), status_of(error))


def said(path: str, status: int, sentence: str, code: str | None = None) -> JSONResponse:
    """A sentence as a JSON error response, in the shape that clients of the path expect."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "5"}}.get(status)
    if not path.startswith("/v1/"):
        return JSONResponse({"error": sentence}, status, headers)
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return JSONResponse({"error": {"message": sentence, "type": kind, "param": None, "code": code}}, status, headers)


def sentence_of(errors: Sequence[Any]) -> tuple[int, str]:
    """The status and the sentence for the first of pydantic's validation errors."""
    first = errors[0]
    where = ".".join(str(each) for each in first["loc"][1:]) or "the body"
    if first["loc"][0] == "header":
        return 400, f"send an {where} header"
    match first["type"]:
        case "missing":
            return 422, f"{where} is missing"
        case "extra_forbidden":
            return 422, f"there is no field {where}"
        case "too_long" if first["ctx"].get("field_type") == "List":
            return 400, f"{where} has at most {first['ctx']['max_length']:,} entries, this one has more"
        case "json_invalid":
            return 422, f"the body is not JSON ({first.get('ctx', {}).get('error', 'unreadable')})"
    message = str(first["msg"])
    return 422, f"{where}: {message[:1].lower()}{message[1:]}"


@router.api_route("/api/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
@router.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def nowhere(request: Request) -> Response:
    """Answer 404 for what no other route answers; must be included last."""
    return said(
        request.url.path, 404, f"there is no {request.method} {request.url.path} here; /docs lists what there is"
    )


def add_handlers(app: FastAPI) -> None:
    """Register a handler for every error that leaves a route."""

    def on_refused(request: Request, error: Exception) -> Response:
        return refusal(request.url.path, error)

    def on_malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return said(request.url.path, *sentence_of(error.errors()))

    def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return said(request.url.path, error.status_code, str(error.detail))

    def on_half_character(request: Request, error: Exception) -> Response:
        return said(request.url.path, 400, "a text holds half of a character (a lone surrogate); send whole ones")

    def on_failure(request: Request, error: Exception) -> Response:
        return said(request.url.path, 500, FAILED)  # the trace is logged by the server, which gets the error too

    from assistant.engine.request import EngineError

    app.add_exception_handler(Refused, on_refused)
    app.add_exception_handler(EngineError, on_refused)
    app.add_exception_handler(RequestValidationError, on_malformed)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(UnicodeEncodeError, on_half_character)  # the database's; its transaction is rolled back
    app.add_exception_handler(Exception, on_failure)
