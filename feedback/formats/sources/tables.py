"""Rows of Parquet files, and of the Arrow files that `datasets` saves. They need pyarrow, an optional extra."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from feedback.errors import Refused
from feedback.formats import parquet

ROWS_READ = 64  # rows of a Parquet file read at a time
MOST_BYTES = 256 << 20  # limit for a column of a Parquet row group, or a batch of rows, once unpacked
MOST_VALUES = 20_000_000  # limit for a column of a Parquet row group
RECORD_BATCH, DICTIONARY_BATCH = 3, 2  # the kinds of message of an Arrow stream that hold values


def parquet_rows(path: Path) -> Iterator[Any]:
    """The rows of a Parquet file. Raises `Refused` on one that would unpack to more than fits in memory."""
    arrow = parquet.pyarrow()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            texts = list(_bounded_columns(path, file.metadata))
            as_json = parquet.json_columns(file.schema_arrow)
        # As a dictionary, a text that thousands of rows share is in memory once.
        with arrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(ROWS_READ):
                for row in _rows(path, batch):
                    yield row | {name: json.loads(row[name]) for name in as_json if row.get(name)}
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


def arrow_rows(path: Path) -> Iterator[Any]:
    """The rows of an Arrow stream, as `save_to_disk` writes it. Raises `Refused` on a compressed one."""
    arrow = parquet.pyarrow()
    import pyarrow.ipc

    try:
        with arrow.memory_map(str(path)) as file:
            for message in pyarrow.ipc.MessageReader.open_stream(file):
                if _is_compressed(message.metadata.to_pybytes()):
                    raise Refused(f"{path.name} is compressed Arrow data; write it as Parquet")
        with arrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
            for batch in batches:
                batch.validate(full=True)  # places outside of the file would be read else
                yield from _rows(path, batch)
    except (arrow.ArrowException, OSError, struct.error) as error:
        raise Refused(f"{path.name} is no Arrow stream ({(str(error) or '?').splitlines()[0][:120]})") from None


def _is_compressed(message: bytes) -> bool:
    """Whether the values of an Arrow message are compressed, so that their size in memory cannot be known before."""
    root = struct.unpack_from("<I", message)[0]
    kind = _field(message, root, 1)
    header = _table(message, root, 2)
    if kind is None or header is None or message[kind] not in (RECORD_BATCH, DICTIONARY_BATCH):
        return False
    values = header if message[kind] == RECORD_BATCH else _table(message, header, 1)
    return values is not None and _field(message, values, 3) is not None


def _field(message: bytes, table: int, number: int) -> int | None:
    """The place of a field of a FlatBuffers table; None if it has none."""
    names = table - struct.unpack_from("<i", message, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", message, names)[0]:
        return None
    offset = struct.unpack_from("<H", message, names + 4 + 2 * number)[0]
    return table + offset if offset else None


def _table(message: bytes, table: int, number: int) -> int | None:
    """The place of the table that a field holds."""
    at = _field(message, table, number)
    return None if at is None else at + struct.unpack_from("<I", message, at)[0]


def _rows(path: Path, batch: Any) -> Iterator[Any]:
    if batch.nbytes > MOST_BYTES:
        raise Refused(f"{path.name} has rows that are too large")
    for at in range(batch.num_rows):
        (row,) = batch.slice(at, 1).to_pylist()
        yield _without_nothing(row)


def _without_nothing(value: Any) -> Any:
    """A value without None fields: a table gives every row every field, and None for those that it lacked."""
    if isinstance(value, dict):
        return {name: _without_nothing(each) for name, each in value.items() if each is not None}
    return [_without_nothing(each) for each in value] if isinstance(value, list) else value
