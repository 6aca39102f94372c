"""What a format declares: how its rows are told from others', read and written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from feedback.formats.record import Record

Reader = Callable[[dict[str, Any]], Record]
Writer = Callable[[Record, int], dict[str, Any]]
COMPARED = frozenset({"comparison", "ranked pair", "corrected pair"})
EVERYTHING = frozenset({"everything"})  # a format that holds every kind there is


def is_given(value: Any) -> bool:
    """Whether there is a value at all."""
    return value is not None


def is_text(value: Any) -> bool:
    """Whether a value is one text, rather than turns."""
    return isinstance(value, str)


@dataclass(frozen=True)
class Row:
    """The evidence that a row is in a format, as names of fields with spaces between them.

    A row has all of `fields`, perhaps some of `perhaps`, none of `without`, and values for which `where` holds.
    """

    fields: str
    perhaps: str = ""
    without: str = ""
    where: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)

    def evidence(self, raw: Mapping[str, Any]) -> int:
        """How much of a row this accounts for: its fields and conditions that are met; 0 where it is another's."""
        fields = self.fields.split()
        if not raw.keys() >= set(fields) or any(raw.get(name) is not None for name in self.without.split()):
            return 0
        if not all(holds(raw.get(name)) for name, holds in self.where.items()):
            return 0
        return len(fields) + sum(name in raw for name in self.perhaps.split()) + len(self.where)


@dataclass(frozen=True)
class Format:
    """One kind of file. `kinds` are what of the ledger it holds (or `EVERYTHING`); without `write` it is only read."""

    name: str
    words: str
    rows: tuple[Row, ...]  # it is enough to look like one of these
    read: Reader
    write: Writer | None = None
    kinds: frozenset[str] = frozenset()

    def evidence(self, raw: Mapping[str, Any]) -> int:
        """How much of a row its own rows account for; 0 where it is none of them."""
        return max(each.evidence(raw) for each in self.rows)
