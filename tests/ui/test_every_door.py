"""Every route and every event of every page, tried as everybody: refused or served rightly, and no file in any answer.

What there is comes from the running application, so that a new route or event is tried without being named here.
"""

import itertools
import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from gradio.routes import App as GradioApp

from assistant.chat.assistant import Assistant
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.records import nights
from tests.conftest import two_replies
from tests.helpers.over_http import HERE, key, loaded, with_store
from ui.accounts import auth, patience
from ui.app import create_app
from ui.gradio_guard import CLICKED
from ui.refusals import FAILED

__all__ = ["loaded"]  # fixture
pytestmark = pytest.mark.long
ROLES = {"nobody": None, "chatter": "chatter", "other": "chatter", "rater": "rater", "operator": "operator"}
PEOPLE = [name for name, role in ROLES.items() if role]
FILE_SECRET = "what only the server's own files hold"
WORDS = {  # what a field must hold to mean anything
    "choice": "left",
    "label": "unsafe",
    "kind": "copied",
    "role": "user",
    "cron": "0 3 * * *",
    "time_zone": "UTC",
    "adapter": "no-such-adapter",
    "instead_of": "no-such-adapter",
    "method": "no-such-method",
    "model": "nightschool",
    "grace_minutes": 60,
    "max_tokens": 2,
    "max_completion_tokens": 2,
    "n": 1,
}


@dataclass(frozen=True)
class Chat:
    """One person's conversation."""

    conversation: str
    message: str
    left: str
    right: str

    def named(self, name: str) -> str | None:
        """The id that a parameter or field of that name wants, if it is one."""
        names = {"conversation": self.conversation, "message": self.message, "parent": self.message}
        names |= dict.fromkeys(("reply", "left", "replies", "left_reply"), self.left)
        return (names | dict.fromkeys(("right", "right_reply"), self.right)).get(name)


@dataclass
class House:
    """A server with people in it, each with a chat whose text only they may see."""

    web: TestClient
    store: Database
    users: dict[str, User]
    chats: dict[str, Chat]
    headers: dict[str, dict[str, str]]
    file: Path

    def foreign(self, person: str) -> Chat:
        """Somebody else's chat."""
        return self.chats["other" if person != "other" else "chatter"]

    def ledger(self) -> dict[str, list[Any]]:
        """All that is kept, when nothing of the last request goes on."""
        self.end_nights()
        names = self.store.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return {each["name"]: self.store.rows(f"SELECT * FROM {each['name']}") for each in names}

    def end_nights(self) -> None:
        """End the nights that an operator has begun: what they write is nobody's request."""
        for row in self.store.rows("SELECT id, pid FROM nights WHERE state = ?", nights.RUNNING):
            with suppress(psutil.NoSuchProcess):
                night = psutil.Process(row["pid"])
                night.kill()
                night.wait(10)
            nights.end_night(self.store, row["id"], "cancelled", "as the test wants")

    def leaked(self, person: str, text: str) -> list[str]:
        """Whose secrets stand in an answer to a person."""
        strangers = [name for name in PEOPLE if name != person and f"secret of {name} " in text]
        return strangers + (["the server's file"] if FILE_SECRET in text else [])


@pytest.fixture(scope="module")
def house(loaded: Assistant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    store = Database(tmp_path_factory.mktemp("house") / "data")
    file = tmp_path_factory.mktemp("elsewhere") / "private.txt"
    file.write_text(FILE_SECRET)
    known, chats, headers = {}, {}, {"nobody": {}}
    for name, role in ROLES.items():
        if role:
            known[name] = users.add_user(store, name, role, "a hash that no password has")
            headers[name] = {"Authorization": f"Bearer {users.add_token(store, known[name], 'test')}"}
            message, left, right = two_replies(store, known[name], f"the secret of {name} is 4711")
            row = store.row("SELECT conversation FROM messages WHERE id = ?", message)
            chats[name] = Chat((row or {})["conversation"], message, left, right)
    with (
        pytest.MonkeyPatch.context() as patch,
        TestClient(create_app(with_store(loaded, store)), base_url=HERE, raise_server_exceptions=False) as web,
    ):
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setattr(patience, "REFUSALS", 60_000)  # what is refused here would be answered at a pace otherwise
        web.follow_redirects = False
        yield House(web, store, known, chats, headers, file)
    store.close()


def files(path: Path) -> Iterator[Any]:
    """A file as Gradio's clients name one: flat, nested, without its mark, and as a component that would read it."""
    flat = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    yield flat
    yield [{"role": "user", "content": [{"type": "file", "file": flat}]}]
    yield {"text": "hi", "files": [flat]}
    yield {"value": {"value": [[flat]]}}
    yield {"path": str(path)}
    yield [{"role": "user", "content": [{"component": "file", "value": {"path": str(path)}, "constructor_args": {}}]}]
    yield flat | {"path": "/dev/zero", "url": "http://127.0.0.1:1/", "is_stream": True}


# Routes


@dataclass(frozen=True)
class Route:
    """One method of one route of ours."""

    method: str
    path: str
    operators: bool
    body: dict[str, Any] | None  # its JSON schema


def routes(app: Any) -> list[Route]:
    """All routes of ours."""
    schema = app.openapi()
    found = []
    for each in iter_route_contexts(app.routes):
        for method in sorted(each.methods or ()):
            said = schema["paths"].get(each.path, {}).get(method.lower(), {})
            content = said.get("requestBody", {}).get("content", {}).get("application/json", {})
            found.append(Route(method, each.path, asks_operator(each), content.get("schema")))
    return [each for each in found if not each.path.startswith("/{")]


def asks_operator(route: Any) -> bool:
    """Whether a route depends on its caller being an operator."""
    waiting = [getattr(route, "dependant", None)]
    while waiting:
        each = waiting.pop()
        if each is not None:
            if each.call is auth.operator:
                return True
            waiting.extend(each.dependencies)
    return False


def filled(schema: dict[str, Any], whole: dict[str, Any], name: str, chats: Iterator[Chat]) -> Any:
    """Something that a schema allows; each id that it wants is of the next chat."""
    if "$ref" in schema:
        return filled(whole["components"]["schemas"][schema["$ref"].rpartition("/")[2]], whole, name, chats)
    if "anyOf" in schema:
        return filled(schema["anyOf"][0], whole, name, chats)
    if schema.get("type") == "object" or "properties" in schema:
        wanted = set(schema.get("required", ())) | set(WORDS) & {"max_tokens"} & set(schema.get("properties", ()))
        return {each: filled(schema["properties"][each], whole, each, chats) for each in sorted(wanted)}
    if schema.get("type") == "array":
        if name == "ranks":
            return [1, 2]
        return [filled(schema["items"], whole, name, chats) for _ in range(1 if name == "messages" else 2)]
    if schema.get("type") == "string" and Chat("c", "c", "c", "c").named(name):
        return next(chats).named(name)
    if name in WORDS:
        return WORDS[name]
    if "enum" in schema:
        return schema["enum"][0]
    return {"integer": 1, "number": 0.5, "boolean": True}.get(str(schema.get("type")), "some words")


def leaves(body: Any, file: Any) -> Iterator[Any]:
    """A body with each of its values in turn replaced by a file, and the file alone."""
    yield file
    if isinstance(body, dict):
        for name, value in body.items():
            yield from ({**body, name: each} for each in leaves(value, file))
    elif isinstance(body, list) and body:
        yield from ([each, *body[1:]] for each in leaves(body[0], file))


def asked(house: House, person: str, route: Route, chats: list[Chat], body: Any = None) -> tuple[Any, set[Chat]]:
    """The answer to a request of a person, its ids of those chats in turn; and of which chats it named something."""
    named: set[Chat] = set()

    def each_noted() -> Iterator[Chat]:
        for each in itertools.cycle(chats):
            named.add(each)
            yield each

    path, turn = route.path, each_noted()
    for name in [each.partition("}")[0] for each in path.split("{")[1:]]:
        named |= {chats[-1]} if chats[-1].named(name) else set()
        path = path.replace(f"{{{name}}}", chats[-1].named(name) or "1")
    if body is None and route.body:
        body = filled(route.body, house.web.app.openapi(), "", turn)  # type: ignore[attr-defined]
    return house.web.request(route.method, path, json=body, headers=house.headers[person] | key()), named


def test_the_list_of_routes_is_that_of_the_running_application(house: House) -> None:
    known = {each.path for each in routes(house.web.app)}
    assert known >= {"/api/votes", "/api/settings", "/v1/chat/completions", "/login", "/logout", "/metrics", "/healthz"}
    assert {each.path for each in routes(house.web.app) if each.operators} >= {"/api/nights", "/api/settings"}


@pytest.mark.parametrize("person", ROLES)
def test_every_route_is_for_whom_it_is_for_and_shows_nothing_of_others(house: House, person: str) -> None:
    strangers, before = 0, house.ledger()
    for route in routes(house.web.app):
        mine = house.chats.get(person, house.chats["chatter"])
        for chats in ([mine], [house.foreign(person)], [mine, house.foreign(person)]):
            answer, named = asked(house, person, route, chats)
            what = (person, route.method, route.path, chats != [mine], answer.status_code, answer.text[:300])
            assert answer.status_code < 500, what
            assert not house.leaked(person, answer.text), what
            assert "no-store" in answer.headers["cache-control"].split(", "), what
            if person == "nobody":
                assert route.path in auth.OPEN or answer.status_code in (401, 403, 405), what
            elif route.operators and person != "operator":
                assert answer.status_code == 403, what
            elif house.foreign(person) in named:
                assert answer.status_code in (400, 404), what
                strangers += 1
            after = house.ledger()
            if answer.status_code >= 400:
                assert changed(before, after) == [], what
            before = after
    assert strangers >= 15 or person == "nobody"


def test_an_odd_id_is_refused_and_never_a_failure(house: House) -> None:
    tried = 0
    for route in routes(house.web.app):
        for odd in (
            "9" * 40,
            "-1",
            "%00",
            "%F0%9F%8E%93",
            "x" * 5000,
            "..%2F..%2Fetc%2Fpasswd",
            "'; DROP TABLE votes; --",
        ):
            if "{" in route.path:
                path = re.sub("{[^}]*}", odd, route.path)
                answer = house.web.request(route.method, path, json={}, headers=house.headers["operator"] | key())
                assert 400 <= answer.status_code < 500, (route.method, path, answer.status_code, answer.text)
                tried += 1
    assert tried > 30


def changed(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> list[str]:
    """Which tables are not as they were, but for those that say who is there."""
    return [name for name in after if before.get(name) != after[name] and name not in ("sessions",)]


@pytest.mark.parametrize("person", ["chatter", "operator"])
def test_no_route_takes_a_file_for_a_value(house: House, person: str) -> None:
    tried = 0
    for route in routes(house.web.app):
        if route.body and not (route.operators and person != "operator"):
            mine = house.chats[person]
            whole = filled(route.body, house.web.app.openapi(), "", itertools.cycle([mine]))  # type: ignore[attr-defined]
            before = house.ledger()
            for body in leaves(whole, next(files(house.file))):
                answer, _ = asked(house, person, route, [mine], body)
                what = (route.method, route.path, body, answer.status_code, answer.text[:300])
                assert 400 <= answer.status_code < 500, what
                assert not house.leaked(person, answer.text), what
                tried += 1
            assert changed(before, house.ledger()) == [], route
    assert tried >= 30
    assert copies() == []


# Events of pages


def pages(app: Any) -> list[tuple[str, Any]]:
    """Each mounted page: where, and its blocks."""
    return [(each.path, each.app.blocks) for each in app.routes if hasattr(getattr(each, "app", None), "blocks")]


def copies() -> list[Path]:
    """What Gradio has put into the folder that it serves."""
    from gradio.utils import get_upload_folder

    return [each for each in Path(get_upload_folder()).rglob("*") if each.is_file()]


def shown(chat: Chat) -> list[dict[str, Any]]:
    """A chat as the page sends it."""

    def message(role: str, id: str) -> dict[str, Any]:
        return {"role": role, "metadata": {"id": id}, "content": [{"type": "text", "text": "x"}], "options": None}

    return [message("user", chat.message), message("assistant", chat.left)]


def inputs_of(place: str, function: Any, chats: Iterator[Chat]) -> list[Any]:
    """A value for each control that an event reads; each id is of the next chat."""
    values: list[Any] = []
    hidden = iter(("conversation", "left"))
    for each in function.inputs:
        match type(each).__name__:
            case "Chatbot":
                values.append(shown(next(chats)))
            case "Textbox" if each.elem_id is None:
                values.append("1" if place else next(chats).named(next(hidden)))
            case "Dropdown" if each.elem_id == "method":
                values.append("no-such-method")  # a night would be a process that goes on beside the test
            case "Slider":
                values.append(2 if each.elem_id == "max-tokens" else each.value)
            case "CheckboxGroup":
                values.append([])
            case "Checkbox":
                values.append(False)
            case "Textbox":
                values.append("" if each.elem_id in ("seed", "cron", "every-new") else "60")
            case _:
                values.append(each.value)
    return values


def event(house: House, person: str, place: str, function: Any, data: Any, click: Any = None) -> tuple[int, str]:
    """What becomes of an event: the status it was taken with, and all that was said in answer."""
    session = secrets.token_hex(6)
    body = {"data": data, "event_data": click, "fn_index": function._id, "session_hash": session, "trigger_id": None}
    body["trigger_id"] = next((each for each, _ in function.targets if each is not None), None)
    where, headers = f"{place}/gradio_api/queue", house.headers[person]
    joined = house.web.post(f"{where}/join", json=body, headers=headers)
    if joined.status_code != 200:
        return joined.status_code, joined.text
    heard = house.web.get(f"{where}/data?session_hash={session}", headers=headers)
    return 200, heard.text


def events(house: House) -> list[tuple[str, Any]]:
    """Every event that the server has a handler for; of those with the same handler and inputs the first."""
    found: dict[Any, tuple[str, Any]] = {}
    for place, blocks in pages(house.web.app):
        for each in blocks.fns.values():
            if each.fn:
                found.setdefault((place, each.fn, *(control._id for control in each.inputs)), (place, each))
    return list(found.values())


def click_on(chat: Chat) -> dict[str, Any]:
    return {"index": 1, "value": chat.conversation, "liked": True, "previous_value": "x"}


def test_the_list_of_events_is_that_of_the_running_pages(house: House) -> None:
    assert len(events(house)) > 30
    assert {place for place, _ in events(house)} == {"", "/operate"}


@pytest.mark.parametrize("person", ROLES)
def test_every_event_is_for_whom_it_is_for_and_touches_nothing_of_others(house: House, person: str) -> None:
    before = house.ledger()
    for place, function in events(house):
        mine = house.chats.get(person, house.chats["chatter"])
        theirs = house.foreign(person)
        for chats in ([mine], [theirs], [mine, theirs]):
            data = inputs_of(place, function, itertools.cycle(chats))
            status, said = event(house, person, place, function, data, click_on(chats[-1]))
            what = (person, place, function.name, chats != [mine], status, said[-600:])
            assert not house.leaked(person, said), what
            assert FAILED not in said, what
            if person == "nobody":
                assert status == 401, what
            elif place and person != "operator":
                assert status == 403, what
            else:
                assert (status, '"success":true' in said) == (200, function.name != "run_now"), what
                until_written()
            after = house.ledger()
            if status != 200:
                assert changed(before, after) == [], what
            assert of_others(house, person, before) == of_others(house, person, after), what
            before = after


def until_written() -> None:
    """Wait for the replies that pages have begun."""
    for thread in threading.enumerate():
        if thread.name.startswith("turn-"):
            thread.join(10)


def of_others(house: House, person: str, ledger: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What is kept of everybody else's chats, and what was said of them."""
    about = {
        each
        for name, chat in house.chats.items()
        if name != person
        for each in (chat.conversation, chat.message, chat.left, chat.right)
    }
    return {
        name: [row for row in rows if about & {each for each in row.values() if isinstance(each, str)}]
        for name, rows in ledger.items()
    }


@pytest.mark.parametrize("person", PEOPLE)
def test_no_event_takes_a_file_for_a_value(house: House, person: str) -> None:
    before = house.ledger()
    for place, function in events(house):
        if place and person != "operator":
            continue
        whole = inputs_of(place, function, itertools.cycle([house.chats[person]]))
        tried = [(whole, file) for file in files(house.file)]
        for index in range(len(whole)):
            tried += [([*whole[:index], file, *whole[index + 1 :]], None) for file in files(house.file)]
        for data, click in tried:
            session = secrets.token_hex(6)
            body = {"data": data, "event_data": click, "fn_index": function._id, "session_hash": session}
            answer = house.web.post(f"{place}/gradio_api/queue/join", json=body, headers=house.headers[person])
            assert answer.status_code == 400, (place, function.name, data, click, answer.text)
            assert not house.leaked(person, answer.text)
    assert changed(before, house.ledger()) == []
    assert copies() == []


def test_what_no_page_sends_is_refused_in_one_sentence(house: House, capfd: pytest.CaptureFixture[str]) -> None:
    join, headers = "/gradio_api/queue/join", house.headers["chatter"]
    send = next(each for place, each in events(house) if not place and each.name == "send")
    data = inputs_of("", send, itertools.cycle([house.chats["chatter"]]))
    good = {"data": data, "event_data": None, "fn_index": send._id, "session_hash": "abc", "trigger_id": None}
    mine = house.chats["chatter"]
    clicked = [each for place, each in events(house) if not place and {name for _, name in each.targets} & set(CLICKED)]
    odd = (None, [], {}, {"index": 1}, click_on(mine) | {"index": "1"}, click_on(mine) | {"index": True})
    clicks = [(each, click) for each in clicked for click in odd]
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    for wrong in (
        {"fn_index": 600},
        {"fn_index": "5"},
        {"fn_index": True},
        {"fn_index": -1},
        {"fn_index": None},
        {"fn_index": 0},  # has no handler
        {"trigger_id": 9999},
        {"trigger_id": "x"},
        {"data": []},
        {"data": None},
        {"data": {"0": "x"}},
        {"data": [deep, *data[1:]]},
        {"event_data": {"target": 1}},
        *(
            {"fn_index": each._id, "data": inputs_of("", each, itertools.cycle([mine])), "event_data": click}
            for each, click in clicks
        ),
        {"session_hash": "a/b"},
        {"session_hash": 5},
        {"simple_format": True},
        {"batched": True},
        {"oauth_token": "x"},
    ):
        answer = house.web.post(join, content=json.dumps(good | wrong), headers=headers | JSON)
        assert (wrong, answer.status_code, list(answer.json())) == (wrong, 400, ["error"])
        assert "\n" not in answer.json()["error"]
    for content in (
        b"",
        b"[]",
        json.dumps(good | {"data": [float("nan"), *data[1:]]}).encode(),
        b"null",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
    ):
        assert house.web.post(join, content=content, headers=headers | JSON).status_code == 400
    assert "Traceback" not in "".join(capfd.readouterr())


JSON = {"Content-Type": "application/json"}


def test_values_that_do_not_fit_a_control_are_one_sentence_without_a_traceback(
    house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    for place, function in events(house):
        whole = inputs_of(place, function, itertools.cycle([house.chats["operator"]]))
        for index, odd in itertools.product(range(len(whole)), ([1, [2]], {"text": 5}, 10**400, "x" * 1000)):
            if isinstance(odd, str) and type(function.inputs[index]).__name__ == "Textbox":
                continue
            data = [*whole[:index], odd, *whole[index + 1 :]]
            _, said = event(house, "operator", place, function, data, click_on(house.chats["operator"]))
            for word in ("pydantic", "validation error", "site-packages", str(Path.home()), "Traceback", FAILED):
                assert word not in said, (place, function.name, index, odd, said[-500:])
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_pages_session_is_of_whoever_opened_it(house: House) -> None:
    send = next(each for place, each in events(house) if not place and each.name == "open")
    session = secrets.token_hex(6)
    body = {"data": [""], "event_data": None, "fn_index": send._id, "session_hash": session, "trigger_id": None}
    assert house.web.post("/gradio_api/queue/join", json=body, headers=house.headers["other"]).status_code == 200
    listening = house.headers["chatter"]
    assert house.web.get(f"/gradio_api/queue/data?session_hash={session}", headers=listening).status_code == 404
    assert house.web.get(f"/gradio_api/heartbeat/{session}", headers=listening).status_code == 404
    assert house.web.post("/gradio_api/queue/join", json=body, headers=listening).status_code == 404
    cancel = {"session_hash": session, "fn_index": send._id, "event_id": "x"}
    assert house.web.post("/gradio_api/cancel", json=cancel, headers=listening).status_code == 404
    mine = house.web.get(f"/gradio_api/queue/data?session_hash={session}", headers=house.headers["other"])
    assert '"success":true' in mine.text


# Gradio's own routes


def test_of_gradios_own_routes_only_those_that_pages_use_answer(house: House) -> None:
    closed, ours = 0, {each.path for each in routes(house.web.app)}
    for place, blocks in pages(house.web.app):
        for each in iter_route_contexts(GradioApp.create_app(blocks, mcp_server=False).routes):
            for method in sorted(getattr(each, "methods", None) or {"GET"}):
                path = each.path.replace("{path:path}", "x/../../y").replace("{", "").replace("}", "")
                if (method, each.path) in USED or f"{place}{path}" in ours:
                    continue
                answer = house.web.request(method, f"{place}{path}", headers=house.headers["operator"])
                assert (method, each.path, answer.status_code) == (method, each.path, 404)
                closed += 1
    assert closed > 100
    for path, kept in (("/", False), ("/operate/", False), ("/theme.css", True), ("/favicon.ico", True)):
        answer = house.web.get(path, headers=house.headers["operator"])
        assert (path, answer.headers.get("cache-control") != "no-store") == (path, kept)
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/static/../app.py", "/assets/..%2f.."):
        assert house.web.get(path, headers=house.headers["operator"]).status_code == 404


USED = {
    *(("GET", path) for path in ("/", "/gradio_api/app_id", "/theme.css", "/favicon.ico", "/assets/{path:path}")),
    ("GET", "/static/{path:path}"),
    ("GET", "/gradio_api/heartbeat/{session_hash}"),
    ("GET", "/gradio_api/queue/data"),
    *(("POST", f"/gradio_api/{name}") for name in ("queue/join", "cancel", "reset")),
}
