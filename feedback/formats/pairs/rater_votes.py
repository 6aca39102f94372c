"""The format for two replies and the votes of several raters."""

from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Dropped, Record, Reply, messages, rest, text


def read(raw: dict[str, Any]) -> Record:
    """Read two replies and several raters' votes, a common layout of human evaluations."""
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


ROW = Row("votes response_a", perhaps="response_b prompt")
FORMAT = Format("votes", "two replies and several raters' votes (import only)", (ROW,), read)
