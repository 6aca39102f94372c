"""A person's view of their chats, read from the database; what the page shows is kept nowhere else."""

from dataclasses import dataclass
from typing import Any

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.chats.conversations import Node, SideBySide
from feedback.database.database import Database
from feedback.errors import NotFound
from feedback.kinds.comparison import standing_choice
from feedback.kinds.correction import standing_correction
from feedback.kinds.vote import Thumb, standing_vote


@dataclass(frozen=True)
class Pair:
    """Two replies that still wait for a choice, in screen order."""

    shown: SideBySide
    left: str
    right: str


@dataclass(frozen=True)
class About:
    """One reply and how its reader rated it. `chosen_over` is the pair that it is one of, if any."""

    reply: str
    text: str
    adapter: str | None
    vote: Thumb | None
    correction: str | None
    chosen_over: SideBySide | None
    is_last: bool


@dataclass(frozen=True)
class Versions:
    """Branches at the last place where the chat forks: `ids` in the order they were made, `at` is the one shown."""

    ids: tuple[str, ...]
    at: int


@dataclass(frozen=True)
class ChatView:
    """One chat as its person sees it. `conversation` is None for a chat that has not begun."""

    conversation: str | None
    chats: tuple[tuple[str, str], ...]  # (title, id), newest first
    nodes: tuple[Node, ...]  # from the first message down; without the two replies of `pair`
    votes: dict[str, Thumb]
    corrections: dict[str, str]
    pair: Pair | None
    about: About | None
    versions: Versions | None
    consent: bool | None

    @property
    def is_unanswered(self) -> bool:
        """Whether the chat ends with the person's own message."""
        return bool(self.nodes) and self.nodes[-1].role == "user" and self.pair is None


def look(store: Database, user: User, conversation: str | None, focus: str | None = None) -> ChatView:
    """This person's chat, or an empty one where it is not theirs. `focus` is the reply to show the details of."""
    leaf = _leaf(store, user, conversation)
    nodes = conversations.path(store, leaf)
    pair = waiting_pair(store, user, leaf)
    if pair:
        nodes = nodes[:-1]
    replies = [node.id for node in nodes if node.role == "assistant"]
    votes = {reply: vote for reply in replies if (vote := standing_vote(store, user, reply))}
    corrected = {reply: text for reply in replies if (text := standing_correction(store, user, reply))}
    focused = focus if focus in replies else (replies[-1] if replies and nodes[-1].role == "assistant" else None)
    return ChatView(
        conversation=nodes[0].conversation if nodes else None,
        chats=tuple((row["title"] or "Untitled", row["id"]) for row in conversations.conversations(store, user)),
        nodes=tuple(node for node in nodes if node.role != "system"),
        votes=votes,
        corrections=corrected,
        pair=pair,
        about=_about(store, user, focused, is_last=focused == nodes[-1].id) if focused else None,
        versions=_versions(store, nodes),
        consent=users.consent(store, user),
    )


def newest(store: Database, user: User) -> str | None:
    """The conversation that was begun last."""
    chats: list[dict[str, Any]] = conversations.conversations(store, user)
    return chats[0]["id"] if chats else None


def waiting_pair(store: Database, user: User, leaf: str | None) -> Pair | None:
    """The two replies that a chat ends in, while nobody has chosen between them."""
    node = conversations.node(store, leaf) if leaf else None
    if node is None or node.role != "assistant" or node.parent is None:
        return None
    shown = conversations.pair_under(store, node.parent)
    if shown is None or node.id not in (shown.left, shown.right):
        return None
    if standing_choice(store, user, shown.left, shown.right):
        return None
    return Pair(shown, conversations.node(store, shown.left).content, conversations.node(store, shown.right).content)


def newest_leaf(store: Database, message: str) -> str:
    """The last message of the newest branch under a message."""
    while below := conversations.children(store, message):
        message = below[-1].id
    return message


def _leaf(store: Database, user: User, conversation: str | None) -> str | None:
    if not conversation:
        return None
    try:
        leaf: str | None = conversations.own_conversation(store, user, conversation)["leaf"]
        return leaf
    except NotFound:
        return None


def _about(store: Database, user: User, reply: str, is_last: bool) -> About:
    node = conversations.node(store, reply)
    shown = conversations.pair_under(store, node.parent) if node.parent else None
    of_pair = shown if shown and reply in (shown.left, shown.right) else None
    return About(
        reply=reply,
        text=node.content,
        adapter=conversations.provenance(store, reply).adapter,
        vote=standing_vote(store, user, reply),
        correction=standing_correction(store, user, reply),
        chosen_over=of_pair,
        is_last=is_last,
    )


def _versions(store: Database, nodes: list[Node]) -> Versions | None:
    """The fork nearest to the end of a path."""
    for node in reversed(nodes):
        ids = tuple(each.id for each in conversations.siblings(store, node))
        if len(ids) > 1:
            return Versions(ids, ids.index(node.id))
    return None
