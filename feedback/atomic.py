"""Atomic writes: a file or folder appears under its name complete and synced to disk, or not at all.

Only this account can read a file or folder while it is being written. Every function raises OSError.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def to_disk(path: Path) -> None:
    """Sync a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def file(path: Path, by: str = "") -> Iterator[Path]:
    """Yield an empty temporary file with the same suffix; on success it is renamed to `path`.

    `by` names the writer when several may write the same file at once: the last one wins.
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
    """Write a file with these contents."""
    with file(path) as making:
        making.write_bytes(contents)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it replaces `path`."""
    making = path.with_name(f".{path.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    try:
        making.mkdir(parents=True, mode=0o700)
        yield making
        publish(making, path)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def publish(made: Path, path: Path) -> None:
    """Replace `path` with a finished folder: sync everything to disk, then rename once."""
    for each in (*made.rglob("*"), made):
        to_disk(each)
    shutil.rmtree(path, ignore_errors=True)
    made.rename(path)
    to_disk(path.parent)
