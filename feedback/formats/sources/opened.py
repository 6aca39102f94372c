"""Opening a text file: compressed by gzip or not, in UTF-8, or in what its byte order mark says."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from feedback.errors import Refused

MARKS = {  # the longer ones first
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LONGEST_LINE = 64_000_000  # characters
MOST_EMPTY = 100_000  # lines on end
MOST_UNPACKED = 256 << 20  # bytes that any compressed file may unpack to
MOST_TIMES = 250  # a larger file may unpack to so many times its size: text rarely packs a tenth as well


@contextmanager
def text(path: Path) -> Iterator[TextIO]:
    """A file of text, its line ends as they are. Raises `Refused` if it is no text, or unpacks to far too much."""
    try:
        with path.open("rb") as packed, _unpacked(path, packed) as file:
            start = file.peek(4)[:4]
            encoding = next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8")
            yield io.TextIOWrapper(file, encoding, newline="")
    except UnicodeError as error:
        reason = getattr(error, "reason", str(error))
        raise Refused(f"{path.name} is not UTF-8 text ({reason}); save it as UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refused(f"{path.name} is no whole gzip file ({str(error)[:120]})") from error


def _unpacked(path: Path, file: IO[bytes]) -> io.BufferedReader:
    if not path.name.lower().endswith(".gz"):
        assert isinstance(file, io.BufferedReader), "a file opened for reading bytes"
        return file
    return io.BufferedReader(_Bounded(path, gzip.GzipFile(fileobj=file)), 1 << 20)


class _Bounded(io.RawIOBase):
    """A compressed file that is read as far as it is credible."""

    def __init__(self, path: Path, file: gzip.GzipFile) -> None:
        self.path, self.file, self.count = path, file, 0
        self.most = max(MOST_UNPACKED, MOST_TIMES * path.stat().st_size)

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; return the number of bytes. Raises `Refused` past the limit."""
        some = self.file.read(len(buffer))
        buffer[: len(some)] = some
        self.count += len(some)
        if self.count > self.most:
            raise Refused(
                f"{self.path.name} unpacks to more than {self.most >> 20:,} MB; unpack it yourself if it is sound"
            )
        return len(some)


def short_lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file. Raises `Refused` on one longer than `LONGEST_LINE`, or more empty ones than `MOST_EMPTY`."""
    number = empty = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise Refused(f"line {number} of {path.name} is longer than {LONGEST_LINE:,} characters")
        empty = empty + 1 if line.isspace() else 0
        if empty > MOST_EMPTY:
            raise Refused(f"{path.name} has {MOST_EMPTY:,} empty lines before line {number:,}")
        yield line
