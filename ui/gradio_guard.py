"""The guard of mounted Gradio pages: admits only the routes that our pages use, and events of text and numbers.

Gradio copies any file that a value of an event names into a folder that it serves, and builds any component that one
describes. Our pages send neither, so an event holding anything but plain values is refused before Gradio reads it.
Gradio's own check of paths is switched on as well: `launch` would do that, mounting does not.
"""

import json
import logging
import re
from collections import OrderedDict
from typing import Any

import gradio as gr
from starlette._utils import get_route_path
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feedback.errors import NotFound, Refused
from ui.prefix import prefix_of
from ui.refusals import FAILED, TooLarge, refusal, said

NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
JOIN, CANCEL, RESET = "/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset"
SESSION = "[A-Za-z0-9]{1,64}"
# Recorded from Chromium on every page; a test walks the pages and checks that none is missing or unused.
ROUTES = tuple(
    (method, re.compile(path))
    for method, path in (
        ("GET", "/"),
        ("GET", "/theme.css"),
        ("GET", "/favicon.ico"),
        ("GET", f"/assets/{NAME}"),
        ("GET", f"/static/(?:{NAME}/)*{NAME}"),
        ("GET", "/gradio_api/app_id"),  # asked to see whether a lost server is back
        ("GET", f"/gradio_api/heartbeat/{SESSION}"),
        ("GET", "/gradio_api/queue/data"),
        ("POST", JOIN),
        ("POST", CANCEL),
        ("POST", RESET),
    )
)
FIELDS = {
    JOIN: {"data", "event_data", "fn_index", "session_hash", "trigger_id"},
    CANCEL: {"event_id", "fn_index", "session_hash"},
    RESET: {"event_id"},  # changes nothing
}
# The keys of objects inside an event: a chat's messages, and what was clicked. "path", "component", "_type" and all
# else that makes Gradio take an object for a file or a component are left out.
MESSAGE_KEYS = {"role", "content", "text", "type", "metadata", "options", "id"}
CLICK_KEYS = {"index", "value", "liked", "selected", "name", "previous_value", "_dispatch_value"}
KEYS = MESSAGE_KEYS | CLICK_KEYS
HOLDS: dict[type, tuple[type, ...]] = {
    gr.Textbox: (str,),
    gr.Radio: (str, int, float),
    gr.Slider: (int, float),
    gr.Number: (int, float),
    gr.Checkbox: (bool,),
    gr.CheckboxGroup: (list,),
    gr.Chatbot: (list,),
}
CLICKED: dict[str, dict[str, tuple[type, ...]]] = {  # the fields that say where somebody clicked, by event
    "like": {"index": (int,), "value": (str, list), "liked": (bool, str)},
    "select": {"index": (int,), "value": (str, list)},
    "retry": {"index": (int,), "value": (str, list)},
    "edit": {"index": (int,), "value": (str, list), "previous_value": (str, list)},
}
DEEPEST = 12
LARGEST_EVENT = 4 << 20  # bytes; a page sends the whole chat with some of its events
SESSIONS = 20_000  # remembered, the least recently used forgotten first

log = logging.getLogger(__name__)


class GuardedBlocks(gr.Blocks):
    """Blocks whose errors reach the browser as one sentence and the log as one entry."""

    async def preprocess_data(self, block_fn: Any, *arguments: Any, **options: Any) -> Any:
        """The arguments of a handler. Raises `gr.Error` on values that do not fit the page's controls."""
        try:
            return await super().preprocess_data(block_fn, *arguments, **options)
        except Exception as error:
            log.info("an event of %s did not fit its controls: %s", block_fn.api_name, type(error).__name__)
            raise gr.Error("this does not fit the page; reload it", print_exception=False) from None

    async def call_function(self, block_fn: Any, *arguments: Any, **options: Any) -> Any:
        """The result of a handler. Raises `gr.Error` with a sentence for the person at the page."""
        try:
            return await super().call_function(block_fn, *arguments, **options)
        except Refused as error:
            raise gr.Error(str(error), print_exception=False) from error
        except (gr.Error, StopAsyncIteration):
            raise
        except Exception as error:
            log.exception("an event of a page failed")
            raise gr.Error(FAILED, print_exception=False) from error


class Guard:
    """ASGI middleware: the only way to a mounted page, behind `auth.Gate`."""

    def __init__(self, app: ASGIApp, blocks: gr.Blocks) -> None:
        self.app = app
        self.blocks = blocks
        self._owners: OrderedDict[str, int] = OrderedDict()  # session -> id of its person

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        path = get_route_path(scope)
        answer: Response | None = None
        if not any(method == request.method and route.fullmatch(path) for method, route in ROUTES):
            answer = said(request.url.path, 404, f"there is no {request.url.path} here")
        else:
            try:
                if request.method == "POST":
                    body, receive = await read_whole(receive)
                    self.check_event(path, request, body)
                else:
                    self.check_session(request, session_of(path, request))
            except Refused as error:
                answer = refusal(request.url.path, error)
        await (answer or self.app)(prefixed(scope, prefix_of(request)), receive, send)

    def check_event(self, path: str, request: Request, body: bytes) -> None:
        """Raises `Refused` on an event that none of our pages sends, `NotFound` in another person's session."""
        event = parsed(body)
        if not isinstance(event, dict) or not set(event) <= FIELDS[path]:
            raise Refused("this is no event of this page")
        if path == RESET:
            return
        self.check_session(request, event.get("session_hash"))
        function = self.blocks.fns.get(event["fn_index"]) if type(event.get("fn_index")) is int else None
        if function is None:
            raise Refused(f"there is no event {str(event.get('fn_index'))[:20]} on this page; reload it")
        if path == CANCEL:
            return
        data, trigger = event.get("data"), event.get("trigger_id")
        if not function.fn or not isinstance(data, list) or len(data) != len(function.inputs):
            raise Refused("this is no event of this page; reload it")
        if not (
            trigger is None or trigger == self.blocks._id or (type(trigger) is int and trigger in self.blocks.blocks)
        ):
            raise Refused(f"there is no control {str(trigger)[:20]} on this page; reload it")
        require_plain(data)
        click = event.get("event_data")
        require_plain(click)
        if not says_where(click, {name for _, name in function.targets}):
            raise Refused("this does not say what was clicked; reload the page")
        if not all(fits(value, control) for value, control in zip(data, function.inputs, strict=True)):
            raise Refused("a control of this page does not hold such a value; reload it")

    def check_session(self, request: Request, session: Any) -> None:
        """Bind a session to the first person who names it. Raises `NotFound` for others, `Refused` if malformed."""
        if session is None:
            return
        if not isinstance(session, str) or not re.fullmatch(SESSION, session):
            raise Refused("a page's session is a word of at most 64 letters and digits")
        user = request.state.user.id
        if self._owners.setdefault(session, user) != user:
            raise NotFound("there is no such session; reload the page")
        self._owners.move_to_end(session)
        if len(self._owners) > SESSIONS:
            self._owners.popitem(last=False)


def guard(blocks: gr.Blocks, app: ASGIApp) -> Guard:
    """A guard around a mounted page, with Gradio's own check of paths switched on."""
    blocks.has_launched = True
    return Guard(app, blocks)


def prefixed(scope: Scope, prefix: str) -> Scope:
    """A request as the browser sent it, with the prefix in its path: Gradio writes addresses into its pages."""
    return {**scope, "path": prefix + scope["path"], "root_path": prefix + scope.get("root_path", "")}


def session_of(path: str, request: Request) -> str | None:
    """The page's session that a request reads, if any. Raises `Refused` when it must name exactly one and does not."""
    if path.startswith("/gradio_api/heartbeat/"):
        return path.rpartition("/")[2]
    if path != "/gradio_api/queue/data":
        return None
    sessions = request.query_params.getlist("session_hash")
    if len(sessions) != 1:
        raise Refused("say which session, once")
    return sessions[0]


async def read_whole(receive: Receive) -> tuple[bytes, Receive]:
    """A request's whole body, and a `receive` that replays it. Raises `TooLarge`."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LARGEST_EVENT:
            raise TooLarge(f"an event of this page has at most {LARGEST_EVENT >> 20} MB")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    whole: list[Message] = [{"type": "http.request", "body": bytes(body)}]

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return bytes(body), again


def parsed(body: bytes) -> Any:
    """A body as JSON. Raises `Refused` on anything else."""
    try:
        return json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise Refused("the body is not JSON that can be read here") from error


def no_number(name: str) -> None:
    """Raises `ValueError` on NaN and the infinities, which JSON does not have."""
    raise ValueError(f"{name} is no number of JSON")


def fits(value: Any, control: Any) -> bool:
    """Whether a control of this type can hold a value; None stands for an empty control."""
    kinds = next((kinds for of, kinds in HOLDS.items() if isinstance(control, of)), None)
    if isinstance(control, gr.Dropdown):
        kinds = (list,) if control.multiselect else tuple({str, *(type(value) for _, value in control.choices)})
    return value is None or kinds is None or type(value) in kinds


def says_where(click: Any, events: set[str]) -> bool:
    """Whether an event says where somebody clicked, if its kind requires that."""
    wanted = [(name, kinds) for event in events & set(CLICKED) for name, kinds in CLICKED[event].items()]
    return not wanted or (isinstance(click, dict) and all(type(click.get(name)) in kinds for name, kinds in wanted))


def require_plain(value: Any) -> None:
    """Raises `Refused` on a value nested too deeply, or with keys that messages and clicks do not have."""
    waiting = [(value, 0)]
    while waiting:
        each, depth = waiting.pop()
        if depth > DEEPEST:
            raise Refused("an event of this page is not nested so deeply")
        if isinstance(each, dict):
            if unknown := next((key for key in each if key not in KEYS), None):
                raise Refused(f"an event of this page holds no files and no components, so no {unknown[:40]!r}")
            waiting.extend((inner, depth + 1) for inner in each.values())
        elif isinstance(each, list):
            waiting.extend((inner, depth + 1) for inner in each)
