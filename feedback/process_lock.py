"""A lock between processes: what one of them does at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from feedback.errors import Conflict


@contextmanager
def alone(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock in a file that this account alone can read. Raises `Conflict`, saying `busy`, while it is held."""
    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Conflict(busy) from error
    try:
        yield
    finally:
        lock.release()
