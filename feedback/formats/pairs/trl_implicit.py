"""TRL's preference format with an implicit prompt: each side has the whole conversation."""

from typing import Any

from feedback.formats.base import COMPARED, Format, Row
from feedback.formats.pairs import trl
from feedback.formats.record import Record, as_turns, decided
from feedback.messages import Message


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a conversational preference, each side with the whole conversation."""
    both = dict(zip(("chosen", "rejected"), decided(row), strict=True))
    return {name: as_turns((*row.messages, Message("assistant", reply.text))) for name, reply in both.items()}


FORMAT = Format("trl-implicit", "TRL preference, implicit prompt", (Row("chosen rejected"),), trl.read, write, COMPARED)
