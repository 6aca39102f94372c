"""Two replies to one conversation, in the ways in which files write the sides of a pair."""

from typing import Any

from feedback.formats.record import LONGEST_TEXT, Dropped, Reply, as_turns, conversation, messages, text, turns_of
from feedback.formats.turns import cells, content, templates, transcripts
from feedback.formats.turns.roles import role_of
from feedback.messages import Message

DIFFER = "the two conversations differ before their last turn"
ALPACA = ("instruction", "input", "history")
PROMPTS = ("question", "input", "messages", "conversations")


def asked(raw: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The conversation of a row before the replies, None if it has none, and the names of its fields.

    Raises `Dropped` if several fields may be it.
    """
    if raw.get("prompt") is not None:
        return raw["prompt"], ("prompt",)
    if raw.get("instruction") is not None:
        return _alpaca(raw), ALPACA
    given = [name for name in PROMPTS if raw.get(name) is not None]
    if len(given) > 1:
        raise Dropped(f"{' and '.join(given)} may each be the prompt")
    return (raw[given[0]], (given[0],)) if given else (None, ())


def _alpaca(raw: dict[str, Any]) -> Any:
    """An instruction with its input, after the rounds of the history, as LLaMA-Factory joins them."""
    asked = [raw["instruction"], raw.get("input")]
    if not all(isinstance(each, str | None) for each in asked):
        return raw["instruction"]
    last = "\n".join(each for each in asked if each)
    rounds = raw.get("history") or []
    if not rounds:
        return last
    before = [
        {"role": role, "content": said}
        for each in rounds
        for role, said in zip(("user", "assistant"), each, strict=True)
    ]
    return [*before, {"role": "user", "content": last}]


def pair(prompt: Any, chosen: Any, rejected: Any) -> tuple[tuple[Message, ...], tuple[Reply, Reply]]:
    """The conversation that two sides share, and the reply that each ends with.

    A side is a reply, several turns after the prompt, or a whole conversation. Raises `Dropped` if they share none.
    """
    whole = [_whole(prompt, side) for side in (chosen, rejected)]
    if whole[0][:-1] != whole[1][:-1]:
        raise Dropped(DIFFER)
    if any(not turns or turns[-1].role != "assistant" for turns in whole):
        raise Dropped("the conversation does not end with a reply")
    first, second = (Reply(text(_as_turn(turns[-1]))) for turns in whole)
    return messages(as_turns(whole[0][:-1])), (first, second)


def completed(prompt: Any, completion: Any) -> tuple[tuple[Message, ...], Reply]:
    """A conversation, with what a completion of several turns adds to it, and the reply at its end."""
    turns = _whole(prompt, completion)
    if not turns or turns[-1].role != "assistant":
        raise Dropped("the conversation does not end with a reply")
    return messages(as_turns(turns[:-1])), Reply(text(_as_turn(turns[-1])))


def _as_turn(turn: Message) -> dict[str, str]:
    return {"role": turn.role, "content": turn.content}


def _whole(prompt: Any, side: Any) -> tuple[Message, ...]:
    """A side as a conversation from its beginning."""
    side = _turns(side)
    before = () if prompt is None else conversation(prompt)
    if side and side[0].role != "assistant":  # it has the prompt itself
        told = turns_of(before[:1]) if isinstance(before, list) else ()
        return (*told, *side) if told and told[0].role == "system" != side[0].role else side
    if prompt is None:
        return side
    told = messages(prompt)
    if isinstance(prompt, str) and told != (Message("user", prompt),):
        # The prompt was a transcript or templated, so that a space before the reply is part of that.
        side = (Message("assistant", side[0].content.removeprefix(" ")), *side[1:])
    return (*told, *_merged(side))


def _turns(side: Any) -> tuple[Message, ...]:
    """The turns of a side, which may be one text."""
    side = cells.opened(side)
    if isinstance(side, str) and len(side) <= LONGEST_TEXT:
        told = transcripts.turns(side) if side.startswith("\n\nHuman:") else None
        if told is None and templates.is_marked(side):
            told = _templated(side)
        return turns_of(told) if told else (Message("assistant", text(side)),)
    if isinstance(side, dict) and role_of(side):
        side = [side]
    if isinstance(side, list) and side and isinstance(side[0], dict) and not content.is_parts(side):
        return turns_of(side)
    return (Message("assistant", text(side)),)


def _templated(side: str) -> list[dict[str, str]] | None:
    """The turns of a whole conversation with a template's marks; None if it is only a reply with marks."""
    try:
        told = templates.turns(side)
    except Dropped:
        return None
    return told if told and role_of(told[0]) != "assistant" else None


def _merged(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """A reply in several messages as one."""
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role == "assistant":
            turn = Message("assistant", f"{merged.pop().content}\n\n{turn.content}")
        merged.append(turn)
    return tuple(merged)
