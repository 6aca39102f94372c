"""File permissions: data is created private to this account, and made private where others could read it."""

import logging
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MASK = 0o077  # every permission of group and others
OURS = (  # in a data folder; other files there are left alone
    *("nightschool.db*", "*.lock", "*.log", "secret", "secret.*", "adapters", "nights", "reward_models", "cache"),
    *("replaced-*", ".restoring"),
)

log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()  # the umask belongs to the whole process


def keep_private() -> None:
    """Make everything that this process and its children create private. Each program calls this first."""
    os.umask(MASK)


@contextmanager
def making_private() -> Iterator[None]:
    """Make everything created inside private, for programs that have not called `keep_private`."""
    with _one_at_a_time:
        before = os.umask(MASK)
        try:
            yield
        finally:
            os.umask(before)


def make_data_folder(data: Path) -> None:
    """Make a private data folder, and make any open contents private. Raises OSError."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.name == "posix" and not data.stat().st_mode & stat.S_ISVTX:  # a sticky folder such as /tmp is shared
        _close_one(data)
    if close(each for pattern in OURS for each in data.glob(pattern)):
        log.warning("others could read %s; from now on this account alone can", data)


def close(paths: Iterable[Path]) -> int:
    """Make files and folders private, recursively; return how many were not. Does not follow links."""
    closed = 0
    for path in paths:
        closed += _close_one(path)
        if path.is_dir() and not path.is_symlink():
            closed += close(path.iterdir())
    return closed


def _close_one(path: Path) -> bool:
    """Make a file or folder private; return whether it was not."""
    with suppress(OSError):  # it is gone, or belongs to another account
        mode = path.lstat().st_mode
        if mode & MASK and not stat.S_ISLNK(mode) and os.name == "posix":
            path.chmod(stat.S_IMODE(mode) & ~MASK)
            return True
    return False
