"""Group commit: threads take turns on one connection and share one wait for the disk.

The first thread leads: it begins a transaction, takes its turn, lets the waiting threads take theirs in the same
transaction, and commits for all. The others return once it has. A lone writer waits for nobody.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LONGEST_S = 0.05  # age after which nobody joins a group
LARGEST = 256  # turns after which nobody joins a group


class TooLong(Exception):
    """No turn became free within the time that the caller would wait."""


@dataclass
class CommitGroup:
    """Turns that share one transaction. `error` is why all of them failed, if they did."""

    began_at: float = field(default_factory=time.monotonic)
    turns: int = 0
    error: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def open(self) -> bool:
        """Whether another turn may join."""
        return self.error is None and self.turns < LARGEST and time.monotonic() - self.began_at < LONGEST_S


class GroupCommit:
    """Hands out turns to write, in groups that commit together."""

    def __init__(self) -> None:
        lock = threading.Lock()
        self._free = threading.Condition(lock)  # threads that wait for a turn
        self._quiet = threading.Condition(lock)  # the leader, which waits for them
        self._busy = False
        self._waiting = 0
        self._group: CommitGroup | None = None

    def take(self, wait_s: float) -> tuple[CommitGroup, bool]:
        """Wait for a turn; return its group and whether the caller leads it. Raises `TooLong`."""
        with self._free:
            self._wait(lambda: not self._busy and (self._group is None or self._group.open), wait_s)
            self._busy = True
            leads = self._group is None
            self._group = self._group or CommitGroup()
            self._group.turns += 1
            return self._group, leads

    def leave(self, leads: bool) -> None:
        """End a turn that wrote nothing. A leader that does so ends its group, which nobody else has joined yet."""
        with self._free:
            if leads:
                self._group = None
            self._next()

    def share(self, group: CommitGroup, leads: bool, commit: Callable[[CommitGroup], None]) -> None:
        """End a turn; return once `commit`, which the leader runs for all, has saved it. Raises the group's error."""
        if leads:
            self._gather(group)
            commit(group)  # never raises: it sets the group's error
            with self._free:
                self._group = None
                self._next()
            group.over.set()
        else:
            with self._free:
                self._next()
            group.over.wait()
        if group.error is not None:
            raise group.error

    @contextmanager
    def alone(self, wait_s: float) -> Iterator[None]:
        """A turn outside any group. Raises `TooLong`."""
        with self._free:
            self._wait(lambda: not self._busy and self._group is None, wait_s)
            self._busy = True
        try:
            yield
        finally:
            with self._free:
                self._next()

    def _gather(self, group: CommitGroup) -> None:
        """Let every waiting thread take a turn in the group, then take the turn back."""
        with self._free:
            self._next()
            while self._busy or (self._waiting and group.open):
                self._quiet.wait(LONGEST_S)
            self._busy = True

    def _wait(self, may_go: Callable[[], bool], wait_s: float) -> None:
        self._waiting += 1
        try:
            if not self._free.wait_for(may_go, wait_s):
                raise TooLong
        finally:
            self._waiting -= 1

    def _next(self) -> None:
        self._busy = False
        # Wake one thread only: the next that may take a turn, or the leader if none may.
        if self._waiting and (self._group is None or self._group.open):
            self._free.notify()
        else:
            self._quiet.notify()
