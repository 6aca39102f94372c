"""The UltraFeedback format: one instruction, several scored completions."""

import math
from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Dropped, Record, Reply, messages, rest, text


def read(raw: dict[str, Any]) -> Record:
    """Read an instruction and completions, ranked by their overall scores."""
    completions = raw["completions"]
    replies = tuple(Reply(text(each["response"]), str(each.get("model", ""))) for each in completions)
    if len(replies) < 2:
        raise Dropped("fewer than two replies")
    scores = [each.get("overall_score") for each in completions]
    if any(
        isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score) for score in scores
    ):
        raise Dropped("a reply without a score")
    order = sorted(set(scores), reverse=True)
    ranks = tuple(order.index(score) + 1 for score in scores)
    said = (Annotation("ranking", tuple(range(len(replies))), ranks=ranks),)
    extra = rest(raw, "source", "instruction", "models", "completions")
    inner = [rest(each, "model", "response", "overall_score") for each in completions]
    return Record(messages(raw["instruction"]), replies, said, extra | ({"completions": inner} if any(inner) else {}))


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a ranking as scores that count down from the number of replies."""
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


ROW = Row("instruction completions", perhaps="models")
FORMAT = Format("ultrafeedback", "UltraFeedback", (ROW,), read, write, frozenset({"ranking"}))
