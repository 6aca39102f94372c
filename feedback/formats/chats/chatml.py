"""The ChatML format: demonstrations as one text with ChatML's tokens."""

import re
from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Dropped, Record, demonstration, rest, turns_of, whole

CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n?", re.DOTALL)


def read(raw: dict[str, Any]) -> Record:
    """Read a demonstration from one text with ChatML's tokens."""
    if CHATML.sub("", raw["text"]).strip():
        raise Dropped("text outside of ChatML's marks")
    turns = [{"role": role, "content": said} for role, said in CHATML.findall(raw["text"])]
    return demonstration(turns_of(turns), rest(raw, "text"))


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a demonstration as one text with ChatML's tokens."""
    turns = whole(row)
    if any("<|im_end|>" in turn.content or "<|im_start|>" in turn.content for turn in turns):
        raise Dropped("a turn that holds ChatML's own marks")
    return {"text": "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)}


FORMAT = Format("chatml", "ChatML text", (Row("text"),), read, write, frozenset({"demonstration"}))
