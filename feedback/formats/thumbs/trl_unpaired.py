"""TRL's unpaired preference format; also reads thumbs as {prompt, response, thumb}."""

from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Dropped, Record, Reply, as_turns, messages, rest, text


def read(raw: dict[str, Any]) -> Record:
    """Read a labelled completion, or a thumb as {prompt, response, thumb}."""
    if "completion" in raw:
        if not isinstance(raw["label"], bool):
            raise Dropped("a label that is neither true nor false")
        said = Annotation("thumb", (0,), value=1 if raw["label"] else -1)
        extra = rest(raw, "prompt", "completion", "label")
        return Record(messages(raw["prompt"]), (Reply(text(raw["completion"])),), (said,), extra)
    if raw["thumb"] not in (1, 0, -1):
        raise Dropped("a thumb that is neither up nor down")
    said = Annotation("thumb", (0,), raw.get("rater") or "", value=1 if raw["thumb"] == 1 else -1)
    reply = Reply(text(raw["response"]), raw.get("model") or "")
    return Record(messages(raw["prompt"]), (reply,), (said,), rest(raw, "prompt", "response", "thumb"))


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a conversational row with a label."""
    (said,) = row.said
    completion = [{"role": "assistant", "content": row.replies[0].text}]
    return {"prompt": as_turns(row.messages), "completion": completion, "label": said.value == 1}


ROWS = (Row("completion label", perhaps="prompt"), Row("thumb response", perhaps="prompt"))
FORMAT = Format("trl-unpaired", "TRL unpaired preference", ROWS, read, write, frozenset({"thumb"}))
