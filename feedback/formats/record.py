"""What formats read and write rows with: turns, texts, and why a row cannot be kept."""

from collections.abc import Sequence
from typing import Any

from feedback.annotations import DEMONSTRATION
from feedback.annotations import Annotation as Annotation
from feedback.annotations import Record as Record
from feedback.annotations import Reply as Reply
from feedback.messages import Message

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


class Dropped(Exception):
    """A row that cannot be kept; the message is the reason, the same for all rows of its kind."""


CHOSEN_FIRST = (Annotation("comparison", (0, 1), choice="left"),)
MODEL_ANSWER = (Annotation("label", (0,), label=DEMONSTRATION),)


def rest(raw: dict[str, Any], *known: str) -> dict[str, Any]:
    """What a row holds beside the fields that its format gives a meaning."""
    return {name: value for name, value in raw.items() if name not in known}


def text(value: Any) -> str:
    """A reply's text. Raises `Dropped` on what is none."""
    if isinstance(value, dict):
        value = value.get("content")
    if isinstance(value, list) and len(value) == 1:
        return text(value[0])
    if not isinstance(value, str):
        raise Dropped("a reply is not text")
    if not value.strip():
        raise Dropped("an empty reply")
    return value


def messages(value: Any) -> tuple[Message, ...]:
    """A conversation that ends with its person's turn. Raises `Dropped`."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    turns = turns_of(value)
    if not turns or turns[-1].role != "user":
        raise Dropped("the conversation does not end with a user's turn")
    return turns


def turns_of(value: Any) -> tuple[Message, ...]:
    """Turns as OpenAI's or ShareGPT's clients write them. Raises `Dropped`."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Dropped("the conversation is no list of turns")
    turns = []
    for each in value:
        if not isinstance(each, dict):
            raise Dropped("the conversation is no list of turns")
        role = ROLES.get(str(each.get("role", each.get("from"))))
        content = each.get("content", each.get("value"))
        if role is None:
            raise Dropped("a turn is of nobody known")
        if not isinstance(content, str) or not (content.strip() or role == "assistant"):
            raise Dropped("a turn is empty or not text")
        turns.append(Message(role, content))
    return tuple(turns)


def as_turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A conversation as most formats write it."""
    return [{"role": each.role, "content": each.content} for each in messages]


def decided(row: Record) -> tuple[Reply, Reply]:
    """The preferred and the other reply of a comparison. Raises `Dropped` where none was preferred."""
    (said,) = row.said
    left, right = (row.replies[number] for number in said.of)
    if said.choice not in ("left", "right"):
        raise Dropped(f"{said.choice.replace('_', ' ')}, which this format cannot say")
    return (left, right) if said.choice == "left" else (right, left)


def shared(first: tuple[Message, ...], second: tuple[Message, ...]) -> int:
    """How many turns two conversations begin with in common."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return same


def demonstration(turns: tuple[Message, ...], extra: dict[str, Any]) -> Record:
    """A conversation whose last reply is as it should be. Raises `Dropped`."""
    if not turns or turns[-1].role != "assistant":
        raise Dropped("the conversation does not end with a reply")
    return Record(messages(as_turns(turns[:-1])), (Reply(text(turns[-1].content)),), MODEL_ANSWER, extra)


def whole(row: Record) -> tuple[Message, ...]:
    """A conversation with the reply that it should have."""
    return (*row.messages, Message("assistant", row.replies[0].text))
