"""Helpers for formats: turns, texts, and the exception for a row that cannot be kept."""

from collections.abc import Sequence
from typing import Any

from feedback.annotations import DEMONSTRATION
from feedback.annotations import Annotation as Annotation
from feedback.annotations import Record as Record
from feedback.annotations import Reply as Reply
from feedback.chats.conversations import LONGEST_MESSAGE
from feedback.formats.turns import cells, content, templates, transcripts
from feedback.formats.turns.dropped import Dropped as Dropped
from feedback.formats.turns.roles import content_of, role_of
from feedback.messages import Message

LONGEST_TEXT = 10 * LONGEST_MESSAGE  # characters of a whole conversation in one text
CHOSEN_FIRST = (Annotation("comparison", (0, 1), choice="left"),)
MODEL_ANSWER = (Annotation("label", (0,), label=DEMONSTRATION),)


def rest(raw: dict[str, Any], *known: str) -> dict[str, Any]:
    """The fields of a row other than the `known` ones."""
    return {name: value for name, value in raw.items() if name not in known}


def text(value: Any) -> str:
    """A reply's text, without the marks that end it. Raises `Dropped` if it is empty, not text, or has other marks."""
    value = content.joined(cells.opened(value))
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    is_turn = isinstance(value, dict)
    if is_turn:
        value = content.joined(content_of(value))
    if not isinstance(value, str):
        raise Dropped("a reply is not text")
    _require_length(value)
    # What stands in a turn of its own was said so, whatever it looks like.
    value = templates.without_end(value) if is_turn else templates.reply(value)
    if not value.strip():
        raise Dropped("an empty reply")
    return value


def messages(value: Any) -> tuple[Message, ...]:
    """A conversation that ends with a user's turn. Raises `Dropped` on any other."""
    turns = turns_of(conversation(value))
    if not turns or turns[-1].role != "user":
        raise Dropped("the conversation does not end with a user's turn")
    return turns


def conversation(value: Any) -> Any:
    """The list of turns in a text: those of a transcript or of a templated text, or one of the user's."""
    value = cells.opened(value)
    if not isinstance(value, str):
        return value
    _require_length(value)
    turns = transcripts.turns(value)
    if turns is None:
        turns = templates.turns(value)
    if turns is None:
        return [{"role": "user", "content": value}]
    about_to_speak = turns and role_of(turns[-1]) == "assistant" and not turns[-1]["content"].strip()
    return turns[:-1] if about_to_speak else turns


def _require_length(text: str) -> None:
    """Raises `Dropped` on a text in which it would take long to look for turns, longer than any that is kept."""
    if len(text) > LONGEST_TEXT:
        raise Dropped("a text that is too long")


def turns_of(value: Any) -> tuple[Message, ...]:
    """The turns of a conversation in the style of OpenAI or ShareGPT. Raises `Dropped` on anything else."""
    value = cells.opened(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Dropped("the conversation is no list of turns")
    turns = []
    for each in value:
        if not isinstance(each, dict):
            raise Dropped("the conversation is no list of turns")
        role, said = role_of(each), content.joined(content_of(each))
        if role is None:
            raise Dropped("a turn is of nobody known")
        if not isinstance(said, str) or not (said.strip() or role == "assistant"):
            raise Dropped("a turn is empty or not text")
        turns.append(Message(role, said))
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


def demonstration(turns: tuple[Message, ...], extra: dict[str, Any]) -> Record:
    """A record of a conversation whose last turn is a model answer. Raises `Dropped` if that is not a reply."""
    if not turns or turns[-1].role != "assistant":
        raise Dropped("the conversation does not end with a reply")
    reply = Reply(text({"content": turns[-1].content}))
    return Record(messages(as_turns(turns[:-1])), (reply,), MODEL_ANSWER, extra)


def whole(row: Record) -> tuple[Message, ...]:
    """A conversation followed by its first reply."""
    return (*row.messages, Message("assistant", row.replies[0].text))
