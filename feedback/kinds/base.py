"""The declaration of a kind of feedback. Lists, API, nights, exports and forgetting iterate over the declarations.

A kind is one file in this folder: its table, how a row is written, what it teaches, how it is exported. Rows are
appended, never changed: a person's newest row about a target is current, including one that takes feedback back.
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

Row = dict[str, Any]  # a row of a kind's table, by column
ReplyId = Annotated[str, Field(description="A reply's id: of a chat, of a pair, or of /v1/chat/completions.")]


class Body(BaseModel):
    """The body of an API request. Nothing is coerced or ignored: "1" is not a number, a misspelt field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class ReplyInContext:
    """A reply and the conversation up to it."""

    id: str
    parent: str
    conversation: str
    messages: tuple[Message, ...]
    text: str
    model: str  # the adapter that wrote it, "base", or another model's name; empty if unknown
    token_ids: tuple[int, ...]
    template_sha256: str | None
    finish: str


@dataclass(frozen=True)
class Daily:
    """A daily count on the operate page. `rows` is SQL for the rows to count; empty: all that take nothing back."""

    name: str
    title: str
    rows: str = ""


@dataclass(frozen=True)
class Kind:
    """One kind of feedback.

    Its table has the columns id, user and at and, unless it is a trace, an index on (user, at); the API accepts it
    at /api/ and the table's name.
    """

    table: str
    name: str  # in annotations and files: "thumb"
    help: str  # one sentence for the sender
    body: type[Body]
    write: Callable[..., int]  # (store, user, body's fields) -> row id. Raises `Refused`, `NotFound`

    # The target of a row, and how the rows about a reply are found, as columns and SQL
    thing: tuple[str, ...] = ("reply",)
    either_way: bool = False  # whether `thing` is two columns whose order does not matter
    about: str = "reply"  # the column that holds the id of a message of the conversation
    of_reply: str = "reply = :reply"  # SQL condition; :parent is the message that the reply answers
    replies: Callable[[Row], list[str]] = lambda row: [row["reply"]]  # the ids of the replies that a row is about
    taken_back: tuple[str, str | int] | None = None  # column and value that mark a row as taking feedback back
    trace: bool = False  # a usage trace, not feedback: kept in the history, never counted, trained on or exported

    json_columns: tuple[str, ...] = ()
    forgotten: Mapping[str, str] = field(default_factory=dict)  # column -> its value once the person is forgotten
    quotes: tuple[str, ...] = ()  # those of them that are also blanked when the conversation is, whoever wrote them
    daily: tuple[Daily, ...] = ()

    # What it teaches: the examples of a current row, and its ratings, from -1 to 1, of items that others may rate, too
    examples: Callable[[Row, "Context"], Iterator[Made]] | None = None
    seldom_teaches: bool = False  # unusable rows are not counted as left out, since most rows teach nothing anyway
    ratings: Callable[[Row], Iterator[tuple[str, float]]] | None = None

    # How it is exported and imported
    says: Callable[[Row], dict[str, Any]] = lambda row: {}  # the fields of the row's annotation
    possible: Callable[[Annotation], bool] = lambda said: len(said.of) == 1  # whether this kind can hold it
    row: Callable[[Annotation, str | None, list[str]], Row] = lambda said, parent, replies: {"reply": replies[0]}
    instead: Mapping[str, Callable[[Record], Iterator[Record]]] = field(default_factory=dict)
    """What formats that do not hold the kind itself may hold of it: "ranked pair" and the like -> its records."""

    steps: Mapping[str, str] = field(default_factory=dict)  # name -> SQL that creates the table or changes it later

    def gives(self, alias: str = "") -> str:
        """SQL: whether a row gives feedback rather than taking it back."""
        if self.taken_back is None:
            return "1"
        column, value = self.taken_back
        return f"{alias and alias + '.'}{column} <> {_quoted(value)}"

    def is_taken_back(self, row: Row) -> bool:
        """Whether a row takes back earlier feedback."""
        return self.taken_back is not None and row[self.taken_back[0]] == self.taken_back[1]

    def same(self) -> tuple[str, ...]:
        """SQL conditions, each served by an index, of which one holds if rows n and t have the same target."""
        orders = (self.thing, self.thing[::-1]) if self.either_way else (self.thing,)
        return tuple(
            " AND ".join(f"n.{theirs} = t.{ours}" for ours, theirs in zip(self.thing, order, strict=True))
            for order in orders
        )

    def key(self) -> str:
        """SQL: the target of a row, the same for all rows about it."""
        columns = ", ".join(self.thing)
        return f"min({columns}), max({columns})" if self.either_way else columns


@dataclass(frozen=True)
class Context:
    """The input for making examples: replies with their contexts, by id, and all rows that give feedback, by table.

    `left_out` counts the rows that teach nothing, by reason.
    """

    told: Mapping[str, ReplyInContext]
    rows: Mapping[str, Sequence[Row]]
    left_out: Counter[str]
    drawn: Mapping[str, float] = field(default_factory=dict)  # question -> the weight of its answer in estimates
    _said: dict[str, set[tuple[int, str]]] = field(default_factory=dict)

    def has_said(self, kind: Kind, user: int, reply: str) -> bool:
        """Whether a person gave feedback of this kind on a reply."""
        if kind.table not in self._said:
            rows = self.rows.get(kind.table, ())
            self._said[kind.table] = {(row["user"], each) for row in rows for each in kind.replies(row)}
        return (user, reply) in self._said[kind.table]

    def thumb(self, row: Row, reply: str, wanted: bool) -> Iterator[Made]:
        """An unpaired example of a reply, unless the reply is empty."""
        told = self.told[reply]
        if not told.text.strip():
            self.left_out["empty reply"] += 1
        else:
            yield row["at"], UnpairedExample(told.messages, answer_of(told), wanted, **whose(row))

    def pair(self, row: Row, better: str, worse: str, kind: str, **more: Any) -> Iterator[Made]:
        """A preference pair, unless the better reply is empty or the two are equal; `more` are fields of it."""
        first, second = self.told[better], self.told[worse]
        if not first.text.strip():
            self.left_out["empty reply"] += 1
        elif first.text == second.text:
            self.left_out["equal replies"] += 1
        else:
            more |= whose(row) | {
                "strength": row.get("strength"),
                "drawn": self.drawn.get(row.get("question", ""), 1.0),
            }
            yield row["at"], PreferencePair(first.messages, answer_of(first), answer_of(second), kind, **more)


def answer_of(told: ReplyInContext) -> Answer:
    """A reply from the ledger as a trainer sees it."""
    return Answer(told.text, told.token_ids, told.template_sha256, told.finish)


def whose(row: Row) -> dict[str, Any]:
    """The user, their kind and the owner of the conversation, as fields of an example."""
    return {"user": row["user"], "by": row["by"], "owner": row["owner"]}


def of_two(left: str, right: str, value: float) -> tuple[str, float]:
    """A rating of two replies as one item, the same in either order; `value` is for the left one."""
    first, second = sorted((left, right))
    return f"{first} {second}", value if first == left else -value


KINDS: dict[str, Kind] = {}  # by table, in the order of lists


def register(kind: Kind) -> Kind:
    """Register a kind, once per process. Open databases create its table before they are used again.

    Raises `ValueError` on a name or table in use.
    """
    if kind.table in KINDS or named(kind.name):
        raise ValueError(f"there is a kind of feedback {kind.name!r} or a table {kind.table!r} already")
    migrations.add_steps(kind.steps)
    KINDS[kind.table] = kind
    return kind


def spoken() -> list[Kind]:
    """The kinds that are feedback rather than usage traces."""
    return [kind for kind in KINDS.values() if not kind.trace]


def teaching() -> list[Kind]:
    """The kinds from which examples are made."""
    return [kind for kind in KINDS.values() if kind.examples]


def named(name: str) -> Kind | None:
    """The kind with this name in annotations, if any."""
    return next((kind for kind in KINDS.values() if kind.name == name), None)


def _quoted(value: str | int) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
