"""Helpers for formats: turns, texts, and the exception for a row that cannot be kept."""

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
    """A row that cannot be kept; the message is the reason, in the same words for all such rows."""


CHOSEN_FIRST = (Annotation("comparison", (0, 1), choice="left"),)
MODEL_ANSWER = (Annotation("label", (0,), label=DEMONSTRATION),)


def rest(raw: dict[str, Any], *known: str) -> dict[str, Any]:
    """The fields of a row other than the `known` ones."""
    return {name: value for name, value in raw.items() if name not in known}


def text(value: Any) -> str:
    """A reply's text. Raises `Dropped` if it is empty or not text."""
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
    """A conversation that ends with a user's turn. Raises `Dropped` on any other."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    turns = turns_of(value)
    if not turns or turns[-1].role != "user":
        raise Dropped("the conversation does not end with a user's turn")
    return turns


def turns_of(value: Any) -> tuple[Message, ...]:
    """The turns of a conversation in the style of OpenAI or ShareGPT. Raises `Dropped` on anything else."""
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
    """A conversation as a list of {role, content}, as most formats write it."""
    return [{"role": each.role, "content": each.content} for each in messages]


def decided(row: Record) -> tuple[Reply, Reply]:
    """The preferred and the other reply of a comparison. Raises `Dropped` if neither was preferred."""
    (said,) = row.said
    left, right = (row.replies[number] for number in said.of)
    if said.choice not in ("left", "right"):
        raise Dropped(f"{said.choice.replace('_', ' ')}, which this format cannot say")
    return (left, right) if said.choice == "left" else (right, left)


def shared(first: tuple[Message, ...], second: tuple[Message, ...]) -> int:
    """The number of turns at the start that two conversations share."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return same


def demonstration(turns: tuple[Message, ...], extra: dict[str, Any]) -> Record:
    """A record of a conversation whose last turn is a model answer. Raises `Dropped` if that is not a reply."""
    if not turns or turns[-1].role != "assistant":
        raise Dropped("the conversation does not end with a reply")
    return Record(messages(as_turns(turns[:-1])), (Reply(text(turns[-1].content)),), MODEL_ANSWER, extra)


def whole(row: Record) -> tuple[Message, ...]:
    """A conversation followed by its first reply."""
    return (*row.messages, Message("assistant", row.replies[0].text))
