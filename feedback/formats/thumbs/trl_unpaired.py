"""TRL's unpaired preference format.

Also reads thumbs as {prompt, response, thumb}, and a conversation with a label of its last reply, as LLaMA-Factory's.
"""

from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Dropped, Record, Reply, as_turns, messages, rest, text
from feedback.formats.turns.sides import asked, completed
from feedback.formats.turns.verdicts import verdict


def read(raw: dict[str, Any]) -> Record:
    """Read a labelled completion, a labelled conversation, or a thumb as {prompt, response, thumb}."""
    if "thumb" in raw and "response" in raw:
        return _thumb(raw)
    name = "label" if "label" in raw else "kto_tag"
    good = verdict(raw[name])
    if good is None:
        raise Dropped("a label that is neither true nor false")
    prompt, known = asked(raw)
    reply = next((each for each in ("completion", "output") if raw.get(each) is not None), None)
    if reply is None:  # the reply is the conversation's last turn
        told, completion = completed(None, prompt)
    else:
        told, completion = completed(prompt, raw[reply])
    said = Annotation("thumb", (0,), value=1 if good else -1)
    return Record(told, (completion,), (said,), rest(raw, name, *known, *([reply] if reply else [])))


def _thumb(raw: dict[str, Any]) -> Record:
    good = verdict(raw["thumb"])
    if good is None:
        raise Dropped("a thumb that is neither up nor down")
    said = Annotation("thumb", (0,), raw.get("rater") or "", value=1 if good else -1)
    reply = Reply(text(raw["response"]), raw.get("model") or "")
    return Record(messages(raw["prompt"]), (reply,), (said,), rest(raw, "prompt", "response", "thumb"))


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a conversational row with a label."""
    (said,) = row.said
    completion = [{"role": "assistant", "content": row.replies[0].text}]
    return {"prompt": as_turns(row.messages), "completion": completion, "label": said.value == 1}


ROWS = (
    Row("completion label", perhaps="prompt system"),
    Row("thumb response", perhaps="prompt system"),
    Row("messages label", perhaps="system"),
    Row("messages kto_tag", perhaps="system"),
    Row("conversations label", perhaps="system"),
    Row("conversations kto_tag", perhaps="system"),
    Row("instruction output kto_tag", perhaps="input system history"),
)
FORMAT = Format("trl-unpaired", "TRL unpaired preference", ROWS, read, write, frozenset({"thumb"}))
