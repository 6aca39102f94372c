"""Files and folders that appear under their names whole and on the disk, or not at all.

What is being made is readable by this account alone, from its first byte on. Every function raises OSError.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def file(path: Path, by: str = "") -> Iterator[Path]:
    """An empty file to write to, with the same ending; in the end it takes the name `path`.

    `by` names the writer where several may write the same file at once: the last one wins.
    """
    making = path.with_name(f".{path.stem}{by}.making{path.suffix}")
    making.unlink(missing_ok=True)
    try:
        making.touch(mode=0o600)
        yield making
        to_disk(making)
        making.replace(path)
        to_disk(path.parent)
    finally:
        making.unlink(missing_ok=True)


def write(path: Path, contents: bytes) -> None:
    """A file with these contents."""
    with file(path) as making:
        making.write_bytes(contents)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; in the end it takes the name `path`, instead of what had it."""
    making = path.with_name(f".{path.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    try:
        making.mkdir(parents=True, mode=0o700)
        yield making
        publish(making, path)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def publish(made: Path, path: Path) -> None:
    """Give a finished folder its name, instead of what had it: everything on the disk first, then one rename."""
    for each in (*made.rglob("*"), made):
        to_disk(each)
    shutil.rmtree(path, ignore_errors=True)
    made.rename(path)
    to_disk(path.parent)
