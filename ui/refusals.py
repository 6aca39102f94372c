"""Refusals as HTTP responses: one clear sentence, with the status code that fits.

`/v1` answers in the shape of OpenAI's errors (`ui.openai_errors`), everything else as {"error": "one clear sentence"}.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from feedback.errors import Conflict, NotFound, Refused, TooOften, Unavailable
from ui import openai_errors
from ui.prefix import prefix_of

FAILED = "something went wrong here; the server's log says what"
HALF_CHARACTER = "a text holds half of a character (a lone surrogate); send whole ones"
SOON = {"Retry-After": "5"}  # seconds; no shorter than it takes to be started again


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


def status_of(error: Exception) -> int:
    """The HTTP status of a refusal."""
    from assistant.engine.request import Busy, Ending, EngineError  # heavy, and loaded long before the first request

    statuses = {
        NotLoggedIn: 401,
        Forbidden: 403,
        NotFound: 404,
        Conflict: 409,
        TooLarge: 413,
        TooMany: 429,
        TooOften: 429,
        Ending: 503,
        Busy: 429,
        Unavailable: 503,
        EngineError: 503,
        Refused: 400,
    }
    return next(status for kind, status in statuses.items() if isinstance(error, kind))


def refusal(path: str, error: Exception) -> JSONResponse:
    """A refusal as the JSON response to a request for a path."""
    answer = said(path, status_of(error), str(error), openai_errors.code_of(error), openai_errors.param_of(error))
    if isinstance(error, TooOften):
        answer.headers["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, TooMany):
        answer.headers["Retry-After"] = retry_after(error)
    elif isinstance(error, Conflict):
        answer.headers["X-Should-Retry"] = "false"  # OpenAI's clients would ask again, for the same answer
    return answer


def retry_after(error: TooMany) -> str:
    """The value of a Retry-After header, in whole seconds."""
    return str(math.ceil(error.wait_s))


@cache
def template(name: str) -> jinja2.Template:
    """A page's template; everything put into it is escaped."""
    folder = Path(__file__).parent / "templates"
    return jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True).get_template(name)


def refusal_page(request: Request, error: Exception) -> Response:
    """A refusal as an HTML page, for a person who opened a page."""
    facts = {"sentence": str(error), "where": request.url.path, "prefix": prefix_of(request)}
    return HTMLResponse(template("refused.html").render(facts), status_of(error))


def said(
    path: str,
    status: int,
    sentence: str,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A sentence as a JSON error response, in the shape that clients of the path expect."""
    more = {401: {"WWW-Authenticate": "Bearer"}, 429: SOON, 503: SOON}.get(status, {}) | dict(headers or {})
    if not openai_errors.is_for(path):
        return JSONResponse({"error": sentence}, status, more)
    status = openai_errors.STATUSES.get(status, status)
    return JSONResponse(openai_errors.body(status, sentence, code, param), status, more)


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


def wrong_encoding(request: Request) -> str | None:
    """What keeps a request's body from being read as JSON according to its headers, in a sentence; None for nothing."""
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        return f"the body is compressed (Content-Encoding: {coding[:40]}); send it as it is"
    kind = request.headers.get("content-type", "")
    plain = kind.partition(";")[0].strip().lower()
    if plain == "application/json" or (plain.startswith("application/") and plain.endswith("+json")):
        return None
    told = f"with Content-Type: {kind[:80]}" if kind else "without a Content-Type"
    return f"the body is read as JSON, and this came {told}; send the header Content-Type: application/json"


def unreadable(request: Request, cause: BaseException | None) -> str:
    """Why a body could not be read, in a sentence."""
    if wrong := wrong_encoding(request):
        return wrong
    if isinstance(cause, UnicodeError):
        return "the body is not UTF-8"
    if isinstance(cause, RecursionError):
        return "the body is JSON nested too deeply to be read"
    return "the body cannot be read as JSON"


def on_malformed(request: Request, error: Exception) -> Response:
    """The response to a body, or a parameter, that does not fit its route."""
    assert isinstance(error, RequestValidationError)
    first, path = error.errors()[0], request.url.path
    is_about_all = first["type"] == "json_invalid" or (first["loc"] == ("body",) and first["type"] != "missing")
    if is_about_all and (wrong := wrong_encoding(request)):
        return said(path, 400, wrong, openai_errors.UNREADABLE)
    return said(path, *sentence_of(error.errors()), *openai_errors.named(first))


def on_http(request: Request, error: Exception) -> Response:
    """The response to an error of the frameworks', among them a body that could not be read."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, Refused):  # of the gate, while the body was read
        return refusal(request.url.path, error.__cause__)
    if error.__cause__ is not None:
        return said(request.url.path, 400, unreadable(request, error.__cause__), openai_errors.UNREADABLE)
    return said(request.url.path, error.status_code, str(error.detail), headers=error.headers)


def add_handlers(app: FastAPI) -> None:
    """Register a handler for every error that leaves a route."""

    def on_refused(request: Request, error: Exception) -> Response:
        return refusal(request.url.path, error)

    def on_half_character(request: Request, error: Exception) -> Response:
        return said(request.url.path, 400, HALF_CHARACTER)

    def on_failure(request: Request, error: Exception) -> Response:
        return said(request.url.path, 500, FAILED)  # the trace is logged by the server, which gets the error too

    from assistant.engine.request import EngineError

    app.add_exception_handler(Refused, on_refused)
    app.add_exception_handler(EngineError, on_refused)
    app.add_exception_handler(RequestValidationError, on_malformed)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(UnicodeEncodeError, on_half_character)  # the database's; its transaction is rolled back
    app.add_exception_handler(Exception, on_failure)
