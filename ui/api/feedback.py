"""The HTTP API for feedback: a route for every kind, and one that lists a person's feedback on a reply."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from feedback.kinds import history
from feedback.kinds.base import KINDS, Kind
from ui.accounts.auth import Person
from ui.accounts.dependencies import REFUSALS, TheStore, Writing


class Row(BaseModel):
    """What was recorded."""

    id: int


class Saying(BaseModel):
    """One thing that was said of a reply."""

    id: int
    kind: str
    at: str
    standing: bool = Field(description="false: something newer has taken its place.")
    said: dict[str, Any]


def router() -> APIRouter:
    """The routes of every kind declared so far."""
    made = APIRouter(prefix="/api", responses=REFUSALS, tags=["feedback"])
    for kind in KINDS.values():
        options: dict[str, Any] = {"name": kind.write.__name__, "description": kind.help}
        made.post(f"/{kind.table}", response_model=Row, **options)(saying(kind))
    made.get("/replies/{reply}/feedback", response_model=list[Saying])(sayings)
    return made


def saying(kind: Kind) -> Callable[..., dict[str, Any]]:
    """The route that writes feedback of a kind."""

    def route(body: Any, user: Person, store: TheStore, write: Writing) -> dict[str, Any]:
        return write.at_once(body, lambda: {"id": kind.write(store, user, **body.model_dump())})

    route.__annotations__["body"] = kind.body  # by this, FastAPI validates and documents it
    return route


def sayings(reply: str, user: Person, store: TheStore) -> list[dict[str, Any]]:
    """Your feedback on a reply, oldest first, and which of it is current."""
    return [asdict(each) for each in history.entries(store, user, reply)]
