"""SIGTERM and SIGINT as an exception, raised only when it can do no harm."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Cancelled(BaseException):
    """The night was asked to stop. Not an `Exception`, so that no library catches it as an error of its own."""


class Cancellation:
    """Handles the two signals from its construction on; made in the main thread."""

    def __init__(self) -> None:
        self._held = self._asked = self._deaf = False
        self.typed = False  # whether it was Ctrl-C
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self.typed = number == signal.SIGINT
        if not self._held and not self._deaf:
            raise Cancelled

    @contextmanager
    def held(self, longer: bool = False) -> Iterator[None]:
        """Defer signals inside (`longer`: until the next such context ends): an interrupted write keeps its lock."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._asked and not longer and not self._deaf:
            raise Cancelled

    def too_late(self) -> None:
        """Ignore signals from now on: the night is ending anyway."""
        self._deaf = True
