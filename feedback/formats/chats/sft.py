"""Demonstrations in the format of TRL's SFT trainer."""

from typing import Any

from feedback.formats.base import JUDGED, Format, Row
from feedback.formats.record import MODEL_ANSWER, Record, as_turns, demonstration, rest, turns_of, whole
from feedback.formats.turns.sides import completed
from feedback.formats.turns.verdicts import require_not_bad


def read(raw: dict[str, Any]) -> Record:
    """Read a demonstration from {messages} or {prompt, completion}."""
    require_not_bad(raw)
    if "messages" in raw:
        return demonstration(turns_of(raw["messages"]), rest(raw, "messages"))
    told, reply = completed(raw["prompt"], raw["completion"])
    return Record(told, (reply,), MODEL_ANSWER, rest(raw, "prompt", "completion"))


def write(row: Record, number: int) -> dict[str, Any]:
    """Write the whole conversation as {messages}."""
    return {"messages": as_turns(whole(row))}


ROWS = (Row("messages", perhaps="system", without=JUDGED), Row("prompt completion", perhaps="system", without=JUDGED))
FORMAT = Format("sft", "conversational SFT", ROWS, read, write, frozenset({"demonstration"}))
