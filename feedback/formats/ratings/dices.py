"""The DICES format: many raters' judgements of whether a reply is safe."""

import re
from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Record, Reply, messages, rest, text

SPEAKER = re.compile(r"^(USER|LAMDA): ?", re.MULTILINE)


def read(raw: dict[str, Any]) -> Record:
    """Read a conversation, a reply and many raters' safety votes; a rater's name is their place in the list."""
    parts = SPEAKER.split(raw["context"])[1:]
    turns = [
        {"role": "user" if who == "USER" else "assistant", "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    label = {"No": "unsafe", "Yes": "custom:safe", "Unsure": "custom:unsure"}
    said = tuple(Annotation("label", (0,), str(n), label=label[vote]) for n, vote in enumerate(raw["safe_votes"]))
    return Record(
        messages(turns), (Reply(text(raw["response"])),), said, rest(raw, "context", "response", "safe_votes")
    )


ROW = Row("safe_votes", perhaps="context response")
FORMAT = Format("safety", "DICES (import only)", (ROW,), read)
