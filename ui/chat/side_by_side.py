"""Two replies side by side: when they are shown, and what a choice does.

Nothing on the page tells which adapter wrote which reply until a choice is made.
"""

import random

from assistant.chat.assistant import Assistant
from assistant.chat.chat import start_pair, start_reply
from assistant.engine.sampling.params import Sampling
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import NotFound
from feedback.kinds.comparison import compare
from feedback.records import settings
from ui.chat.streams import Turn
from ui.chat.view import waiting_pair


def begin(assistant: Assistant, user: User, parent: str, sampling: Sampling, on_demand: bool) -> Turn:
    """Begin the reply to a message: two on demand and on the operator's share of turns, else one."""
    drawn = random.random() < settings.setting(assistant.store, "side_by_side_share")
    if on_demand or drawn:
        asked = "demand" if on_demand else "share"
        return Turn(parent, start_pair(assistant, user, parent, sampling, asked))
    return Turn(parent, start_reply(assistant, user, parent, sampling))


def choose(store: Database, user: User, conversation: str, choice: str) -> None:
    """Record a choice between the two waiting replies. After a tie or both bad, the chat goes on from the left one."""
    leaf = conversations.own_conversation(store, user, conversation)["leaf"]
    pair = waiting_pair(store, user, leaf)
    if pair is None:
        raise NotFound("no two replies wait for a choice here; perhaps you chose in another tab")
    compare(store, user, pair.shown.left, pair.shown.right, choice)
    if choice not in ("left", "right"):
        conversations.go_to(store, user, pair.shown.left)


def choose_again(store: Database, user: User, reply: str) -> None:
    """Take back the choice that led to a reply, so that both replies are shown again."""
    parent = conversations.own_reply(store, user, reply).parent
    pair = conversations.pair_under(store, parent) if parent else None
    if pair is None:
        raise NotFound("this reply was not one of two")
    compare(store, user, pair.left, pair.right, "taken_back")


def goes_on_from(store: Database, user: User, conversation: str) -> str | None:
    """The parent of the next message: the left reply of a pair without a choice, else the chat's last message."""
    leaf: str | None = conversations.own_conversation(store, user, conversation)["leaf"]
    pair = waiting_pair(store, user, leaf)
    return pair.shown.left if pair else leaf
