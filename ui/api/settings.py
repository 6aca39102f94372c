"""The HTTP API for settings, with models and routes made from what `feedback.records.settings` declares."""

from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field, create_model

from feedback.records.settings import SETTINGS, Setting, all_settings, set_all
from ui.accounts.auth import Operator, operator
from ui.accounts.dependencies import REFUSALS, STRICT, TheStore, Writing


def type_of(declared: Setting) -> Any:
    """The JSON type of a setting's value."""
    return float if declared.is_share else str if declared.choices is not None else int


def models() -> tuple[type[BaseModel], type[BaseModel]]:
    """The model of the answer, and the model of the request."""
    every = SETTINGS.values()
    stands: dict[str, Any] = {each.name: (type_of(each), Field(description=each.help)) for each in every}
    wanted: dict[str, Any] = {each.name: (type_of(each), Field(None, description=each.help)) for each in every}
    asked = "What to set; what is left out stays as it is."
    return (
        create_model("Settings", __doc__="What the operator sets.", **stands),
        create_model("SettingsAsked", __config__=STRICT, __doc__=asked, **wanted),
    )


def routes() -> APIRouter:
    """The routes for the settings declared so far."""
    router = APIRouter(prefix="/api", tags=["operating"], dependencies=[Depends(operator)], responses=REFUSALS)
    stands, asked = models()

    @router.get("/settings", response_model=stands)
    def settings(store: TheStore) -> dict[str, Any]:
        """The settings."""
        return all_settings(store)

    @router.put("/settings", response_model=stands)
    def set_settings(body: asked, user: Operator, store: TheStore, write: Writing) -> dict[str, Any]:  # type: ignore[valid-type]
        """Change some or all settings; they take effect with the next turn or night."""

        def act() -> dict[str, Any]:
            set_all(store, user.id, body.model_dump(exclude_unset=True))  # type: ignore[attr-defined]
            return all_settings(store)

        return write.at_once(body, act)

    return router
