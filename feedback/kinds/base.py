"""What a kind of feedback declares. Lists, API, nights, exports and forgetting iterate over the declarations.

A kind is one file in this folder: its table, how a row is written, what it teaches, how it is exported. What is said is
appended, never changed: the newest row of a person about a thing is what stands, one that takes it back among them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from feedback.annotations import Annotation, Record
from feedback.database import migrations
from feedback.example_types import Answer, Made, PreferencePair, UnpairedExample
from feedback.messages import Message

Row = dict[str, Any]  # of a kind's table
ReplyId = Annotated[str, Field(description="A reply's id: of a chat, of a pair, or of /v1/chat/completions.")]


class Body(BaseModel):
    """What is sent to the API. Nothing is guessed: "1" is no number, and a misspelt field no silence."""

    model_config = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class ReplyInContext:
    """A reply with all that came before it."""

    id: str
    parent: str
    conversation: str
    messages: tuple[Message, ...]
    text: str
    model: str  # the adapter that wrote it, "base", or another model's name; empty where nobody knows
    token_ids: tuple[int, ...]
    template_sha256: str | None
    finish: str


@dataclass(frozen=True)
class Daily:
    """A number that the operate page shows by day; `rows` is SQL: which rows count, without it all that give."""

    name: str
    title: str
    rows: str = ""


@dataclass(frozen=True)
class Kind:
    """One kind of feedback.

    Its table has the columns id, user and at, and where it is no trace an index by (user, at); the API takes it at
    /api/ and the table's name.
    """

    table: str
    name: str  # in the annotations of files: "thumb"
    help: str  # one sentence for who sends it
    body: type[Body]
    write: Callable[
        ..., int
    ]  # of the store, the user and the body's fields; the row's id. Raises `Refused`, `NotFound`

    # Which rows are about the same thing, and how those of a reply are found: columns and SQL
    thing: tuple[str, ...] = ("reply",)
    either_way: bool = False  # whether the thing is two columns that may be exchanged
    about: str = "reply"  # the column that names a message of the conversation
    of_reply: str = "reply = :reply"  # SQL: the rows about a reply; :parent is the message it answers
    replies: Callable[[Row], list[str]] = lambda row: [row["reply"]]  # that a row is about
    taken_back: tuple[str, str | int] | None = None  # the column, and its value in a row that takes back
    trace: bool = False  # of use, and nobody's word: kept in the history, and neither counted nor used nor exported

    json_columns: tuple[str, ...] = ()
    forgotten: Mapping[str, str] = field(default_factory=dict)  # column -> what it says once its person is forgotten
    quotes: tuple[str, ...] = ()  # those of them that go with the conversation, too, whoever said it
    daily: tuple[Daily, ...] = ()

    # What it teaches: the examples of a standing row, and what it says from -1 to 1 of a thing that others may rate
    examples: Callable[[Row, "Context"], Iterator[Made]] | None = None
    seldom_teaches: bool = False  # most rows teach nothing, so of those that may not be used nothing is said
    ratings: Callable[[Row], Iterator[tuple[str, float]]] | None = None

    # How it is exported and imported
    says: Callable[[Row], dict[str, Any]] = lambda row: {}  # the fields of its annotation
    possible: Callable[[Annotation], bool] = lambda said: len(said.of) == 1  # whether it can be said here
    row: Callable[[Annotation, str | None, list[str]], Row] = lambda said, parent, replies: {"reply": replies[0]}
    instead: Mapping[str, Callable[[Record], Iterator[Record]]] = field(default_factory=dict)
    """What formats that do not hold the kind itself may hold of it: "ranked pair" and the like -> its records."""

    steps: Mapping[str, str] = field(default_factory=dict)  # name -> SQL that makes the table, and later changes to it

    def gives(self, alias: str = "") -> str:
        """SQL: whether a row says something, and does not take it back."""
        if self.taken_back is None:
            return "1"
        column, value = self.taken_back
        return f"{alias and alias + '.'}{column} <> {_quoted(value)}"

    def is_taken_back(self, row: Row) -> bool:
        """Whether a row takes back what was said before."""
        return self.taken_back is not None and row[self.taken_back[0]] == self.taken_back[1]

    def same(self) -> tuple[str, ...]:
        """SQL, each by an index: whether a row n is about the same thing as a row t."""
        orders = (self.thing, self.thing[::-1]) if self.either_way else (self.thing,)
        return tuple(
            " AND ".join(f"n.{theirs} = t.{ours}" for ours, theirs in zip(self.thing, order, strict=True))
            for order in orders
        )

    def key(self) -> str:
        """SQL: what a row is about, the same for all rows about it."""
        columns = ", ".join(self.thing)
        return f"min({columns}), max({columns})" if self.either_way else columns


@dataclass(frozen=True)
class Context:
    """What examples are made with: the replies with their contexts, by id, and all rows that give something, by table.

    `left_out` counts, by reason, what teaches nothing.
    """

    told: Mapping[str, ReplyInContext]
    rows: Mapping[str, Sequence[Row]]
    left_out: Counter[str]
    _said: dict[str, set[tuple[int, str]]] = field(default_factory=dict)

    def has_said(self, kind: Kind, user: int, reply: str) -> bool:
        """Whether somebody said something of this kind of a reply."""
        if kind.table not in self._said:
            rows = self.rows.get(kind.table, ())
            self._said[kind.table] = {(row["user"], each) for row in rows for each in kind.replies(row)}
        return (user, reply) in self._said[kind.table]

    def thumb(self, row: Row, reply: str, wanted: bool) -> Iterator[Made]:
        """A reply that is wanted or not, unless it is empty."""
        told = self.told[reply]
        if not told.text.strip():
            self.left_out["empty reply"] += 1
        else:
            yield row["at"], UnpairedExample(told.messages, answer_of(told), wanted, **whose(row))

    def pair(self, row: Row, better: str, worse: str, kind: str, group: str = "") -> Iterator[Made]:
        """A reply that is better than another, unless it is empty or they are equal."""
        first, second = self.told[better], self.told[worse]
        if not first.text.strip():
            self.left_out["empty reply"] += 1
        elif first.text == second.text:
            self.left_out["equal replies"] += 1
        else:
            more = whose(row) | {"group": group, "strength": row.get("strength")}
            yield row["at"], PreferencePair(first.messages, answer_of(first), answer_of(second), kind, **more)


def answer_of(told: ReplyInContext) -> Answer:
    """A reply of the ledger as a trainer sees it."""
    return Answer(told.text, told.token_ids, told.template_sha256, told.finish)


def whose(row: Row) -> dict[str, Any]:
    """Who said it, what they are, and whose conversation it is of, as examples name them."""
    return {"user": row["user"], "by": row["by"], "owner": row["owner"]}


def of_two(left: str, right: str, value: float) -> tuple[str, float]:
    """Two replies as a thing that several people may rate; `value` is for the left one."""
    first, second = sorted((left, right))
    return f"{first} {second}", value if first == left else -value


KINDS: dict[str, Kind] = {}  # by table, in the order in which lists name them


def register(kind: Kind) -> Kind:
    """Declare a kind, once in a process; databases that are open make its table before they are used again."""
    if kind.table in KINDS or named(kind.name):
        raise ValueError(f"there is a kind of feedback {kind.name!r} or a table {kind.table!r} already")
    migrations.add_steps(kind.steps)
    KINDS[kind.table] = kind
    return kind


def spoken() -> list[Kind]:
    """The kinds that are somebody's word, and no trace of use."""
    return [kind for kind in KINDS.values() if not kind.trace]


def teaching() -> list[Kind]:
    """The kinds that examples are made of."""
    return [kind for kind in KINDS.values() if kind.examples]


def named(name: str) -> Kind | None:
    """The kind that annotations call so."""
    return next((kind for kind in KINDS.values() if kind.name == name), None)


def _quoted(value: str | int) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
