"""The ChatML format: demonstrations as one text with a chat template's marks; any known template's is read."""

from typing import Any

from feedback.formats.base import JUDGED, Format, Row
from feedback.formats.record import Dropped, Record, demonstration, rest, turns_of, whole
from feedback.formats.turns import templates


def read(raw: dict[str, Any]) -> Record:
    """Read a demonstration from one text with a chat template's marks."""
    turns = templates.turns(raw["text"])
    if turns is None:
        raise Dropped("a text without a chat template's marks")
    return demonstration(turns_of(turns), rest(raw, "text"))


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a demonstration as one text with ChatML's tokens."""
    turns = whole(row)
    if any("<|im_end|>" in turn.content or "<|im_start|>" in turn.content for turn in turns):
        raise Dropped("a turn that holds ChatML's own marks")
    return {"text": "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)}


def is_templated(value: Any) -> bool:
    """Whether a value is a text with a chat template's marks."""
    return isinstance(value, str) and templates.is_marked(value)


ROW = Row("text", without=JUDGED, where={"text": is_templated})
FORMAT = Format("chatml", "ChatML text", (ROW,), read, write, frozenset({"demonstration"}))
