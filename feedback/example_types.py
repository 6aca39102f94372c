"""What a trainer learns from: preference pairs, unpaired examples, demonstrations."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
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


KINDS = ("pairs", "thumbs", "ties", "demonstrations")  # the fields of `Examples` that hold them


@dataclass(frozen=True)
class Examples:
    """What stands of what people said, as a trainer sees it."""

    pairs: tuple[PreferencePair, ...] = ()
    thumbs: tuple[UnpairedExample, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    ties: tuple[PreferencePair, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()

    @property
    def sha256(self) -> str:
        """Hex digest of everything that would be trained on."""
        digest = hashlib.sha256()
        for kind in KINDS:
            for each in getattr(self, kind):
                trained_on = {name: value for name, value in asdict(each).items() if name != "owner"}
                digest.update(json.dumps({kind: trained_on}, sort_keys=True).encode())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Example]:
        return itertools.chain.from_iterable(getattr(self, kind) for kind in KINDS)

    def __len__(self) -> int:
        return sum(len(getattr(self, kind)) for kind in KINDS)

    def counts(self) -> dict[str, Any]:
        """How many of each kind there are, and what was left out and why."""
        kinds = Counter(pair.kind for pair in (*self.pairs, *self.ties))
        if self.demonstrations:
            kinds["demonstration"] = len(self.demonstrations)
        ups = sum(thumb.wanted for thumb in self.thumbs)
        return {**kinds, "thumbs_up": ups, "thumbs_down": len(self.thumbs) - ups, "left_out": self.left_out}

    def with_weights(self, weights: Mapping[int, float]) -> "Examples":
        """The same, each with the weight of who gave it."""
        kinds: dict[str, Any] = {
            name: tuple(replace(each, weight=weights[each.user]) for each in getattr(self, name)) for name in KINDS
        }
        return replace(self, **kinds)

    def people(self) -> dict[int, int]:
        """How many examples hold each person's words: those that they said, and those of their conversations."""
        return dict(Counter(person for each in self for person in {each.user, each.owner or each.user}))
