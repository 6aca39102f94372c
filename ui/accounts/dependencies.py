"""The dependencies of routes: the assistant, its database, and idempotent writes."""

import threading
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Header
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from assistant.chat.assistant import Assistant
from feedback.accounts import idempotency
from feedback.database.database import Database
from feedback.errors import Conflict
from feedback.kinds.base import Body
from ui.accounts.auth import Person

STRICT = Body.model_config
REPLAYED = "Idempotent-Replayed"

_in_flight: set[tuple[str, int, str]] = set()
_in_flight_lock = threading.Lock()


class Refusal(BaseModel):
    """Why a request was refused; nothing was changed."""

    error: str = Field(description="One clear sentence.")


REFUSALS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Refusal, "description": "Refused, with the reason."}}


def the_assistant(request: Request) -> Assistant:
    """The assistant that this server serves."""
    assistant: Assistant = request.app.state.assistant
    return assistant


def the_store(request: Request) -> Database:
    """Its database."""
    return the_assistant(request).store


TheAssistant = Annotated[Assistant, Depends(the_assistant)]
TheStore = Annotated[Database, Depends(the_store)]
Key = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        description="Anything of 1 to 200 characters that is new for each act. A request repeated under its key gets "
        f"the first answer again, with the header {REPLAYED}: true, and changes nothing.",
    ),
]


class Write:
    """One request that changes something, under its Idempotency-Key."""

    def __init__(self, request: Request, response: Response, store: TheStore, user: Person, key: Key) -> None:
        self.store = store
        self.user = user
        self.key = key
        self._act = f"{request.method} {request.url.path}"
        self._response = response

    def at_once(self, body: BaseModel | None, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Act and keep the answer in one transaction; for acts that only write. Raises what `idempotency.once` does."""
        answer, repeated = idempotency.once(self.store, self.user, self.key, self._asked(body), act)
        return self._given(answer, repeated)

    def in_time(self, body: BaseModel | None, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The same for acts that take long: no other writes wait meanwhile, and a repetition raises `Conflict`."""
        asked = self._asked(body)
        before = idempotency.answered(self.store, self.user, self.key, asked)
        if before is not None:
            return self._given(before, True)
        mine = (str(self.store.path), self.user.id, self.key)
        with _in_flight_lock:
            if mine in _in_flight:
                raise Conflict("this request is being worked on; send it again in a moment for its answer")
            _in_flight.add(mine)
        try:
            answer = act()
            return self._given(*idempotency.once(self.store, self.user, self.key, asked, lambda: answer))
        finally:
            with _in_flight_lock:
                _in_flight.discard(mine)

    def _asked(self, body: BaseModel | None) -> dict[str, Any]:
        return {"act": self._act, "body": body.model_dump(mode="json") if body else None}

    def _given(self, answer: dict[str, Any], repeated: bool) -> dict[str, Any]:
        if repeated:
            self._response.headers[REPLAYED] = "true"
        return answer


Writing = Annotated[Write, Depends()]
