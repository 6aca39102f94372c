"""TRL's preference format with an explicit prompt.

LLaMA-Factory, Axolotl, OpenRLHF, ms-swift and others have the same under other names, which are read too.
"""

from typing import Any

from feedback.formats.base import COMPARED, Format, Row
from feedback.formats.record import CHOSEN_FIRST, Dropped, Record, as_turns, decided, rest, turns_of
from feedback.formats.turns.sides import asked, pair


def read(raw: dict[str, Any]) -> Record:
    """Read a preference whose sides are replies, several turns or whole conversations, by any name of the prompt."""
    if "rejected_response" in raw or "rejected_messages" in raw:
        return _beside(raw)
    prompt, known = asked(raw)
    messages, replies = pair(prompt, raw["chosen"], raw["rejected"])
    return Record(messages, replies, CHOSEN_FIRST, rest(raw, *known, "chosen", "rejected"))


def _beside(raw: dict[str, Any]) -> Record:
    """Read a conversation with its chosen reply, and beside it the rejected one, as ms-swift has them."""
    turns = turns_of(raw["messages"])
    if not turns or turns[-1].role != "assistant":
        raise Dropped("the conversation does not end with a reply")
    other = raw.get("rejected_messages") or raw.get("rejected_response")
    messages, replies = pair(as_turns(turns[:-1]), as_turns(turns[-1:]), other)
    return Record(messages, replies, CHOSEN_FIRST, rest(raw, "messages", "rejected_messages", "rejected_response"))


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a conversational preference with an explicit prompt."""
    chosen, rejected = decided(row)
    both = {"chosen": chosen, "rejected": rejected}
    return {"prompt": as_turns(row.messages)} | {
        name: [{"role": "assistant", "content": reply.text}] for name, reply in both.items()
    }


ROWS = (
    Row("prompt chosen rejected", perhaps="system"),
    Row("question chosen rejected", perhaps="system"),
    Row("instruction chosen rejected", perhaps="input system history"),
    Row("input chosen rejected", perhaps="system"),
    Row("messages chosen rejected", perhaps="system"),
    Row("conversations chosen rejected", perhaps="system"),
    Row("messages rejected_response", perhaps="system"),
    Row("messages rejected_messages", perhaps="system"),
)
FORMAT = Format("trl", "TRL preference, explicit prompt", ROWS, read, write, COMPARED)
