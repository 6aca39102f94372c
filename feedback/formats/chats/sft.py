"""Demonstrations in the format of TRL's SFT trainer."""

from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import (
    MODEL_ANSWER,
    Record,
    Reply,
    as_turns,
    demonstration,
    messages,
    rest,
    text,
    turns_of,
    whole,
)


def read(raw: dict[str, Any]) -> Record:
    """Read a demonstration from {messages} or {prompt, completion}."""
    if "messages" not in raw:
        said = rest(raw, "prompt", "completion")
        return Record(messages(raw["prompt"]), (Reply(text(raw["completion"])),), MODEL_ANSWER, said)
    return demonstration(turns_of(raw["messages"]), rest(raw, "messages"))


def write(row: Record, number: int) -> dict[str, Any]:
    """Write the whole conversation as {messages}."""
    return {"messages": as_turns(whole(row))}


FORMAT = Format(
    "sft", "conversational SFT", (Row("messages"), Row("prompt completion")), read, write, frozenset({"demonstration"})
)
