"""Formats whose rows compare replies.

Each has a function that reads a row and one that writes it; both raise `Dropped` with the reason.
"""

import json
import re
from typing import Any

from feedback.formats.record import (
    Annotation,
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
from feedback.messages import Message

CHOSEN_FIRST = (Annotation("comparison", (0, 1), choice="left"),)


def read_trl(raw: dict[str, Any]) -> Record:
    """TRL's preference data, explicit prompt or implicit, conversational or plain text."""
    extra = rest(raw, "prompt", "chosen", "rejected")
    if "prompt" in raw:
        replies = (Reply(text(raw["chosen"])), Reply(text(raw["rejected"])))
        return Record(messages(raw["prompt"]), replies, CHOSEN_FIRST, extra)
    if isinstance(raw["chosen"], str):
        return read_hh(raw)
    chosen, rejected = turns_of(raw["chosen"]), turns_of(raw["rejected"])
    same = shared(chosen, rejected)
    if (len(chosen), len(rejected)) != (same + 1, same + 1):
        raise Dropped("the two conversations differ before their last turn")
    replies = (Reply(text(chosen[-1].content)), Reply(text(rejected[-1].content)))
    return Record(messages(as_turns(chosen[:-1])), replies, CHOSEN_FIRST, extra)


def write_trl(row: Record, number: int) -> dict[str, Any]:
    """Conversational, with the prompt by itself."""
    chosen, rejected = decided(row)
    both = {"chosen": chosen, "rejected": rejected}
    return {"prompt": as_turns(row.messages)} | {
        name: [{"role": "assistant", "content": reply.text}] for name, reply in both.items()
    }


def write_trl_implicit(row: Record, number: int) -> dict[str, Any]:
    """Conversational, each side with the whole conversation."""
    both = dict(zip(("chosen", "rejected"), decided(row), strict=True))
    return {name: as_turns((*row.messages, Message("assistant", reply.text))) for name, reply in both.items()}


TURN = re.compile(r"\n\n(Human|Assistant):")


def read_hh(raw: dict[str, Any]) -> Record:
    """Anthropic's helpful-harmless transcripts."""
    chosen, rejected = _transcript(raw["chosen"]), _transcript(raw["rejected"])
    if chosen[:-1] != rejected[:-1]:
        raise Dropped("the two conversations differ before their last turn")
    if not chosen or chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise Dropped("the conversation does not end with a reply")
    replies = (Reply(text(chosen[-1].content)), Reply(text(rejected[-1].content)))
    return Record(messages(as_turns(chosen[:-1])), replies, CHOSEN_FIRST, rest(raw, "chosen", "rejected"))


def _transcript(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, str) or not value.startswith("\n\nHuman:"):
        raise Dropped("no transcript of Human and Assistant")
    parts = TURN.split(value)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    # One space follows the colon; what else there is belongs to the turn.
    return tuple(Message(roles[who], said.removeprefix(" ")) for who, said in zip(parts[::2], parts[1::2], strict=True))


def write_hh(row: Record, number: int) -> dict[str, Any]:
    """A transcript for each side."""
    who = {"user": "Human", "assistant": "Assistant"}
    both = dict(zip(("chosen", "rejected"), decided(row), strict=True))
    made = {}
    for name, reply in both.items():
        turns = (*row.messages, Message("assistant", reply.text))
        if any(turn.role not in who for turn in turns):
            raise Dropped("a system message, which this format cannot say")
        if any(TURN.search(turn.content) for turn in turns):
            raise Dropped("a turn that looks like two in this format")
        made[name] = "".join(f"\n\n{who[turn.role]}: {turn.content}" for turn in turns)
    return made


def read_arena(raw: dict[str, Any]) -> Record:
    """Chatbot Arena's 55k comparisons: lists of turns as JSON in columns."""
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
    known = ("prompt", "response_a", "response_b", "model_a", "model_b", *ARENA_WINNERS)
    return Record(messages(turns), replies, (Annotation("comparison", (0, 1), choice=choice),), rest(raw, *known))


ARENA_WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")


def _list(value: Any) -> list[Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise Dropped("a list of turns is no JSON") from None
    if not isinstance(found, list):
        raise Dropped("a list of turns is no list")
    return found


def write_arena(row: Record, number: int) -> dict[str, Any]:
    """As its file of 55k rows has them."""
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


def read_argilla(raw: dict[str, Any]) -> Record:
    """Argilla's records with the fields prompt, response_a and response_b, and the question preference."""
    fields, responses = raw["fields"], raw.get("responses") or {}
    replies = tuple(Reply(text(fields.get(f"response_{side}")), _model(raw, side)) for side in "ab")
    answers = responses.get("preference") or []
    if not answers:
        raise Dropped("nobody has answered")
    said = []
    for answer in answers:
        choice = {"response_a": "left", "response_b": "right"}.get(answer["value"], answer["value"])
        if choice not in ("left", "right", "tie", "both_bad", "cannot_tell"):
            raise Dropped("an answer that means nothing here")
        said.append(Annotation("comparison", (0, 1), str(answer.get("user_id") or ""), choice=choice))
    extra = rest(raw, "fields", "responses") | {"metadata": rest(raw.get("metadata") or {}, "model_a", "model_b")}
    return Record(messages(fields.get("prompt")), replies, tuple(said), extra)


def _model(raw: dict[str, Any], side: str) -> str:
    return str((raw.get("metadata") or {}).get(f"model_{side}", ""))


def write_argilla(row: Record, number: int) -> dict[str, Any]:
    """A record with one answer."""
    (said,) = row.said
    left, right = (row.replies[each] for each in said.of)
    value = {"left": "response_a", "right": "response_b"}.get(said.choice, said.choice)
    return {
        "id": str(number),
        "fields": {"prompt": as_turns(row.messages), "response_a": left.text, "response_b": right.text},
        "metadata": {"model_a": left.model, "model_b": right.model} | row.extra.pop("metadata", {}),
        "responses": {"preference": [{"value": value, "user_id": said.rater}]},
    }


def read_ultrafeedback(raw: dict[str, Any]) -> Record:
    """UltraFeedback: one instruction, completions with an overall score each."""
    completions = raw["completions"]
    replies = tuple(Reply(text(each["response"]), str(each.get("model", ""))) for each in completions)
    if len(replies) < 2:
        raise Dropped("fewer than two replies")
    scores = [each.get("overall_score") for each in completions]
    if any(isinstance(score, bool) or not isinstance(score, int | float) for score in scores):
        raise Dropped("a reply without a score")
    order = sorted(set(scores), reverse=True)
    ranks = tuple(order.index(score) + 1 for score in scores)
    said = (Annotation("ranking", tuple(range(len(replies))), ranks=ranks),)
    extra = rest(raw, "source", "instruction", "models", "completions")
    inner = [rest(each, "model", "response", "overall_score") for each in completions]
    return Record(messages(raw["instruction"]), replies, said, extra | ({"completions": inner} if any(inner) else {}))


def write_ultrafeedback(row: Record, number: int) -> dict[str, Any]:
    """Scores count down from the number of replies, by rank."""
    (said,) = row.said
    if len(row.messages) != 1:
        raise Dropped("more than one turn, which this format cannot say")
    order = sorted(set(said.ranks))
    replies = [row.replies[each] for each in said.of]
    completions = [
        {"model": reply.model, "response": reply.text, "overall_score": float(len(replies) - order.index(rank))}
        for reply, rank in zip(replies, said.ranks, strict=True)
    ]
    inner = row.extra.pop("completions", None)
    if inner is not None and len(inner) == len(completions):
        completions = [{**made, **more} for made, more in zip(completions, inner, strict=True)]
    return {
        "source": "nightschool",
        "instruction": row.messages[0].content,
        "models": [reply.model for reply in replies],
        "completions": completions,
    }


def read_votes(raw: dict[str, Any]) -> Record:
    """Two replies and the votes of several raters, as evaluations by people are often kept."""
    replies = (
        Reply(text(raw["response_a"]), str(raw.get("model_a", ""))),
        Reply(text(raw["response_b"]), str(raw.get("model_b", ""))),
    )
    said = []
    for vote in raw["votes"]:
        choice = {"a": "left", "b": "right", "tie": "tie"}.get(vote["vote"])
        if choice is None:
            raise Dropped("a vote that means nothing here")
        rater, words = str(vote["rater"]), vote.get("comment") or ""
        strength = vote.get("strength")
        strong = int(strength) if choice != "tie" and strength and 1 <= strength <= 5 else None
        said.append(Annotation("comparison", (0, 1), rater, choice=choice, strength=strong, words=words))
        for number, side in enumerate("ab"):
            if vote.get(f"{side}_acceptable") in ("yes", "no"):
                value = 1 if vote[f"{side}_acceptable"] == "yes" else -1
                said.append(Annotation("thumb", (number,), rater, value=value))
    return Record(messages(raw["prompt"]), replies, tuple(said), rest(raw, "prompt", "response_a", "response_b"))
