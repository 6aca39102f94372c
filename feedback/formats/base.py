"""The declaration of a format: how its rows are recognized, read and written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from feedback.formats.record import Record

Reader = Callable[[dict[str, Any]], Record]
Writer = Callable[[Record, int], dict[str, Any]]
COMPARED = frozenset({"comparison", "ranked pair", "corrected pair"})
EVERYTHING = frozenset({"everything"})  # for a format that holds every kind of feedback


def is_given(value: Any) -> bool:
    """Whether a value is present."""
    return value is not None


def is_text(value: Any) -> bool:
    """Whether a value is one text rather than a list of turns."""
    return isinstance(value, str)


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

    def evidence(self, raw: Mapping[str, Any]) -> int:
        """The evidence of the pattern that fits a row best; 0 if none fits."""
        return max(each.evidence(raw) for each in self.rows)
