"""Writing rows as JSON Lines, a JSON array, CSV, Parquet, or a folder that `datasets` loads; `sources` reads them."""

import csv
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feedback import atomic
from feedback.errors import Refused
from feedback.formats import parquet
from feedback.formats.sources.rows import Unread as Unread
from feedback.formats.sources.rows import json_rows
from feedback.formats.sources.rows import read as read

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
    plain = map(_plain, rows)
    with _spooled(path, plain) as (spool, count, names), path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        if names:
            writer.writeheader()
        writer.writerows(json_rows(spool))
    return count


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The same row. Raises `Refused` if a cell cannot hold one of its values."""
    if any(isinstance(value, dict | list) for value in row.values()):
        raise Refused("CSV holds plain values only; write this format as .jsonl or .parquet")
    return row


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    with _spooled(path, rows) as (spool, count, names):
        parquet.write(path, names, lambda: json_rows(spool))
    return count


@contextmanager
def _spooled(path: Path, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[Path, int, list[str]]]:
    """The rows in a file that can be read again, their number, and the columns, known only after the last row."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        spool = Path(folder) / "rows.jsonl"
        names: dict[str, None] = {}

        def noted() -> Iterator[dict[str, Any]]:
            for row in rows:
                names.update(dict.fromkeys(row))
                yield row

        count = _write_lines(spool, noted())
        yield spool, count, list(names)


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
