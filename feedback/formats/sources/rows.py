"""The rows of a file or folder, one after the other, in memory that does not grow with it.

Only a JSON array is read whole. What a file calls NaN, a time, bytes and the like comes as Python has it.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from feedback.errors import Refused
from feedback.formats.sources import folders, opened, tables

LONGEST_FIELD = 10_000_000  # characters of a CSV field
LARGEST_ARRAY = 512 << 20  # characters of a JSON array, which is read whole
DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;"}  # the first where several fit equally well


@dataclass(frozen=True)
class Unread:
    """A row that could not be read, while those after it can."""

    why: str


def read(path: Path) -> Iterator[dict[str, Any] | Unread]:
    """The rows of a file, or of the files of a folder that are to be learned from.

    Raises `NotFound`, or `Refused` naming the file and the line.
    """
    for each in folders.files_of(path):
        for number, row in enumerate(READERS[folders.suffix_of(each)](each), 1):
            if not isinstance(row, dict | Unread):
                raise Refused(f"row {number} of {each.name} is no object")
            yield row


def json_rows(path: Path) -> Iterator[Any]:
    """The rows of JSON Lines or of an array, whatever the file is called."""
    with opened.text(path) as file:
        number, line = 1, "\n"
        while line and not line.strip():
            number, line = number + 1, file.readline(opened.LONGEST_LINE + 1)
            if number > opened.MOST_EMPTY:
                raise Refused(f"{path.name} begins with {opened.MOST_EMPTY:,} empty lines")
        number -= 1
        if line.lstrip().startswith("["):
            yield from _array(path, line, file)
            return
        if len(line) > opened.LONGEST_LINE:
            raise Refused(f"line {number} of {path.name} is longer than {opened.LONGEST_LINE:,} characters")
        if line.strip() == "{":
            raise Refused(f"{path.name} is neither a list of rows nor JSON Lines, which has a row on each line")
        lines = chain([line], opened.short_lines(path, file))
        for at, each in enumerate(lines, number):
            if each.strip():
                try:
                    yield _parsed(each, f"line {at} of {path.name}")
                except RecursionError:
                    yield Unread("nested too deeply")


def _array(path: Path, start: str, file: TextIO) -> Iterator[Any]:
    rest = file.read(LARGEST_ARRAY - len(start) + 1) if path.stat().st_size <= LARGEST_ARRAY else None
    if rest is None or len(start) + len(rest) > LARGEST_ARRAY:
        way_out = "write it as JSON Lines, which is read line by line"
        raise Refused(f"{path.name} is an array larger than {LARGEST_ARRAY >> 20:,} MB; {way_out}")
    try:
        yield from _parsed(start + rest, path.name)
    except RecursionError:
        raise Refused(f"{path.name} is nested too deeply") from None


def _parsed(text: str, where: str) -> Any:
    """A JSON value. Raises `Refused`, naming the place, if it is not valid, and `RecursionError`."""
    try:
        return json.loads(text)
    except ValueError:
        try:
            return json.loads(text, parse_int=_whole)
        except ValueError as error:
            raise Refused(f"{where} is no JSON ({str(error)[:120]})") from None


def _whole(digits: str) -> int | str:
    """A whole number, or its digits if Python reads none that is so long."""
    try:
        return int(digits)
    except ValueError:
        return digits


def _csv_rows(path: Path) -> Iterator[Any]:
    csv.field_size_limit(LONGEST_FIELD)
    with opened.text(path) as file:
        lines = opened.short_lines(path, file)
        head = next(lines, "")
        delimiter = head.rstrip("\r\n")[4:] if head.lower().startswith("sep=") else ""  # as Excel writes for itself
        if delimiter:
            head = next(lines, "")
        try:
            delimiter = delimiter or _delimiter(head, DELIMITERS[folders.suffix_of(path)])
            for row in csv.DictReader(chain([head], lines), delimiter=delimiter):
                if None in row or None in row.values():
                    raise Refused(f"a row of {path.name} has more or fewer fields than the first line names")
                yield row
        except (csv.Error, TypeError) as error:
            raise Refused(f"{path.name} is no CSV ({error})") from None


def _delimiter(head: str, delimiters: str) -> str:
    """What divides a line of names: that which makes most of them. Excel writes semicolons in much of Europe."""
    return max(delimiters, key=lambda mark: len(next(csv.reader([head], delimiter=mark), [])))


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": tables.parquet_rows,
    ".arrow": tables.arrow_rows,
}
assert READERS.keys() == set(folders.SUFFIXES)
