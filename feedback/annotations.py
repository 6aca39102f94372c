"""One row of a data set, whatever its format: a conversation, replies to it, and what was said of those."""

from dataclasses import dataclass, field
from typing import Any

from feedback.messages import Message

DEMONSTRATION = "demonstration"  # the label of a reply that is just as it should be


@dataclass(frozen=True)
class Reply:
    """A reply's text, and who wrote it: an adapter, "base", another model; empty where nobody knows."""

    text: str
    model: str = ""
    id: str = ""  # where a format tells whether two rows are of the same reply


@dataclass(frozen=True)
class Annotation:
    """What one rater said of some of a row's replies, `of` being their numbers; the fields are as in the ledger."""

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
    more: dict[str, Any] = field(default_factory=dict)  # what a kind says that no field here can hold


@dataclass(frozen=True)
class Record:
    """A conversation, the replies to its last message, what was said of them, and what else the row held."""

    messages: tuple[Message, ...]
    replies: tuple[Reply, ...]
    said: tuple[Annotation, ...]
    extra: dict[str, Any] = field(default_factory=dict)
    message: str = ""  # the id of the last message, as with a reply's
