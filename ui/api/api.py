"""The HTTP API for people: two replies to compare, questions, consent, and their own conversations.

Another person's ids are treated as if they did not exist.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from assistant.chat.assistant import Assistant
from assistant.chat.chat import ReplyPair, require_in_window, share_of, start_pair
from assistant.engine.sampling.params import Sampling
from assistant.models import chat_template
from assistant.models.chat_template import Prompt
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations as chats
from feedback.chats.conversations import Node
from feedback.database.database import Database
from feedback.errors import Refused, Unavailable
from feedback.kinds.correction import standing_correction
from feedback.kinds.vote import standing_vote
from feedback.messages import Message
from feedback.raters import questions
from feedback.records.adapters import BASE
from feedback.upkeep import privacy
from ui.accounts.auth import Person
from ui.accounts.dependencies import REFUSALS, STRICT, TheAssistant, TheStore, Writing
from ui.api.generating import Share

MOST_MESSAGES = 2_000  # in a conversation that a program sends; a reply to so many begins within a second
MOST_CHARACTERS = 1_000_000  # in all messages of one
IN_WINDOW = "At most the model's context window; prompt and reply together end there in any case."

router = APIRouter(prefix="/api", responses=REFUSALS)


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = STRICT
    role: str = Field(description="system, user or assistant.")
    content: str


class PairAsked(BaseModel):
    """A conversation that wants two replies."""

    model_config = STRICT
    messages: list[Turn] = Field(max_length=MOST_MESSAGES, description="The last one is the user's.")
    adapters: list[str | None] | None = Field(
        None,
        description='The two adapters by id, "base" for the base. Without: what serves, and its newest challenger.',
    )
    max_tokens: int = Field(512, description=IN_WINDOW)
    temperature: float = 0.7
    seed: int | None = None


class Blind(BaseModel):
    """A reply whose author is not told."""

    reply: str
    text: str


class Pair(BaseModel):
    """Two replies, blind and in random order, to be compared through /api/comparisons."""

    pair: str
    left: Blind
    right: Blind
    left_out: int = Field(description="The oldest messages, which no longer fit into what the model reads.")


class Question(BaseModel):
    """Replies to one message, to be compared (two) or ranked (more)."""

    id: str
    kind: Literal["comparison", "ranking"]
    messages: list[Turn]
    replies: list[Blind]


class Consent(BaseModel):
    """Whether a person's ratings may teach the assistant; null while they were not asked."""

    model_config = STRICT
    given: bool | None


class ConsentSaid(BaseModel):
    """A person's word on whether their ratings may teach the assistant, from now on and for all they said before."""

    model_config = STRICT
    given: bool


class Chat(BaseModel):
    """A conversation in a list."""

    id: str
    title: str
    leaf: str | None = Field(description="The message that the chat goes on from.")
    created_at: str


class Thumb(BaseModel):
    """A current vote."""

    value: Literal[1, -1]
    reasons: list[str]
    words: str


class Said(BaseModel):
    """A message where it stands, with what its reader said of it."""

    id: str
    parent: str | None
    role: str
    content: str
    vote: Thumb | None = None
    correction: str | None = None


class WholeChat(Chat):
    """A conversation with every branch: each message names the one it stands under."""

    messages: list[Said]


@router.post("/pairs", response_model=Pair, tags=["feedback"])
async def pair(
    body: PairAsked, request: Request, user: Person, share: Share, assistant: TheAssistant, write: Writing
) -> dict[str, Any]:
    """Two blind replies to a conversation, to be compared. Answers when both are written."""
    listener = Listener()

    def work() -> dict[str, Any]:
        return write.in_time(body, lambda: write_pair(assistant, user, body, listener))

    watching = asyncio.create_task(when_gone(request, listener.leave))
    try:
        answer: dict[str, Any] = await request.app.state.generating.begin(share, work)
    finally:
        watching.cancel()
    return answer


class Listener:
    """A client that waits for two replies, and may disconnect before or after they are begun."""

    def __init__(self) -> None:
        self._both: ReplyPair | None = None
        self._gone = False

    def begin(self, both: ReplyPair) -> None:
        """Attach the two replies; stop them if the client has left already."""
        self._both = both
        if self._gone:
            both.stop()

    def leave(self) -> None:
        """Record that the client has left, and stop the replies."""
        self._gone = True
        if self._both:
            self._both.stop()


async def when_gone(request: Request, act: Callable[[], None]) -> None:
    """Act once the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    act()


def write_pair(assistant: Assistant, user: User, body: PairAsked, listener: Listener) -> dict[str, Any]:
    """Record a conversation and write two replies to it.

    Raises `Refused` on a bad request, before anything is recorded, and `Unavailable` on a reply cut short or empty.
    """
    sampling = Sampling(temperature=body.temperature, max_tokens=body.max_tokens, seed=body.seed)
    named = None
    if body.adapters is not None:
        if len(body.adapters) != 2:
            raise Refused(f"adapters names two, not {len(body.adapters)}")
        left, right = (None if name == BASE else name for name in body.adapters)
        named = (left, right)
        for name in named:
            assistant.adapters.get(name)
    messages = [Message(turn.role, turn.content) for turn in body.messages]
    prompt = readable(assistant, user, messages, sampling, replies=2)
    parent = chats.record_messages(assistant.store, user, "pairs", messages)
    both = start_pair(assistant, user, parent, sampling, "api", named, prompt)
    listener.begin(both)
    both.wait()
    if "cancelled" in (both.left.finish, both.right.finish):
        raise Unavailable("the two replies were cut short: their reader has left, or the server is shutting down")
    if both.pair is None:
        raise Unavailable("one of the two replies came out empty, so there is nothing to compare; ask again")
    shown = {
        side: {"reply": reply.id, "text": reply.text} for side, reply in (("left", both.left), ("right", both.right))
    }
    return {"pair": both.pair, **shown, "left_out": both.left_out}


def readable(
    assistant: Assistant, user: User, messages: list[Message], sampling: Sampling, replies: int, cut: bool = True
) -> Prompt:
    """A program's conversation as the model reads it, before it is recorded and gets so many replies.

    Raises `Busy`, `Ending`, `Refused` when it is malformed, and `TooLong` when its last message does not fit, or,
    without `cut`, all of it.
    """
    assistant.writing.require_open()
    require_in_window(assistant, sampling)
    assistant.engine.require_places(share_of(assistant.store, user), replies)
    for message in messages:
        chats.require_whole_characters(message.content)
    longest = assistant.longest_prompt  # first of all, for it is tokens that its sentence speaks of
    prompt = chat_template.whole(assistant.tokenizer, messages[-1:] if cut else messages, longest)
    require_few_characters(messages)
    return chat_template.fitted(assistant.tokenizer, messages, longest) if cut else prompt


def require_few_characters(messages: Sequence[Message]) -> None:
    """Raises `Refused` on a message or a conversation with more characters than are kept."""
    for message in messages:
        chats.checked(message.content)
    if (characters := sum(len(message.content) for message in messages)) > MOST_CHARACTERS:
        sentence = f"a conversation has at most {MOST_CHARACTERS:,} characters, this one has {characters:,}"
        raise Refused(sentence, "messages")


@router.get("/consent", response_model=Consent, tags=["you"])
def consent(user: Person, store: TheStore) -> dict[str, Any]:
    """Whether your ratings may teach the assistant."""
    return {"given": users.consent(store, user)}


@router.post("/consent", response_model=Consent, tags=["you"])
def set_consent(body: ConsentSaid, user: Person, store: TheStore, write: Writing) -> dict[str, Any]:
    """Give or withdraw consent."""

    def act() -> dict[str, Any]:
        users.set_consent(store, user, body.given)
        return {"given": body.given}

    return write.at_once(body, act)


@router.post("/questions", response_model=Question | None, tags=["feedback"])
def question(user: Person, store: TheStore, write: Writing) -> dict[str, Any] | None:
    """What to compare or rank next, blind and in random order; null where there is nothing to ask.

    Answer through /api/comparisons or /api/rankings. It stays the same until it is answered.
    """

    def act() -> dict[str, Any]:
        asked = questions.next_question(store, user)
        return {"question": asked and {"id": asked.id}}  # the words are another's, so they are not kept with the answer

    kept = write.at_once(None, act)["question"]
    asked = questions.question(store, user, kept["id"]) if kept else None
    if asked is None:
        return None
    replies = [{"reply": reply, "text": text} for reply, text in asked.replies]
    messages = [asdict(each) for each in asked.messages]
    return {"id": asked.id, "kind": asked.kind, "messages": messages, "replies": replies}


@router.get("/me", response_model=dict[str, Any], tags=["you"])
def me(user: Person, store: TheStore) -> dict[str, Any]:
    """Everything that is stored about you."""
    return privacy.own_data(store, user)


@router.get("/conversations", response_model=list[Chat], tags=["you"])
def conversations(user: Person, store: TheStore) -> list[dict[str, Any]]:
    """Your chats, newest first."""
    return chats.conversations(store, user)


@router.get("/conversations/{conversation}", response_model=WholeChat, tags=["you"])
def conversation(conversation: str, user: Person, store: TheStore) -> dict[str, Any]:
    """One of your conversations: every branch under the message it began with, and your feedback on its replies."""
    found = chats.own_conversation(store, user, conversation)
    return found | {"messages": [said(store, user, node) for node in chats.tree(store, conversation)]}


@router.post("/conversations/{conversation}/consent", response_model=Consent, tags=["you"])
def set_conversation_consent(
    conversation: str, body: ConsentSaid, user: Person, store: TheStore, write: Writing
) -> dict[str, Any]:
    """Exclude one of your conversations from training, or include it again."""

    def act() -> dict[str, Any]:
        users.set_conversation_consent(store, user, conversation, body.given)
        return {"given": body.given}

    return write.at_once(body, act)


def said(store: Database, user: User, node: Node) -> dict[str, Any]:
    """A message with its reader's current vote and correction."""
    vote = standing_vote(store, user, node.id) if node.role == "assistant" else None
    return {
        "id": node.id,
        "parent": node.parent,
        "role": node.role,
        "content": node.content,
        "vote": asdict(vote) | {"reasons": list(vote.reasons)} if vote else None,
        "correction": standing_correction(store, user, node.id) if vote or node.role == "assistant" else None,
    }
