"""Files for this account's eyes alone: made so from their first byte on, and closed where others could read them."""

import logging
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MASK = 0o077  # what others may not do: anything
OURS = (  # in a data folder; what else somebody keeps there is theirs
    *("nightschool.db*", "*.lock", "*.log", "secret", "secret.*", "adapters", "nights", "reward_models", "cache"),
    *("replaced-*", ".restoring"),
)

log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()  # the mask is the whole process's


def keep_private() -> None:
    """From now on nothing that this process and its children make is open to others; each program begins with it."""
    os.umask(MASK)


@contextmanager
def making_private() -> Iterator[None]:
    """Nothing that is made meanwhile is open to others, in a program that has not said so for all it makes."""
    with _one_at_a_time:
        before = os.umask(MASK)
        try:
            yield
        finally:
            os.umask(before)


def make_data_folder(data: Path) -> None:
    """A data folder that nobody else can enter, its contents closed where they were not. Raises OSError."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.name == "posix" and not data.stat().st_mode & stat.S_ISVTX:  # as /tmp has it, which is everybody's
        _close_one(data)
    if close(each for pattern in OURS for each in data.glob(pattern)):
        log.warning("others could read %s; from now on this account alone can", data)


def close(paths: Iterable[Path]) -> int:
    """Close files and folders, with all that is in them, to everybody else; how many were open. Follows no links."""
    closed = 0
    for path in paths:
        closed += _close_one(path)
        if path.is_dir() and not path.is_symlink():
            closed += close(path.iterdir())
    return closed


def _close_one(path: Path) -> bool:
    """Close a file or a folder; whether it was open."""
    with suppress(OSError):  # it has gone meanwhile, or is another account's
        mode = path.lstat().st_mode
        if mode & MASK and not stat.S_ISLNK(mode) and os.name == "posix":
            path.chmod(stat.S_IMODE(mode) & ~MASK)
            return True
    return False
