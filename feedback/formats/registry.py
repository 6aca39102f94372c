"""The registry of formats, and the recognition of a row's format.

Each format has its own file, in the folders beside this one; a plug-in with its own format calls `register`.
"""

import pkgutil
import shlex
from collections import Counter
from collections.abc import Iterable
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any

from feedback import formats
from feedback.errors import Refused
from feedback.formats.base import Format
from feedback.formats.columns import declared, example, format_of_columns, require_columns
from feedback.formats.sources.rows import read

FAMILIES = tuple(f"{formats.__name__}.{family}" for family in ("chats", "pairs", "ratings", "thumbs"))
FIRST_ROWS = 100  # of a file; its format is the one that most speaks for in all of them together
FORMATS: dict[str, Format] = {}


def register(added: Format) -> None:
    """Add a format. Raises `ValueError` on a name in use."""
    if added.name in FORMATS:
        raise ValueError(f"there is a format {added.name!r} already")
    FORMATS[added.name] = added


def _register_ours() -> None:
    """Register the one format that each module in the families' folders declares."""
    for family in FAMILIES:
        for each in pkgutil.iter_modules(import_module(family).__path__, f"{family}."):
            register(import_module(each.name).FORMAT)


_register_ours()


def writable() -> tuple[str, ...]:
    """The names of the formats that can be written."""
    return tuple(name for name, each in FORMATS.items() if each.write)


def format_named(name: str) -> Format:
    """The format of this name. Raises `Refused` on an unknown one."""
    if name not in FORMATS:
        raise Refused(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of_file(path: Path, name: str = "", columns: str = "") -> Format:
    """The format of a file: the one named, that of the columns declared, or the one that its first rows are in.

    Raises `Refused`, also on a file that cannot be read so far.
    """
    if name and columns:
        raise Refused("--format and --columns each say what the columns mean; give one of them")
    if name:
        return format_named(name)
    rows = (raw for raw in islice(read(path), FIRST_ROWS) if isinstance(raw, dict))
    if columns:
        mapping = declared(columns)
        require_columns(mapping, rows)
        return format_of_columns(mapping)
    first = next(rows, None)
    if first is None:
        raise Refused(f"{path.name} holds no row that can be read")
    return format_of(first, rows)


def format_of(raw: dict[str, Any], others: Iterable[dict[str, Any]] = ()) -> Format:
    """The format with the most evidence for a row, and for others of the same file.

    Raises `Refused` if there is none, or two have the most.
    """
    found: Counter[str] = Counter()
    fields: set[str] = set()
    fullest = raw
    for row in chain([raw], others):
        found.update({name: each.evidence(row) for name, each in FORMATS.items()})
        fields |= row.keys()
        fullest = max(fullest, row, key=len)
    most = max(found.values())
    best = sorted(name for name, evidence in found.items() if evidence == most)
    named = ", ".join(sorted(fields)[:8])
    if not most:
        raise Refused(f"no format known here has rows with {named}; {_way_out(fullest)}")
    if len(best) > 1:
        raise Refused(f"a row with {named} may be {' or '.join(best)}; name one of them with --format")
    return FORMATS[best[0]]


def _way_out(raw: dict[str, Any]) -> str:
    """How to import rows of no known format: the columns declared, as they may be for a row like this one."""
    if not raw:
        return "name one with --format"
    columns, better = example(raw)
    line = f"name one with --format, or say which column is what, for example: --columns {shlex.quote(columns)}"
    return f"{line}; only if {better} is the better reply in every row" if better else line
