"""The ShareGPT format: conversations of "human" and "gpt"."""

from typing import Any

from feedback.formats.base import JUDGED, Format, Row
from feedback.formats.record import Record, demonstration, rest, turns_of, whole
from feedback.formats.turns.verdicts import require_not_bad


def read(raw: dict[str, Any]) -> Record:
    """Read a conversation of "human" and "gpt"."""
    require_not_bad(raw)
    return demonstration(turns_of(raw["conversations"]), rest(raw, "conversations"))


def write(row: Record, number: int) -> dict[str, Any]:
    """Write the conversation, with the system message in a field of its own, as most readers expect."""
    who = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = whole(row)
    system = {"system": turns[0].content} if turns[0].role == "system" else {}
    turns = turns[1:] if system else turns
    return {"conversations": [{"from": who[turn.role], "value": turn.content} for turn in turns]} | system


ROW = Row("conversations", perhaps="system", without=JUDGED)
FORMAT = Format("sharegpt", "ShareGPT", (ROW,), read, write, frozenset({"demonstration"}))
