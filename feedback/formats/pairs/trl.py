"""TRL's preference format with an explicit prompt."""

from typing import Any

from feedback.formats.base import COMPARED, Format, Row
from feedback.formats.pairs import hh
from feedback.formats.record import (
    CHOSEN_FIRST,
    Dropped,
    Record,
    Reply,
    as_turns,
    decided,
    messages,
    rest,
    shared,
    text,
    turns_of,
)


def read(raw: dict[str, Any]) -> Record:
    """Read a preference with an explicit or implicit prompt, conversational or plain text."""
    extra = rest(raw, "prompt", "chosen", "rejected")
    if "prompt" in raw:
        replies = (Reply(text(raw["chosen"])), Reply(text(raw["rejected"])))
        return Record(messages(raw["prompt"]), replies, CHOSEN_FIRST, extra)
    if isinstance(raw["chosen"], str):
        return hh.read(raw)
    chosen, rejected = turns_of(raw["chosen"]), turns_of(raw["rejected"])
    same = shared(chosen, rejected)
    if (len(chosen), len(rejected)) != (same + 1, same + 1):
        raise Dropped("the two conversations differ before their last turn")
    replies = (Reply(text(chosen[-1].content)), Reply(text(rejected[-1].content)))
    return Record(messages(as_turns(chosen[:-1])), replies, CHOSEN_FIRST, extra)


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a conversational preference with an explicit prompt."""
    chosen, rejected = decided(row)
    both = {"chosen": chosen, "rejected": rejected}
    return {"prompt": as_turns(row.messages)} | {
        name: [{"role": "assistant", "content": reply.text}] for name, reply in both.items()
    }


FORMAT = Format("trl", "TRL preference, explicit prompt", (Row("prompt chosen rejected"),), read, write, COMPARED)
