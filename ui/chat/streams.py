"""The replies being written now, one turn per conversation.

A turn runs in a thread of its own, so a reply is finished and recorded whether or not its page stays open, and a page
that opens the chat meanwhile shows it grow.
"""

import logging
import threading
from dataclasses import dataclass, field

from assistant.chat.chat import ReplyPair, ReplyStream, remark
from assistant.engine.request import EngineError
from feedback.errors import Conflict, Refused

log = logging.getLogger(__name__)

KEPT = 100  # ended turns, for pages that have not shown the end yet


@dataclass
class Turn:
    """A reply being written, or two side by side. `error` says in a sentence why it failed."""

    parent: str
    writing: ReplyStream | ReplyPair
    texts: tuple[str, ...] = ()
    error: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def remark(self) -> str:
        """What its person should know of it, in a sentence."""
        return self.error or remark(self.writing)

    @property
    def is_pair(self) -> bool:
        """Whether two replies are written side by side."""
        return isinstance(self.writing, ReplyPair)

    def run(self) -> None:
        """Write to the end, in the turn's own thread."""
        try:
            for text in self.writing:
                self.texts = (text,) if isinstance(text, str) else text
        except (Refused, EngineError) as error:
            self.error = str(error)
        except Exception:
            log.exception("a reply to message %s failed", self.parent)
            self.error = "The reply could not be written; try again, and if it stays so, look at the server's log."
        finally:
            self.ended.set()


class Turns:
    """The newest turn of each conversation of this server. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, Turn] = {}  # in the order in which they began

    def of(self, conversation: str | None) -> Turn | None:
        """The turn being written in a conversation, if any."""
        turn = self._newest.get(conversation or "")
        return None if turn is None or turn.ended.is_set() else turn

    def under(self, conversation: str | None, message: str) -> Turn | None:
        """The turn that answers a message, also for a while after it has ended."""
        turn = self._newest.get(conversation or "")
        return turn if turn and turn.parent == message else None

    def check_free(self, conversation: str | None) -> None:
        """Raises `Conflict` while a reply is being written in a conversation."""
        if self.of(conversation):
            raise Conflict("a reply is still being written in this chat; wait for it, or press Stop")

    def start(self, conversation: str, turn: Turn) -> None:
        """Start a turn. Stops it and raises `Conflict` while another is being written in that conversation."""
        with self._lock:
            try:
                self.check_free(conversation)
            except Conflict:
                turn.writing.stop()
                raise
            ended = [key for key, each in self._newest.items() if each.ended.is_set()]
            told = {conversation, *ended[:-KEPT]}
            self._newest = {key: each for key, each in self._newest.items() if key not in told} | {conversation: turn}
        threading.Thread(target=turn.run, name=f"turn-{turn.parent}", daemon=True).start()
