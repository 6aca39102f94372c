"""The replies that are being written now, whoever waits for them.

Closed, it takes no more: the server is about to end, and lets those that have begun finish.
"""

import threading
from typing import Protocol
from weakref import WeakValueDictionary

from assistant.engine.request import Ending


class BeingWritten(Protocol):
    """What others than its reader may know of a reply that grows (`assistant.chat.reply`)."""

    id: str
    parent: str  # the message that it answers
    over: bool
    failure: str  # why it could not be finished, if so

    @property
    def text(self) -> str:
        """What is certain of it so far."""

    @property
    def finish(self) -> str | None:
        """How it ended: "stop", "length" or "cancelled"; None while it is being written."""

    def stop(self) -> None:
        """Stop writing; what is written stays."""


class RepliesInWriting:
    """The replies being written, by id. Safe to share between threads."""

    def __init__(self) -> None:
        self.is_closed = False
        self._changing = threading.Lock()
        # Weak, because nobody reads a reply to its end whose request was refused after it had begun.
        self._replies: WeakValueDictionary[str, BeingWritten] = WeakValueDictionary()

    def all(self) -> list[BeingWritten]:
        """Those that are not over, or not recorded yet."""
        with self._changing:
            return list(self._replies.values())

    def find(self, reply: str) -> BeingWritten | None:
        """A reply that is being written, by its id."""
        with self._changing:
            return self._replies.get(reply)

    def require_open(self) -> None:
        """Raises `Ending` once it is closed."""
        if self.is_closed:
            raise Ending

    def add(self, reply: BeingWritten) -> None:
        """Add a reply that has just begun. Stops it and raises `Ending` once this is closed."""
        with self._changing:
            if not self.is_closed:
                self._replies[reply.id] = reply
                return
        reply.stop()
        raise Ending

    def drop(self, reply: BeingWritten) -> None:
        """Drop a reply that is over, and recorded if there was anything to record."""
        with self._changing:
            self._replies.pop(reply.id, None)

    def close(self) -> None:
        """Take no more; without a lock, for this is called by a signal's handler."""
        self.is_closed = True

    def stop(self) -> list[BeingWritten]:
        """Stop all that are not over, and return them; what is written of them is recorded by those who read them."""
        going = [each for each in self.all() if not each.over]
        for each in going:
            each.stop()
        return going
