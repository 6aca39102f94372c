"""Standing feedback as training examples, with a counted reason for everything left out.

The rules, all in one place:
- a choice of left or right is a `PreferencePair`; a tie is one of `ties`, from which reward models learn; "both bad"
  is a thumbs-down on each, unless that person gave the reply a thumb of their own; "can't tell" is nothing
- a ranking is every pair of its replies that are not tied, all with the ranking's `group`; where all of them are wrong
  each is a thumbs-down besides
- a correction is a `PreferencePair` (the text as it should have been over the reply as it was) and a `Demonstration`,
  as is a reply that was labelled one
- a thumb is an `UnpairedExample`
- what was taken back, what has no consent (of who said it, and of whose conversation it is: `consent`), and what is
  empty or equal on both sides teaches nothing; what one person said twice of the same texts counts once, and of two
  words that contradict each other the newer (`filtering`); nobody's words weigh more than others agree they should
  (`reliability`), and nobody carries more of the whole than their share (`caps`)
- implicit signals (retry, edit, copy, abandon) teach nothing
The same feedback gives the same examples in the same order, and the same hash.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from typing import Any

from feedback.database.database import Database
from feedback.examples import caps, filtering
from feedback.kinds import current
from feedback.kinds.current import Position, ReplyInContext
from feedback.kinds.ratings import NONE, UP
from feedback.messages import Message

TEACHING = ("votes", "comparisons", "rankings", "corrections", "labels")
DEMONSTRATION = "demonstration"  # the label
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
KINDS = ("pairs", "thumbs", "ties", "demonstrations")  # the fields of `Examples` that hold them
Made = tuple[str, Example]  # and when it was said
Row = dict[str, Any]


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
    rows = {table: current.rows(store, table, since) for table in TEACHING}
    told = current.texts(store, itertools.chain.from_iterable(map(replies_of, itertools.chain(*rows.values()))))
    said = {table: _usable(found, left_out) for table, found in rows.items()}
    made: list[Made] = [
        *_of_votes(said["votes"], told, left_out),
        *_of_comparisons(said["comparisons"], told, _own_thumbs(said["votes"]), left_out),
        *_of_rankings(said["rankings"], told, _own_thumbs(said["votes"]), left_out),
        *_of_corrections(said["corrections"], told, left_out),
        *_of_labels(said["labels"], told),
    ]
    kept = filtering.sift(made, left_out)
    found = Examples(
        pairs=tuple(each for each in kept if isinstance(each, PreferencePair) and each.kind != TIE),
        thumbs=tuple(each for each in kept if isinstance(each, UnpairedExample)),
        left_out=dict(sorted(left_out.items())),
        ties=tuple(each for each in kept if isinstance(each, PreferencePair) and each.kind == TIE),
        demonstrations=tuple(each for each in kept if isinstance(each, Demonstration)),
    )
    return caps.bounded(store, found)


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


def replies_of(row: dict[str, Any]) -> list[str]:
    """The replies that a row of feedback is about."""
    if "replies" in row:
        return list(json.loads(row["replies"]))
    return [row["reply"]] if "reply" in row else [row["left_reply"], row["right_reply"]]


def _usable(rows: list[Row], left_out: Counter[str]) -> list[Row]:
    """The rows that may teach."""
    unusable = sum(not row["usable"] and "label" not in row for row in rows)  # few labels teach: no news
    if unusable:
        left_out["no consent"] += unusable
    return [row for row in rows if row["usable"]]


def _own_thumbs(votes: list[Row]) -> set[tuple[int, str]]:
    return {(row["user"], row["reply"]) for row in votes if row["value"] != NONE}


def _of_votes(rows: list[Row], told: dict[str, ReplyInContext], left_out: Counter[str]) -> Iterator[Made]:
    for row in rows:
        if row["value"] == NONE:
            left_out["taken back"] += 1
        else:
            yield from _thumb(row, told[row["reply"]], row["value"] == UP, left_out)


def _of_comparisons(
    rows: list[Row], told: dict[str, ReplyInContext], own_thumbs: set[tuple[int, str]], left_out: Counter[str]
) -> Iterator[Made]:
    for row in rows:
        left, right = row["left_reply"], row["right_reply"]
        match row["choice"]:
            case "left":
                yield from _pair(row, told[left], told[right], "comparison", left_out)
            case "right":
                yield from _pair(row, told[right], told[left], "comparison", left_out)
            case "tie":
                left_out["tie"] += 1
                yield from _pair(row, told[left], told[right], TIE, left_out)
            case "both_bad":
                for reply in (left, right):
                    if (row["user"], reply) not in own_thumbs:
                        yield from _thumb(row, told[reply], False, left_out)
            case other:
                left_out[other.replace("_", " ")] += 1  # taken back, cannot tell


def _of_rankings(
    rows: list[Row], told: dict[str, ReplyInContext], own_thumbs: set[tuple[int, str]], left_out: Counter[str]
) -> Iterator[Made]:
    for row in rows:
        if row["taken_back"]:
            left_out["taken back"] += 1
            continue
        group = f"ranking {row['id']}"
        ranked = sorted(zip(json.loads(row["ranks"]), json.loads(row["replies"]), strict=True), key=itemgetter(0))
        for (better_rank, better), (worse_rank, worse) in itertools.combinations(ranked, 2):
            if better_rank == worse_rank:
                left_out["tie"] += 1
                yield from _pair(row, told[better], told[worse], TIE, left_out, group)
            else:
                yield from _pair(row, told[better], told[worse], "ranking", left_out, group)
        for _, reply in ranked:
            if row["all_wrong"] and (row["user"], reply) not in own_thumbs:
                yield from _thumb(row, told[reply], False, left_out)


def _of_corrections(rows: list[Row], told: dict[str, ReplyInContext], left_out: Counter[str]) -> Iterator[Made]:
    for row in rows:
        rejected = told[row["reply"]]
        if not row["text"]:
            left_out["taken back"] += 1
        elif row["text"].strip() == rejected.text.strip():
            left_out["equal replies"] += 1
        else:
            chosen = Answer(row["text"])
            yield row["at"], PreferencePair(rejected.messages, chosen, answer_of(rejected), "correction", **_whose(row))
            yield row["at"], Demonstration(rejected.messages, chosen, **_whose(row))


def _of_labels(rows: list[Row], told: dict[str, ReplyInContext]) -> Iterator[Made]:
    for row in rows:
        of = told[row["reply"]]
        if row["label"] == DEMONSTRATION and row["given"] and of.text.strip():
            yield row["at"], Demonstration(of.messages, answer_of(of), **_whose(row))


def answer_of(told: ReplyInContext) -> Answer:
    """A reply of the ledger as a trainer sees it."""
    return Answer(told.text, told.token_ids, told.template_sha256, told.finish)


def _whose(row: Row) -> dict[str, Any]:
    return {"user": row["user"], "by": row["by"], "owner": row["owner"]}


def _thumb(row: Row, told: ReplyInContext, wanted: bool, left_out: Counter[str]) -> Iterator[Made]:
    if not told.text.strip():
        left_out["empty reply"] += 1
    else:
        yield row["at"], UnpairedExample(told.messages, answer_of(told), wanted, **_whose(row))


def _pair(
    row: Row, better: ReplyInContext, worse: ReplyInContext, kind: str, left_out: Counter[str], group: str = ""
) -> Iterator[Made]:
    if not better.text.strip():
        left_out["empty reply"] += 1
    elif better.text == worse.text:
        left_out["equal replies"] += 1
    else:
        more = _whose(row) | {"group": group, "strength": row.get("strength")}
        yield row["at"], PreferencePair(better.messages, answer_of(better), answer_of(worse), kind, **more)
