"""The format of Chatbot Arena's 55k comparisons; also reads the 33k and the 140k, which have whole conversations."""

import json
from dataclasses import replace
from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Dropped, Record, Reply, as_turns, messages, rest, text, turns_of
from feedback.formats.turns.sides import pair
from feedback.messages import Message

WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
WINNERS_NAMED = {
    "model_a": "left",
    "model_b": "right",
    "tie": "tie",
    "tie (bothbad)": "both_bad",
    "both_bad": "both_bad",
}


def read(raw: dict[str, Any]) -> Record:
    """Read a comparison whose columns hold lists of turns as JSON, or whole conversations."""
    if "conversation_a" in raw:
        return _of_conversations(raw)
    prompts, ours, theirs = (_list(raw[name]) for name in ("prompt", "response_a", "response_b"))
    if not len(prompts) == len(ours) == len(theirs) or not prompts:
        raise Dropped("prompts and responses are not as many")
    if ours[:-1] != theirs[:-1]:
        raise Dropped("the two conversations differ before their last turn")
    turns: list[dict[str, Any]] = []
    for asked, answered in zip(prompts, [*ours[:-1], None], strict=True):
        turns.append({"role": "user", "content": asked})
        turns += [] if answered is None else [{"role": "assistant", "content": answered}]
    won = [
        name for name in ("winner_model_a", "winner_model_b", "winner_tie") if str(raw[name]) in ("1", "1.0", "True")
    ]
    if len(won) != 1:
        raise Dropped("nobody won, and it was no tie")
    choice = {"winner_model_a": "left", "winner_model_b": "right", "winner_tie": "tie"}[won[0]]
    replies = (Reply(text(ours[-1]), str(raw["model_a"])), Reply(text(theirs[-1]), str(raw["model_b"])))
    known = ("prompt", "response_a", "response_b", "model_a", "model_b", *WINNERS)
    return Record(messages(turns), replies, (Annotation("comparison", (0, 1), choice=choice),), rest(raw, *known))


def _of_conversations(raw: dict[str, Any]) -> Record:
    choice = WINNERS_NAMED.get(raw["winner"])
    if choice is None:
        raise Dropped("nobody won, and it was no tie")
    sides = [turns_of(raw[name]) for name in ("conversation_a", "conversation_b")]
    turn = raw.get("turn")
    if isinstance(turn, int):  # of several turns, the one that was judged
        sides = [through(each, turn) for each in sides]
    told, (left, right) = pair(None, *map(as_turns, sides))
    replies = (replace(left, model=str(raw.get("model_a") or "")), replace(right, model=str(raw.get("model_b") or "")))
    said = Annotation("comparison", (0, 1), str(raw.get("judge") or ""), choice=choice)
    return Record(told, replies, (said,), rest(raw, "conversation_a", "conversation_b", "model_a", "model_b", "winner"))


def through(turns: tuple[Message, ...], number: int) -> tuple[Message, ...]:
    """A conversation up to the reply to the user's turn of this number, from 1."""
    asked = [at for at, turn in enumerate(turns) if turn.role == "user"]
    return turns[: asked[number]] if 0 < number < len(asked) else turns


def _list(value: Any) -> list[Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise Dropped("a list of turns is no JSON") from None
    if not isinstance(found, list):
        raise Dropped("a list of turns is no list")
    return found


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a comparison with the columns of the 55k file."""
    (said,) = row.said
    if said.choice not in ("left", "right", "tie"):
        raise Dropped(f"{said.choice.replace('_', ' ')}, which this format cannot say")
    roles = [turn.role for turn in row.messages]
    if roles != [("user", "assistant")[each % 2] for each in range(len(roles))]:
        raise Dropped("turns that do not alternate, which this format cannot say")
    left, right = (row.replies[each] for each in said.of)
    before = [turn.content for turn in row.messages if turn.role == "assistant"]
    return {
        "id": number,
        "model_a": left.model,
        "model_b": right.model,
        "prompt": json.dumps([turn.content for turn in row.messages if turn.role == "user"]),
        "response_a": json.dumps([*before, left.text]),
        "response_b": json.dumps([*before, right.text]),
        "winner_model_a": int(said.choice == "left"),
        "winner_model_b": int(said.choice == "right"),
        "winner_tie": int(said.choice == "tie"),
    }


ROWS = (
    Row("winner_model_a winner_tie", perhaps="winner_model_b model_a model_b prompt response_a response_b"),
    Row("conversation_a conversation_b winner", perhaps="model_a model_b judge turn"),
)
FORMAT = Format("arena", "Chatbot Arena 55k", ROWS, read, write, frozenset({"comparison"}))
