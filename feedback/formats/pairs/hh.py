"""The Anthropic HH format: two transcripts of Human and Assistant."""

from typing import Any

from feedback.formats.base import COMPARED, Format, Row, is_given
from feedback.formats.record import CHOSEN_FIRST, Dropped, Record, Reply, as_turns, decided, messages, rest, text
from feedback.formats.turns import transcripts
from feedback.messages import Message


def read(raw: dict[str, Any]) -> Record:
    """Read a pair of helpful-harmless transcripts."""
    chosen, rejected = _transcript(raw["chosen"]), _transcript(raw["rejected"])
    if chosen[:-1] != rejected[:-1]:
        raise Dropped("the two conversations differ before their last turn")
    if not chosen or chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise Dropped("the conversation does not end with a reply")
    replies = (Reply(text(chosen[-1].content)), Reply(text(rejected[-1].content)))
    return Record(messages(as_turns(chosen[:-1])), replies, CHOSEN_FIRST, rest(raw, "chosen", "rejected"))


def _transcript(value: Any) -> tuple[Message, ...]:
    if not is_transcript(value):
        raise Dropped("no transcript of Human and Assistant")
    turns = transcripts.turns(value) or []
    return tuple(Message(each["role"], each["content"]) for each in turns)


def is_transcript(value: Any) -> bool:
    """Whether a value is a text that begins as these transcripts do."""
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a transcript for each side."""
    who = {"user": "Human", "assistant": "Assistant"}
    both = dict(zip(("chosen", "rejected"), decided(row), strict=True))
    made = {}
    for name, reply in both.items():
        turns = (*row.messages, Message("assistant", reply.text))
        if any(turn.role not in who for turn in turns):
            raise Dropped("a system message, which this format cannot say")
        if any(transcripts.HH.search(turn.content) for turn in turns):
            raise Dropped("a turn that looks like two in this format")
        made[name] = "".join(f"\n\n{who[turn.role]}: {turn.content}" for turn in turns)
    return made


# The same fields as TRL's implicit prompt; here a side is one text.
ROW = Row("chosen rejected", without="prompt", where={"chosen": is_transcript, "rejected": is_given})
FORMAT = Format("hh", "Anthropic HH", (ROW,), read, write, COMPARED)
