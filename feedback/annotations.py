"""One row of a data set in any format: a conversation, replies to it, and the feedback on those replies."""

from dataclasses import dataclass, field
from typing import Any

from feedback.messages import Message

DEMONSTRATION = "demonstration"  # the label of a reply that is exactly as it should be


@dataclass(frozen=True)
class Reply:
    """A reply's text, and who wrote it: an adapter, "base" or another model; empty if unknown."""

    text: str
    model: str = ""
    id: str = ""  # set by formats that identify replies, so that rows about the same reply share it


@dataclass(frozen=True)
class Annotation:
    """One rater's feedback on some of a row's replies; `of` holds their indices. The fields are as in the ledger."""

    kind: str  # the name of a kind of feedback: "comparison", "thumb", ...
    of: tuple[int, ...]
    rater: str = ""
    at: str = ""
    choice: str = ""
    strength: int | None = None
    ranks: tuple[int, ...] = ()
    all_wrong: bool = False
    value: int = 0
    text: str = ""
    label: str = ""
    words: str = ""
    reasons: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)  # fields of a kind that has none here


@dataclass(frozen=True)
class Record:
    """A conversation, the replies to its last message, the feedback on them, and the row's other fields."""

    messages: tuple[Message, ...]
    replies: tuple[Reply, ...]
    said: tuple[Annotation, ...]
    extra: dict[str, Any] = field(default_factory=dict)
    message: str = ""  # the id of the last message, as `Reply.id`
