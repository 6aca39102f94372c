"""One turn of a conversation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One turn, as a chat template takes it."""

    role: str  # "system", "user" or "assistant"
    content: str
