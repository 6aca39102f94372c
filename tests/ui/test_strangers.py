"""What is another person's looks as if it did not exist: by every route, and every function that takes an id."""

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
from fastapi.testclient import TestClient

import feedback
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import NotFound
from tests.conftest import two_replies
from tests.helpers.over_http import assistant, key, loaded, rows, token_of, web  # noqa: F401

IDS = {"reply", "replies", "left", "right", "message", "conversation", "question"}  # of a route's path or body
PERSONAL: set[str] = set()  # modules to leave out


def tries(left: str, right: str, conversation: str) -> dict[tuple[str, str], Any]:
    """A body for every route that takes an id of somebody's."""
    return {
        ("get", f"/api/conversations/{conversation}"): None,
        ("post", "/api/votes"): {"reply": left, "value": 1},
        ("post", "/api/comparisons"): {"left": left, "right": right, "choice": "left"},
        ("post", "/api/rankings"): {"replies": [left, right], "ranks": [1, 2]},
        ("post", "/api/corrections"): {"reply": left, "text": "x"},
        ("post", "/api/critiques"): {"reply": left, "text": "x"},
        ("post", "/api/labels"): {"reply": left, "label": "unsafe"},
        ("post", "/api/signals"): {"reply": left, "kind": "copy"},
        ("get", f"/api/replies/{left}/feedback"): None,
        ("get", f"/api/turns/{left}/events"): None,
        ("post", f"/api/conversations/{conversation}/consent"): {"given": True},
    }


def takes_an_id(path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> bool:
    """Whether a route of the description takes an id of a conversation or of something in one."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    fields = set(schemas.get(body.get("$ref", "").rpartition("/")[2], {}).get("properties", {}))
    return any("{" + name + "}" in path for name in IDS) or bool(fields & IDS)


def test_no_route_answers_for_another_persons_ids(web: TestClient, store: Database) -> None:  # noqa: F811
    message, left, right = two_replies(store, users.local_owner(store))
    conversation = conversations.node(store, message).conversation
    known = tries(left, right, conversation)
    described = web.get("/openapi.json").json()
    filled = {"{conversation}": conversation, "{reply}": left}
    found = set()
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if takes_an_id(path, operation, described["components"]["schemas"]):
                for name, value in filled.items():
                    path = path.replace(name, value)
                found.add((method, path))
    assert found == set(known)  # a new route must be tried here too
    other = token_of(store, "other", "operator") | key()
    before = rows(store)
    for (method, path), body in known.items():
        answer = web.request(method, path, json=body, headers=other)
        assert (path, answer.status_code, "there is no" in answer.json()["error"]) == (path, 404, True)
    assert rows(store) == before


def functions_of_people() -> list[Any]:
    """Every public function of `feedback` that takes a person and something of theirs."""
    found = []
    for module in pkgutil.walk_packages(feedback.__path__, "feedback."):
        for name, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
            if function.__module__ != module.name or name.startswith("_") or module.name in PERSONAL:
                continue
            parameters = inspect.signature(function).parameters
            if parameters.get("user") and parameters["user"].annotation is User and IDS & set(parameters):
                found.append(function)
    return found


# What reads what a person themselves said needs no refusal: of another's reply they have said nothing.
EMPTY = {"standing_vote": None, "standing_choice": None, "standing_correction": None, "labels": [], "is_own": False}
EMPTY |= {"answered": None}


@pytest.mark.parametrize("function", functions_of_people(), ids=lambda each: f"{each.__module__}.{each.__name__}")
def test_no_function_acts_on_another_persons_ids(store: Database, owner: User, function: Any) -> None:
    message, left, right = two_replies(store, owner)
    stranger = users.add_user(store, "stranger", "operator", None)
    given = {"store": store, "user": stranger, "reply": left, "left": left, "right": right, "message": left}
    given |= {
        "conversation": conversations.node(store, message).conversation,
        "replies": [left, right],
        "ranks": [1, 2],
    }
    given |= {"choice": "left", "value": 1, "text": "x", "label": "unsafe", "kind": "copy", "given": True}
    named = {
        name: given[name] for name, each in inspect.signature(function).parameters.items() if each.default is each.empty
    }
    before = rows(store)
    if function.__name__ in EMPTY:
        assert function(**named) == EMPTY[function.__name__]
    else:
        with pytest.raises(NotFound):
            function(**named)
    assert rows(store) == before


def test_the_walk_finds_the_functions() -> None:
    assert len(functions_of_people()) > 15
