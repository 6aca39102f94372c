"""Signals: what people do with a reply. They are logged, and nothing is trained on them."""

from pydantic import Field

from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database, now
from feedback.errors import Refused
from feedback.kinds.base import Body, Kind, ReplyId, register

SIGNALS = ("retry", "edit", "copy", "abandon")  # asked again; rephrased; copied; left without another word


class Signal(Body):
    """What somebody did with a reply. Logged; it teaches nothing."""

    reply: ReplyId
    kind: str = Field(description=f"One of: {', '.join(SIGNALS)}.")


def signal(store: Database, user: User, reply: str, kind: str) -> int:
    """Log what a person did with a reply in their conversation; return the row's id. Raises `Refused`, `NotFound`."""
    if kind not in SIGNALS:
        raise Refused(f"a signal is one of {', '.join(SIGNALS)}, not {kind!r}")
    with store.transaction():
        conversations.own_reply(store, user, reply)
        return store.insert(SIGNAL.table, {"user": user.id, "reply": reply, "kind": kind, "at": now()})


def signal_newest(store: Database, user: User, message: str, kind: str) -> None:
    """Log a signal on the newest reply to this person's message, if there is one."""
    conversations.own_node(store, user, message)
    replies = [each.id for each in conversations.children(store, message) if each.role == "assistant"]
    if replies:
        signal(store, user, replies[-1], kind)


SIGNAL = register(
    Kind(
        table="signals",
        name="signal",
        help="Log that you copied a reply, asked again, asked otherwise, or left. It teaches nothing.",
        body=Signal,
        write=signal,
        thing=("id",),
        trace=True,
    )
)
