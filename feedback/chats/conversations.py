"""Conversations as trees of messages: an edit or a retry adds a branch, and nothing is overwritten.

Every reply keeps its provenance: adapter, base, template, sampling, token ids and their log-probs, how it ended.
"""

import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from feedback.accounts import consent
from feedback.accounts.users import User
from feedback.database.database import Database, new_id, now
from feedback.errors import NotFound, Refused
from feedback.messages import Message

LONGEST_MESSAGE = 100_000  # characters; more than any context window here holds


@dataclass(frozen=True)
class Node:
    """A message in its conversation's tree."""

    id: str
    conversation: str
    parent: str | None
    role: str
    content: str


@dataclass(frozen=True)
class Provenance:
    """Who wrote a reply, and how. Log-probs are in nats, one per token id."""

    adapter: str | None  # None: the base itself
    base_sha256: str | None
    template_sha256: str | None
    sampling: dict[str, Any]
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # under the model, temperature 1
    sampled_logprobs: tuple[float, ...] = ()  # under the distribution it was drawn from
    finish: str = "stop"  # "stop", "length" or "cancelled"
    first_token_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True)
class SideBySide:
    """Two replies to one message, shown blind. `left` and `right` are reply ids in screen order."""

    id: str
    parent: str
    left: str
    right: str


def start_conversation(store: Database, user: User, source: str = "chat", system: str = "") -> str:
    """Start a conversation, with a system message as its root if one is given; return its id."""
    conversation = new_id()
    with store.transaction():
        row = {"id": conversation, "user": user.id, "source": source, "created_at": now()}
        store.insert("conversations", row)
        if system:
            add_message(store, conversation, None, "system", system)
    return conversation


def add_message(store: Database, conversation: str, parent: str | None, role: str, content: str) -> str:
    """Add a message under `parent` (None: a root), make it the conversation's leaf, and return its id.

    Raises `Refused` on an empty or overlong message, `NotFound` on a parent of another conversation.
    """
    require_said(role, content)
    with store.transaction() as db:
        if parent is not None and node(store, parent).conversation != conversation:
            raise NotFound(f"message {parent} is not of this conversation")
        message = new_id()
        row = {"id": message, "conversation": conversation, "parent": parent, "role": role, "content": content}
        store.insert("messages", row | {"created_at": now()})
        db.conn.execute("UPDATE conversations SET leaf = ? WHERE id = ?", (message, conversation))
        if role == "user":
            sql = "UPDATE conversations SET title = ? WHERE id = ? AND title = ''"
            db.conn.execute(sql, (title_of(content), conversation))
    return message


def require_said(role: str, content: str) -> None:
    """Raises `Refused` on a message that `checked` refuses, or that is empty and not the assistant's."""
    if not content.strip() and role != "assistant":
        raise Refused("an empty message says nothing; write something")
    checked(content)


def title_of(content: str) -> str:
    """The title of a conversation that opens with this message."""
    return " ".join(content.split())[:60]


def checked(text: str) -> str:
    """The same text. Raises `Refused` if it is too long or contains half of a character (a lone surrogate)."""
    if len(text) > LONGEST_MESSAGE:
        raise Refused(f"a text has at most {LONGEST_MESSAGE:,} characters, this one has {len(text):,}")
    require_whole_characters(text)
    return text


def require_whole_characters(text: str) -> None:
    """Raises `Refused` on half of a character (a lone surrogate), which neither a model nor the database takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused("a text holds half of a character (a lone surrogate); send whole ones") from None


def add_reply(store: Database, parent: str, content: str, by: Provenance, reply: str | None = None) -> str:
    """Add a reply to the message `parent` with its provenance; return its id (`reply`, if the caller promised one)."""
    under = node(store, parent)
    with store.transaction() as db:
        message = reply or new_id()
        row = {"id": message, "conversation": under.conversation, "parent": parent, "role": "assistant"}
        store.insert("messages", row | {"content": content, "created_at": now()})
        author = asdict(by) | {
            "token_ids": packed("i", by.token_ids),
            "logprobs": packed("f", by.logprobs),
            "sampled_logprobs": packed("f", by.sampled_logprobs),
        }
        store.insert("replies", {"message": message} | author)
        db.conn.execute("UPDATE conversations SET leaf = ? WHERE id = ?", (message, under.conversation))
    return message


def add_pair(store: Database, parent: str, left: str, right: str, asked: str) -> str:
    """Record that two replies to `parent` were shown side by side; return the pair's id."""
    pair = new_id()
    row = {"id": pair, "parent": parent, "left_reply": left, "right_reply": right, "asked": asked}
    store.insert("pairs", row | {"shown_at": now()})
    return pair


def packed(kind: str, numbers: Sequence[float]) -> bytes | None:
    """Numbers as little-endian int32 ("i") or float32 ("f"); None for none."""
    if not numbers:
        return None
    values = array(kind, numbers)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def unpacked(kind: str, blob: bytes | None) -> tuple[Any, ...]:
    """The inverse of `packed`."""
    values = array(kind, blob or b"")
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(values)


def node(store: Database, message: str) -> Node:
    """One message. Raises `NotFound`."""
    row = store.row("SELECT id, conversation, parent, role, content FROM messages WHERE id = ?", message)
    if row is None:
        raise NotFound(f"there is no message {message!r}")
    return Node(**row)


def provenance(store: Database, reply: str) -> Provenance:
    """The provenance of a reply. Raises `NotFound`."""
    row = store.row("SELECT * FROM replies WHERE message = ?", reply)
    if row is None:
        raise NotFound(f"there is no reply {reply!r}")
    row.pop("message")
    blobs = {name: unpacked("i" if name == "token_ids" else "f", row[name]) for name in row if name in BLOBS}
    return Provenance(**row | blobs | {"sampling": json.loads(row["sampling"])})


BLOBS = ("token_ids", "logprobs", "sampled_logprobs")


def path(store: Database, message: str | None) -> list[Node]:
    """The messages from the root down to `message`, which is the last; empty for None."""
    sql = """WITH RECURSIVE up (id, conversation, parent, role, content, depth) AS (
        SELECT id, conversation, parent, role, content, 0 FROM messages WHERE id = ?
        UNION ALL
        SELECT m.id, m.conversation, m.parent, m.role, m.content, depth + 1 FROM messages m JOIN up ON m.id = up.parent
    ) SELECT id, conversation, parent, role, content FROM up ORDER BY depth DESC"""
    return [Node(**row) for row in store.rows(sql, message)]


def tree(store: Database, conversation: str) -> list[Node]:
    """Every message of a conversation, all branches, parents before children."""
    sql = "SELECT id, conversation, parent, role, content FROM messages WHERE conversation = ? ORDER BY seq"
    return [Node(**row) for row in store.rows(sql, conversation)]


def children(store: Database, message: str) -> list[Node]:
    """The messages directly under one, oldest first: its branches."""
    sql = "SELECT id, conversation, parent, role, content FROM messages WHERE parent = ? ORDER BY seq"
    return [Node(**row) for row in store.rows(sql, message)]


def siblings(store: Database, of: Node) -> list[Node]:
    """A message and its alternatives (edits of it, or other replies), oldest first."""
    sql = """SELECT id, conversation, parent, role, content FROM messages
        WHERE conversation = ? AND parent IS ? ORDER BY seq"""
    return [Node(**row) for row in store.rows(sql, of.conversation, of.parent)]


def conversations(store: Database, user: User) -> list[dict[str, Any]]:
    """A person's chats, newest first: id, title, leaf, created_at; without hidden ones, programs' and empty ones."""
    sql = """SELECT id, title, leaf, created_at FROM conversations
        WHERE user = ? AND source IN ('chat', 'terminal') AND hidden_at IS NULL AND leaf IS NOT NULL
        ORDER BY seq DESC"""
    return store.rows(sql, user.id)


def own_conversation(store: Database, user: User, conversation: str) -> dict[str, Any]:
    """One conversation of this person. Raises `NotFound`, also if it is another person's."""
    sql = "SELECT id, user, source, title, leaf, created_at FROM conversations WHERE id = ? AND user = ?"
    row = store.row(sql, conversation, user.id)
    if row is None:
        raise NotFound(f"there is no conversation {conversation!r}")
    return row


def own_node(store: Database, user: User, message: str) -> Node:
    """One message in this person's conversations. Raises `NotFound`, also if it is another person's."""
    found = store.row(
        """SELECT m.id, m.conversation, m.parent, m.role, m.content FROM messages m
        JOIN conversations c ON c.id = m.conversation WHERE m.id = ? AND c.user = ?""",
        message,
        user.id,
    )
    if found is None:
        raise NotFound(f"there is no message {message!r}")
    return Node(**found)


def own_reply(store: Database, user: User, reply: str) -> Node:
    """One reply in this person's conversations. Raises `NotFound`, also if it is another person's."""
    try:
        found = own_node(store, user, reply)
    except NotFound:
        raise NotFound(f"there is no reply {reply!r}") from None
    if found.role != "assistant":
        raise NotFound(f"there is no reply {reply!r}")
    return found


def shown_reply(store: Database, user: User, reply: str) -> Node:
    """One reply that this person was shown: in their own conversations, or in a question that was put to them.

    Raises `NotFound`, also if it is another person's.
    """
    found = store.row(
        """SELECT m.id, m.conversation, m.parent, m.role, m.content FROM messages m
        JOIN conversations c ON c.id = m.conversation WHERE m.id = ? AND m.role = 'assistant' AND (c.user = ?
        OR EXISTS (SELECT 1 FROM questions q WHERE q.parent = m.parent AND q.user = ?
            AND instr(q.replies, '"' || m.id || '"')))""",
        *(reply, user.id, user.id),
    )
    if found is None:
        raise NotFound(f"there is no reply {reply!r}")
    return Node(**found)


def ratable_reply(store: Database, user: User, reply: str, taking_back: bool = False) -> Node:
    """One reply that this person may rate: their own always, another's while both people consent (`consent`).

    Feedback on it may always be taken back. Raises `NotFound` as `shown_reply` does, and `Refused` if one of the two
    does not consent.
    """
    found = shown_reply(store, user, reply)
    if taking_back:
        return found
    sql = f"""SELECT c.user = ? AS own, {consent.shared("c")} AS shared, {consent.given("?")} AS given
        FROM conversations c WHERE c.id = ?"""
    whose = store.rows(sql, user.id, user.id, found.conversation)[0]
    if not whose["own"] and not whose["shared"]:
        raise Refused("whose conversation this is has not let others use it; ask for another question")
    if not whose["own"] and not whose["given"]:
        raise Refused("rating what others were replied takes your own consent; agree first that your ratings be used")
    return found


def is_own(store: Database, user: User, conversation: str) -> bool:
    """Whether a conversation is this person's."""
    return store.row("SELECT 1 FROM conversations WHERE id = ? AND user = ?", conversation, user.id) is not None


def go_to(store: Database, user: User, message: str) -> None:
    """Make a message the leaf of its conversation, from which the chat goes on. Raises `NotFound`."""
    found = own_node(store, user, message)
    with store.transaction() as db:
        db.conn.execute("UPDATE conversations SET leaf = ? WHERE id = ?", (message, found.conversation))


def hide(store: Database, user: User, conversation: str) -> None:
    """Hide a conversation from the person's list; nothing is deleted. Raises `NotFound`."""
    own_conversation(store, user, conversation)
    with store.transaction() as db:
        db.conn.execute("UPDATE conversations SET hidden_at = ? WHERE id = ?", (now(), conversation))


def pair_of(store: Database, user: User, left: str, right: str) -> SideBySide | None:
    """The pair of two replies, in screen order, if they were shown side by side. Raises `NotFound`."""
    own_reply(store, user, left)
    own_reply(store, user, right)
    row = store.row(
        """SELECT id, parent, left_reply AS "left", right_reply AS "right" FROM pairs
        WHERE left_reply IN (?, ?) AND right_reply IN (?, ?)""",
        *(left, right, left, right),
    )
    return SideBySide(**row) if row else None


def pair_under(store: Database, parent: str) -> SideBySide | None:
    """The newest pair shown side by side under a message, if any."""
    sql = """SELECT id, parent, left_reply AS "left", right_reply AS "right" FROM pairs
        WHERE parent = ? ORDER BY seq DESC LIMIT 1"""
    row = store.row(sql, parent)
    return SideBySide(**row) if row else None


def messages_of(nodes: Sequence[Node]) -> tuple[Message, ...]:
    """A path as messages for the chat template."""
    return tuple(Message(each.role, each.content) for each in nodes)


def record_messages(store: Database, user: User, source: str, messages: Sequence[Message]) -> str:
    """Record a conversation sent by a program (HTTP API); return the id of its last message, the reply's parent.

    Raises `Refused` unless the last message is the user's, and on an unknown role or an invalid message.
    """
    if not messages or messages[-1].role != "user":
        raise Refused("the last message must be the user's")
    if any(message.role not in ("system", "user", "assistant") for message in messages):
        raise Refused("a message's role is system, user or assistant")
    for message in messages:
        require_said(message.role, message.content)
    ids, moment = [new_id() for _ in messages], now()
    title = title_of(next(message.content for message in messages if message.role == "user"))
    with store.transaction() as db:  # one statement for any number of messages, since other writers wait for it
        conversation = start_conversation(store, user, source)
        rows = (
            (id, conversation, parent, message.role, message.content, moment)
            for id, parent, message in zip(ids, [None, *ids], messages, strict=False)
        )
        sql = "INSERT INTO messages (id, conversation, parent, role, content, created_at) VALUES (?, ?, ?, ?, ?, ?)"
        db.conn.executemany(sql, rows)
        db.conn.execute("UPDATE conversations SET leaf = ?, title = ? WHERE id = ?", (ids[-1], title, conversation))
    return ids[-1]
