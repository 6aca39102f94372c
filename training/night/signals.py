"""SIGTERM and SIGINT as an exception, at a moment when it can do no harm."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Cancelled(BaseException):
    """Somebody asked the night to stop. Not an `Exception`, so that no library takes it for one of its own."""


class Cancellation:
    """Listens for the two signals from its making on, in the main thread."""

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
        """Inside, a signal waits (`longer`: until the next such time ends): half a write would keep its lock."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._asked and not longer and not self._deaf:
            raise Cancelled

    def too_late(self) -> None:
        """From here on signals change nothing: the night is ending anyway."""
        self._deaf = True
