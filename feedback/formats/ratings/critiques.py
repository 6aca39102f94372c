"""The format for critiques and revisions of a reply."""

from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Dropped, Record, Reply, messages, rest, text


def read(raw: dict[str, Any]) -> Record:
    """Read a reply with a critique, a revision or both."""
    said = []
    if raw.get("critique"):
        said.append(Annotation("critique", (0,), text=text(raw["critique"])))
    if raw.get("revision"):
        said.append(Annotation("correction", (0,), text=text(raw["revision"])))
    if not said:
        raise Dropped("nothing is said of the reply")
    extra = rest(raw, "prompt", "response", "critique", "revision")
    return Record(messages(raw["prompt"]), (Reply(text(raw["response"])),), tuple(said), extra)


ROW = Row("critique response", perhaps="prompt revision")
FORMAT = Format("critiques", "critiques and revisions (import only)", (ROW,), read)
