"""Standing feedback as training examples, with a counted reason for everything left out.

Each kind of feedback says in its file what its rows teach. Nothing is taught by what was taken back, what has no
consent (of who said it, and of whose conversation it is: `consent`), and what is empty or equal on both sides. What one
person said twice of the same texts counts once, and of two words that contradict each other the newer (`filtering`);
nobody's words weigh more than others agree they should (`reliability`), and nobody carries more of the whole than their
share (`caps`).
The same feedback gives the same examples in the same order, and the same hash.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from feedback.database.database import Database
from feedback.example_types import TIE, Demonstration, Example, PreferencePair, UnpairedExample
from feedback.example_types import Answer as Answer
from feedback.examples import caps, filtering
from feedback.kinds import current
from feedback.kinds.base import Context, Kind, Row, teaching
from feedback.kinds.base import answer_of as answer_of
from feedback.kinds.current import Position
from feedback.messages import Message

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


@dataclass(frozen=True)
class SoftLabel:
    """Two replies to one conversation, and the weighted share of people that prefer the first; ties are a half each."""

    messages: tuple[Message, ...]
    first: str
    second: str
    share: float  # 0 to 1
    people: int


def gather(store: Database, since: Position | None = None) -> Examples:
    """Everything that stands, or what stands of what was said since a position, as examples, oldest feedback first."""
    left_out: Counter[str] = Counter()
    kinds = teaching()
    rows = {kind.table: current.rows(store, kind, since) for kind in kinds}
    replies = (reply for kind in kinds for row in rows[kind.table] for reply in kind.replies(row))
    told = current.texts(store, replies)
    said = {kind.table: _giving(kind, rows[kind.table], left_out) for kind in kinds}
    context = Context(told, said, left_out)
    made = [each for kind in kinds if kind.examples for row in said[kind.table] for each in kind.examples(row, context)]
    kept = filtering.sift(made, left_out)
    found = Examples(
        pairs=tuple(each for each in kept if isinstance(each, PreferencePair) and each.kind != TIE),
        thumbs=tuple(each for each in kept if isinstance(each, UnpairedExample)),
        left_out=dict(sorted(left_out.items())),
        ties=tuple(each for each in kept if isinstance(each, PreferencePair) and each.kind == TIE),
        demonstrations=tuple(each for each in kept if isinstance(each, Demonstration)),
    )
    return caps.bounded(store, found)


def _giving(kind: Kind, rows: list[Row], left_out: Counter[str]) -> list[Row]:
    """The rows that may teach; the others are counted."""
    giving = []
    for row in rows:
        if row["usable"] and not kind.is_taken_back(row):
            giving.append(row)
        elif not kind.seldom_teaches:
            left_out["taken back" if row["usable"] else "no consent"] += 1
    return giving


def still_standing(store: Database, examples: Examples) -> Examples:
    """Those of examples gathered before that may be used now: not taken back, and consented to by both."""
    now = set(gather(store))
    kept: dict[str, Any] = {kind: tuple(each for each in getattr(examples, kind) if each in now) for kind in KINDS}
    return replace(examples, **kept)


def soft_labels(examples: Examples) -> list[SoftLabel]:
    """Where several people compared the same two texts, what share of their weight is on each side."""
    sums: dict[tuple[Any, ...], list[tuple[float, float, int]]] = {}
    for each in (*examples.pairs, *examples.ties):
        first, second = sorted((each.chosen.text, each.rejected.text))
        share = 0.5 if each.kind == TIE else float(each.chosen.text == first)
        sums.setdefault((each.messages, first, second), []).append((share, each.weight, each.user))
    made = []
    for (messages, first, second), said in sums.items():
        share = sum(share * weight for share, weight, _ in said) / sum(weight for _, weight, _ in said)
        made.append(SoftLabel(messages, first, second, share, len({user for *_, user in said})))
    return made
