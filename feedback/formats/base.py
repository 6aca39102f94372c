"""The declaration of a format: how its rows are recognized, read and written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from feedback.formats.record import Dropped, Record
from feedback.formats.turns import content, verdicts
from feedback.messages import Message

Reader = Callable[[dict[str, Any]], Record]
Writer = Callable[[Record, int], dict[str, Any]]
COMPARED = frozenset({"comparison", "ranked pair", "corrected pair"})
SYSTEM = ("system", "system_prompt", "system_message")
EVERYTHING = frozenset({"everything"})  # for a format that holds every kind of feedback


JUDGED = f"chosen rejected rejected_response rejected_messages {verdicts.COLUMNS}"  # none of a demonstration's


def is_given(value: Any) -> bool:
    """Whether a value is present."""
    return value is not None


def is_list(value: Any) -> bool:
    """Whether a value is a list."""
    return isinstance(value, list)


@dataclass(frozen=True)
class Row:
    """The pattern of a format's rows; names of fields are separated by spaces.

    A row has all of `fields`, perhaps some of `perhaps`, none of `without`, and values that meet `where`.
    """

    fields: str
    perhaps: str = ""
    without: str = ""
    where: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)

    def evidence(self, raw: Mapping[str, Any]) -> int:
        """The number of fields and conditions that a row matches; 0 if the pattern does not fit."""
        fields = self.fields.split()
        if not raw.keys() >= set(fields) or any(raw.get(name) is not None for name in self.without.split()):
            return 0
        if not all(holds(raw.get(name)) for name, holds in self.where.items()):
            return 0
        return len(fields) + sum(name in raw for name in self.perhaps.split()) + len(self.where)


@dataclass(frozen=True)
class Format:
    """One format. `kinds` are the kinds of feedback it holds, or `EVERYTHING`; without `write` it is import-only."""

    name: str
    words: str
    rows: tuple[Row, ...]  # a row need match only one
    read: Reader
    write: Writer | None = None
    kinds: frozenset[str] = frozenset()

    def record(self, raw: dict[str, Any]) -> Record:
        """Read a row, with the system message of a column of its own before the conversation.

        Raises `Dropped` on a row that cannot be kept, and Python's own exceptions on one that the format does not have.
        """
        content.require_text_alone(raw)
        row = self.read(raw)
        return row if self.kinds == EVERYTHING else _with_system(row)

    def evidence(self, raw: Mapping[str, Any]) -> int:
        """The evidence of the pattern that fits a row best; 0 if none fits."""
        return max(each.evidence(raw) for each in self.rows)


def _with_system(row: Record) -> Record:
    """A record whose extra fields hold no system message any more: it stands before the conversation."""
    for name in SYSTEM:
        said = row.extra.get(name)
        if said is None or said != said or (isinstance(said, str) and not said.strip()):  # NaN is no message either
            continue
        if not isinstance(said, str):
            raise Dropped("a system message that is not text")
        if row.messages[0].role == "system" and row.messages[0].content != said:
            raise Dropped("two system messages that differ")
        told = row.messages if row.messages[0].role == "system" else (Message("system", said), *row.messages)
        row = replace(row, messages=told, extra={key: each for key, each in row.extra.items() if key != name})
    return row
