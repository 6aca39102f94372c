"""Training examples: preference pairs, unpaired examples and demonstrations."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from feedback.messages import Message

TIE = "tie"  # the kind of a pair in which neither reply is preferred


@dataclass(frozen=True)
class Answer:
    """One reply as a trainer sees it."""

    text: str
    token_ids: tuple[int, ...] = ()  # as sampled; empty if a person wrote the text
    template_sha256: str | None = None  # of the chat template that `token_ids` were sampled under
    finish: str = "stop"  # the end of a reply is learned only if it is "stop"


@dataclass(frozen=True)
class PreferencePair:
    """Two replies to one conversation, the preferred one first (in a tie, the one shown on the left)."""

    messages: tuple[Message, ...]
    chosen: Answer
    rejected: Answer
    kind: str = "comparison"  # "comparison", "ranking", "correction", or "tie"
    weight: float = field(default=1.0, compare=False)  # depends on other people's feedback, too
    user: int = 0  # who gave the feedback
    by: str = "person"  # the kind of user: "person", "anonymous", "model" or "imported"
    group: str = ""  # the same for all pairs of one ranking
    counts_as: float = field(default=1.0, compare=False)  # comparisons: each pair of a ranking of K replies as 2 / K
    strength: int | None = None  # 1 to 5, if given
    drawn: float = field(default=1.0, compare=False)  # its weight in estimates (`feedback.raters.propensity`)
    owner: int = field(default=0, compare=False)  # the owner of the conversation
    at: str = field(default="", compare=False)  # when the feedback was given

    def meaning(self) -> tuple[Any, Any]:
        """The subject (type, user, conversation, both texts), and the preferred text, None for a tie."""
        texts = frozenset((self.chosen.text, self.rejected.text))
        return (PreferencePair, self.user, self.messages, texts), None if self.kind == TIE else self.chosen.text


@dataclass(frozen=True)
class UnpairedExample:
    """One reply to one conversation, wanted or not."""

    messages: tuple[Message, ...]
    answer: Answer
    wanted: bool
    counts_as: ClassVar[float] = 1.0
    weight: float = field(default=1.0, compare=False)
    user: int = 0  # who gave the feedback
    by: str = "person"
    owner: int = field(default=0, compare=False)  # the owner of the conversation
    at: str = field(default="", compare=False)  # when the feedback was given

    def meaning(self) -> tuple[Any, Any]:
        """The subject (type, user, conversation, text), and whether the reply is wanted."""
        return (UnpairedExample, self.user, self.messages, self.answer.text), self.wanted


@dataclass(frozen=True)
class Demonstration:
    """A conversation and the reply that it should have had."""

    messages: tuple[Message, ...]
    answer: Answer
    counts_as: ClassVar[float] = 1.0
    weight: float = field(default=1.0, compare=False)
    user: int = 0  # who gave the feedback
    by: str = "person"
    owner: int = field(default=0, compare=False)  # the owner of the conversation
    at: str = field(default="", compare=False)  # when the feedback was given

    def meaning(self) -> tuple[Any, Any]:
        """The subject (type, user, conversation, text), and True: demonstrations never contradict each other."""
        return (Demonstration, self.user, self.messages, self.answer.text), True


Example = PreferencePair | UnpairedExample | Demonstration
Made = tuple[str, Example]  # with the time the feedback was given


KINDS = ("pairs", "thumbs", "ties", "demonstrations")  # the fields of `Examples` that hold them
NOT_TRAINED_ON = ("owner", "counts_as", "drawn", "at")  # fields of an example; what it counts as is in its weight


@dataclass(frozen=True)
class Examples:
    """The current feedback as a trainer sees it."""

    pairs: tuple[PreferencePair, ...] = ()
    thumbs: tuple[UnpairedExample, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    ties: tuple[PreferencePair, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()

    @property
    def sha256(self) -> str:
        """Hex digest of everything that would be trained on: all fields but `NOT_TRAINED_ON`."""
        digest = hashlib.sha256()
        for kind in KINDS:
            for each in getattr(self, kind):
                trained_on = {name: value for name, value in asdict(each).items() if name not in NOT_TRAINED_ON}
                digest.update(json.dumps({kind: trained_on}, sort_keys=True).encode())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Example]:
        return itertools.chain.from_iterable(getattr(self, kind) for kind in KINDS)

    def __len__(self) -> int:
        return sum(len(getattr(self, kind)) for kind in KINDS)

    def counts(self) -> dict[str, Any]:
        """The number of examples of each kind, and of those left out by reason."""
        kinds = Counter(pair.kind for pair in (*self.pairs, *self.ties))
        if self.demonstrations:
            kinds["demonstration"] = len(self.demonstrations)
        ups = sum(thumb.wanted for thumb in self.thumbs)
        return {**kinds, "thumbs_up": ups, "thumbs_down": len(self.thumbs) - ups, "left_out": self.left_out}

    @staticmethod
    def pairs_in(counts: Mapping[str, Any]) -> int:
        """The number of pairs, without ties, that `counts` tells of."""
        others = {TIE, "demonstration", "thumbs_up", "thumbs_down", "left_out"}
        return sum(count for kind, count in counts.items() if kind not in others)

    def with_weights(self, weights: Mapping[int, float]) -> "Examples":
        """The same examples, each with the weight of the person who gave it, times what it counts as."""
        kinds: dict[str, Any] = {
            name: tuple(replace(each, weight=weights[each.user] * each.counts_as) for each in getattr(self, name))
            for name in KINDS
        }
        return replace(self, **kinds)

    def with_others(self, others: "Examples") -> "Examples":
        """These examples followed by others of each kind, with the counts of these."""
        both: dict[str, Any] = {name: (*getattr(self, name), *getattr(others, name)) for name in KINDS}
        return replace(self, **both)

    def people(self) -> dict[int, int]:
        """The number of examples that contain each person's words: as the rater, or as the conversation's owner."""
        return dict(Counter(person for each in self for person in {each.user, each.owner or each.user}))
