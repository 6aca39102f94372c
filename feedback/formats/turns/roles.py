"""Who speaks in a turn, by the names that data sets have for them."""

from collections.abc import Mapping
from typing import Any

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}


def role_of(turn: Mapping[str, Any]) -> str | None:
    """Who speaks in a turn in the style of OpenAI or ShareGPT; None if nobody known."""
    return ROLES.get(str(turn.get("role", turn.get("from"))).lower())


def content_of(turn: Mapping[str, Any]) -> Any:
    """What such a turn says: text or parts."""
    return turn.get("content", turn.get("value"))
