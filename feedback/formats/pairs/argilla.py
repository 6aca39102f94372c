"""The format of Argilla's records."""

from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Dropped, Record, Reply, as_turns, messages, rest, text


def read(raw: dict[str, Any]) -> Record:
    """Read a record with the fields prompt, response_a and response_b, and the question preference."""
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


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a record with one answer."""
    (said,) = row.said
    left, right = (row.replies[each] for each in said.of)
    value = {"left": "response_a", "right": "response_b"}.get(said.choice, said.choice)
    return {
        "id": str(number),
        "fields": {"prompt": as_turns(row.messages), "response_a": left.text, "response_b": right.text},
        "metadata": {"model_a": left.model, "model_b": right.model} | row.extra.pop("metadata", {}),
        "responses": {"preference": [{"value": value, "user_id": said.rater}]},
    }


ROW = Row("fields responses", perhaps="metadata")
FORMAT = Format("argilla", "Argilla records", (ROW,), read, write, frozenset({"comparison"}))
