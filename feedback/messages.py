"""One turn of a conversation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One turn, as a chat template takes it."""

    role: str  # "system", "user" or "assistant"
    content: str


def mended(text: str) -> str:
    """The same text with U+FFFD for each half of a character (a lone surrogate), which UTF-8 cannot hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
