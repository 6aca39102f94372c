"""Writing of Parquet with pyarrow, an optional extra.

A column that Arrow has no type for, such as one of numbers and texts or of empty objects, is written as JSON text; a
mark on the column says so to whoever reads the file back.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from feedback.errors import Refused

AT_ONCE = 2000  # rows of a row group
MARK = {b"nightschool": b"json"}


def pyarrow() -> Any:
    """The module. Raises `Refused` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Refused("Parquet takes pyarrow; install it with: pip install 'nightschool[parquet]'") from None
    return pyarrow


def write(path: Path, names: list[str], rows: Callable[[], Iterable[dict[str, Any]]]) -> None:
    """Write rows with these columns; `rows` is called twice, since types are known only after the last row."""
    arrow = pyarrow()
    types: dict[str, Any] = {name: arrow.null() for name in names}
    for some in _groups(rows()):
        for name, before in types.items():
            types[name] = before and _type(arrow, before, [row.get(name) for row in some])
    while unfit := _unfit(path, types, rows):
        types[unfit] = None


def _unfit(path: Path, types: dict[str, Any], rows: Callable[[], Iterable[dict[str, Any]]]) -> str:
    """Write rows with columns of these types (None: JSON text); return a column whose values do not fit, if any."""
    arrow = pyarrow()
    schema = arrow.schema(
        [arrow.field(name, each or arrow.string(), True, _mark(each)) for name, each in types.items()]
    )
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        for some in _groups(rows()):
            arrays = []
            for name, type_ in types.items():
                try:
                    arrays.append(arrow.array([_cell(row, name, type_) for row in some], type_ or arrow.string()))
                except (
                    arrow.ArrowException,
                    OverflowError,
                ):  # whole numbers that are too long for the others' fractions
                    return name
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
    return ""


def _mark(type_: Any) -> dict[bytes, bytes] | None:
    return None if type_ else MARK


def json_columns(schema: Any) -> list[str]:
    """The columns of a file that `write` wrote as JSON text."""
    return [field.name for field in schema if (field.metadata or {}).items() >= MARK.items()]


def _type(arrow: Any, before: Any, values: list[Any]) -> Any:
    """The type that holds a column's values and those before; None if there is none that gives back the same."""
    try:
        found = arrow.array(values)
        if not _is_storable(arrow, found.type) or not _is_same(values, found.to_pylist()):
            return None
        both = [arrow.schema([("", each)]) for each in (before, found.type)]
        return arrow.unify_schemas(both, promote_options="permissive").field(0).type
    except (arrow.ArrowException, OverflowError):
        return None


def _is_storable(arrow: Any, type_: Any) -> bool:
    """Whether Parquet has a type: every struct in it has fields."""
    if arrow.types.is_struct(type_):
        return type_.num_fields > 0 and all(_is_storable(arrow, each.type) for each in type_)
    return _is_storable(arrow, type_.value_type) if arrow.types.is_list(type_) else True


def _is_same(value: Any, found: Any) -> bool:
    """Whether Arrow gives a value back, fields without a value and the kind of a number aside."""
    if isinstance(value, dict):
        return isinstance(found, dict) and all(_is_same(value.get(name), each) for name, each in found.items())
    if isinstance(value, list):
        return isinstance(found, list) and all(map(_is_same, value, found))
    return value == found


def _cell(row: dict[str, Any], name: str, type_: Any) -> Any:
    if type_:
        return row.get(name)
    return json.dumps(row[name], ensure_ascii=False) if name in row else None


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    every = iter(rows)
    while some := list(islice(every, AT_ONCE)):
        yield some
