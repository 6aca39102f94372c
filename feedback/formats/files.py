"""Reading and writing rows as JSON Lines, a JSON array, CSV, Parquet, or a folder that `datasets` loads.

Rows are streamed, except that a JSON array is read whole. Parquet needs pyarrow, an optional extra.
"""

import csv
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from feedback import atomic
from feedback.errors import NotFound, Refused

AT_ONCE = 2000  # rows of a Parquet row group
ROWS_READ = 64  # rows of a Parquet file read at a time
LONGEST_FIELD = 10_000_000  # characters of a CSV field
LONGEST_LINE = 64_000_000  # characters
LARGEST_ARRAY = 512 << 20  # bytes of a JSON array, which is read whole
MOST_BYTES = 256 << 20  # limit for a column of a Parquet row group, or a batch of rows, once unpacked
MOST_VALUES = 20_000_000  # limit for a column of a Parquet row group
ENCODER = json.JSONEncoder(ensure_ascii=False)  # shared, since making one costs as much as encoding a row
CARD = """---
license: {licence}
configs:
- config_name: default
  data_files:
  - split: train
    path: train.jsonl
---
# Feedback from Nightschool

{rows:,} rows in the format `{format}` ({words}), exported {at}. SHA-256 of `train.jsonl`: `{sha256}`.
"""


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, or of a folder that `write_folder` made. Raises `NotFound`, or `Refused` naming the line."""
    if path.is_dir():
        path = path / "train.jsonl"
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    readers = {".jsonl": _lines, ".json": _array, ".csv": _columns, ".parquet": _parquet}
    if path.suffix not in readers:
        raise Refused(f"{path.name} ends in none of {', '.join(readers)}")
    try:
        for number, row in enumerate(readers[path.suffix](path), 1):
            if not isinstance(row, dict):
                raise Refused(f"row {number} of {path.name} is no object")
            yield row
    except UnicodeDecodeError as error:
        raise Refused(f"{path.name} is not UTF-8 text ({error.reason})") from error


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(_short_lines(path, file), 1):
            if line.strip():
                yield _parsed(line, f"line {number} of {path.name}")


def _short_lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file. Raises `Refused` on one longer than `LONGEST_LINE`."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise Refused(f"line {number} of {path.name} is longer than {LONGEST_LINE:,} characters")
        yield line


def _array(path: Path) -> Iterator[Any]:
    if path.stat().st_size > LARGEST_ARRAY:
        way_out = "write it as .jsonl, which is read line by line"
        raise Refused(f"{path.name} is larger than {LARGEST_ARRAY >> 20:,} MB; {way_out}")
    rows = _parsed(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(rows, list):
        raise Refused(f"{path.name} is no list of rows")
    yield from rows


def _parsed(text: str, where: str) -> Any:
    """A JSON value with finite numbers only. Raises `Refused`, naming the place, if it is not valid."""
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise Refused(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise Refused(f"{where} is no JSON ({str(error)[:120]})") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    if math.isinf(float(text)):
        raise ValueError(f"{text[:20]} is no number that can be kept")
    return float(text)


def _columns(path: Path) -> Iterator[Any]:
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8", newline="") as file:
        try:
            for row in csv.DictReader(_short_lines(path, file)):
                if None in row or None in row.values():
                    raise Refused(f"a row of {path.name} has more or fewer fields than the first line names")
                yield row
        except csv.Error as error:
            raise Refused(f"{path.name} is no CSV ({error})") from None


def _parquet(path: Path) -> Iterator[Any]:
    arrow = _pyarrow()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            texts = list(_bounded_columns(path, file.metadata))
        # As a dictionary, a text that thousands of rows share is in memory once.
        with arrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(ROWS_READ):
                if batch.nbytes > MOST_BYTES:
                    raise Refused(f"{path.name} has rows that are too large")
                for at in range(batch.num_rows):
                    (row,) = batch.slice(at, 1).to_pylist()
                    yield _with_finite(_without_nothing(row), path)
    except (arrow.ArrowException, OSError) as error:
        raise Refused(f"{path.name} is no Parquet file ({str(error).splitlines()[0][:120]})") from None


def _bounded_columns(path: Path, metadata: Any) -> Iterator[str]:
    """The paths of text columns. Raises `Refused` if any column would unpack to more than fits in memory."""
    for group in range(metadata.num_row_groups):
        for at in range(metadata.num_columns):
            column = metadata.row_group(group).column(at)
            if column.total_uncompressed_size > MOST_BYTES or column.num_values > MOST_VALUES:
                raise Refused(
                    f"{path.name} unpacks to too much at once: {column.path_in_schema[:40]}; use smaller groups"
                )
            if group == 0 and column.physical_type == "BYTE_ARRAY":
                yield column.path_in_schema


def _with_finite(value: Any, path: Path) -> Any:
    """The same value. Raises `Refused` if it contains a number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused(f"{path.name} has a number that is not finite")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _with_finite(each, path)
    return value


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Refused("Parquet takes pyarrow; install it with: pip install 'nightschool[parquet]'") from None
    return pyarrow


def _without_nothing(value: Any) -> Any:
    """A value without None fields: Parquet gives every row every field, and None for those that it lacked."""
    if isinstance(value, dict):
        return {name: _without_nothing(each) for name, each in value.items() if each is not None}
    return [_without_nothing(each) for each in value] if isinstance(value, list) else value


def write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows to a file, which appears complete or not at all; return their number. Raises `Refused`."""
    writers = {".jsonl": _write_lines, ".json": _write_array, ".csv": _write_columns, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise Refused(f"{path.name} ends in none of {', '.join(writers)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(path) as making:
            return writers[path.suffix](making, rows)
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror}") from error


def write_document(path: Path, facts: Any) -> None:
    """Write one JSON document, which appears complete or not at all. Raises `Refused`."""
    try:
        with atomic.file(path) as making:
            making.write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror}") from error


def as_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON, with its newline."""
    return ENCODER.encode(row) + "\n"


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(as_line(row))
            count += 1
    return count


def _write_array(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for row in rows:
            file.write(("," if count else "") + "\n" + as_line(row).rstrip())
            count += 1
        file.write("\n]\n")
    return count


def _write_columns(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count, writer = 0, None
    with path.open("w", encoding="utf-8", newline="") as file:
        for row in rows:
            if any(isinstance(value, dict | list) for value in row.values()):
                raise Refused("CSV holds plain values only; write this format as .jsonl or .parquet")
            if writer is None:
                writer = csv.DictWriter(file, list(row), restval="", extrasaction="ignore")
                writer.writeheader()
            writer.writerow(row)
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    arrow = _pyarrow()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        spool = Path(folder) / "rows.jsonl"  # read twice, because the columns are known only after the last row
        count = _write_lines(spool, rows)
        names = list(dict.fromkeys(name for row in _lines(spool) for name in row))
        tables = [arrow.Table.from_pylist(_with_all(some, names)).schema for some in _groups(spool)]
        schema = arrow.unify_schemas(tables, promote_options="permissive") if tables else arrow.schema([])
        with arrow.parquet.ParquetWriter(path, schema) as writer:
            for some in _groups(spool):
                writer.write_table(arrow.Table.from_pylist(some, schema=schema))
    return count


def _with_all(rows: list[Any], names: list[str]) -> list[Any]:
    """The rows with every field in each, because pyarrow takes the columns from the first row."""
    return [{name: row.get(name) for name in names} for row in rows]


def _groups(path: Path) -> Iterator[list[Any]]:
    rows = _lines(path)
    while some := list(islice(rows, AT_ONCE)):
        yield some


def write_folder(path: Path, rows: Iterable[dict[str, Any]], card: dict[str, Any]) -> int:
    """Write a new folder, with a card, that `datasets.load_dataset` loads; return the number of rows.

    Raises `Refused` if the path exists or cannot be written.
    """
    from feedback.upkeep.backup import facts

    if path.exists():
        raise Refused(f"there is already something at {path}; name a new folder")
    try:
        with atomic.folder(path) as making:
            count = write(making / "train.jsonl", rows)
            _, sha256 = facts(making / "train.jsonl")
            (making / "README.md").touch(mode=0o600)
            (making / "README.md").write_text(CARD.format(rows=count, sha256=sha256, **card), encoding="utf-8")
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror}") from error
    return count
