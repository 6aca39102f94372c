"""What a trainer learns from: preference pairs, unpaired examples, demonstrations."""

from dataclasses import dataclass, field
from typing import Any

from feedback.messages import Message

TIE = "tie"  # the kind of a pair that is none


@dataclass(frozen=True)
class Answer:
    """One reply as a trainer sees it."""

    text: str
    token_ids: tuple[int, ...] = ()  # as they were sampled; empty where a person wrote it
    template_sha256: str | None = None  # whose token ids they are
    finish: str = "stop"  # only a reply that ended by itself has an end to learn


@dataclass(frozen=True)
class PreferencePair:
    """Two replies to one conversation, the preferred one first (of a tie: the one that was on the left)."""

    messages: tuple[Message, ...]
    chosen: Answer
    rejected: Answer
    kind: str = "comparison"  # "comparison", "ranking", "correction", or "tie"
    weight: float = field(default=1.0, compare=False)  # changes with what others say
    user: int = 0  # who said so
    by: str = "person"  # what they are: "person", "anonymous", "model" or "imported"
    group: str = ""  # of all pairs of one ranking
    strength: int | None = None  # 1 to 5, where it was said
    owner: int = field(default=0, compare=False)  # whose conversation it is of

    def meaning(self) -> tuple[Any, Any]:
        """What it is about, and what it says of that."""
        texts = frozenset((self.chosen.text, self.rejected.text))
        return (PreferencePair, self.user, self.messages, texts), None if self.kind == TIE else self.chosen.text


@dataclass(frozen=True)
class UnpairedExample:
    """One reply to one conversation, wanted or not."""

    messages: tuple[Message, ...]
    answer: Answer
    wanted: bool
    weight: float = field(default=1.0, compare=False)
    user: int = 0  # who said so
    by: str = "person"
    owner: int = field(default=0, compare=False)  # whose conversation it is of

    def meaning(self) -> tuple[Any, Any]:
        """What it is about, and what it says of that."""
        return (UnpairedExample, self.user, self.messages, self.answer.text), self.wanted


@dataclass(frozen=True)
class Demonstration:
    """A conversation, and the reply that it should have had."""

    messages: tuple[Message, ...]
    answer: Answer
    weight: float = field(default=1.0, compare=False)
    user: int = 0  # who said so
    by: str = "person"
    owner: int = field(default=0, compare=False)  # whose conversation it is of

    def meaning(self) -> tuple[Any, Any]:
        """What it is about, and what it says of that."""
        return (Demonstration, self.user, self.messages, self.answer.text), True


Example = PreferencePair | UnpairedExample | Demonstration
Made = tuple[str, Example]  # and when it was said
