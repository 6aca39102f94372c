"""One turn of a chat: a person's message, one reply to it or two side by side, and the record of them."""

import random
from collections.abc import Iterator
from dataclasses import replace

from assistant.chat.assistant import Assistant
from assistant.chat.reply import ReplyStream
from assistant.engine.request import EngineError, Who
from assistant.engine.sampling.params import Sampling
from assistant.models import chat_template
from assistant.models.chat_template import Prompt
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.messages import Message

SERVING = "serving"  # as an adapter's name: the one serving at that moment


def add_user_message(
    assistant: Assistant, user: User, conversation: str | None, parent: str | None, text: str, source: str = "chat"
) -> str:
    """Record a person's message under the message `parent` (None: at the root) and return its id.

    Without a conversation, one is started. Raises `Refused` on an empty message or one that is too long for the model,
    `NotFound` if the conversation or parent is another person's; nothing is recorded then.
    """
    store = assistant.store
    if conversation is not None:
        conversations.own_conversation(store, user, conversation)
    before = conversations.path(store, parent) if parent else []
    said = [*conversations.messages_of(before), Message("user", conversations.checked(text))]
    chat_template.encode_prompt(assistant.tokenizer, said, assistant.longest_prompt)
    with store.transaction():
        conversation = conversation or conversations.start_conversation(store, user, source)
        return conversations.add_message(store, conversation, parent, "user", text)


def share_of(store: Database, user: User) -> Who:
    """Whose share of the engine a person's replies count towards; with accounts, each person has their own."""
    return user.id if users.has_accounts(store) else None


def require_in_window(assistant: Assistant, sampling: Sampling) -> None:
    """Raise `Refused` if a program asks for more tokens than the model's window, where a reply ends in any case."""
    if sampling.max_tokens > max(assistant.engine.window, Sampling().max_tokens):
        sentence = (
            f"max_tokens is at most {assistant.engine.window:,}, which is all that the model takes, prompt and reply "
            f"together, not {sampling.max_tokens:,}"
        )
        raise Refused(sentence, "max_tokens")


def start_reply(
    assistant: Assistant,
    user: User,
    parent: str,
    sampling: Sampling | None = None,
    adapter: str | None = SERVING,
    prompt: Prompt | None = None,
) -> ReplyStream:
    """Begin a reply to a message. Raises `NotFound` on another person's message, `Busy`, `Ending`, or `AdapterRefused`.

    `prompt` is what `prompt_of` returns for the message, so that several replies to it can share it.
    """
    assistant.writing.require_open()
    manager, sampling = assistant.adapters, sampling or Sampling()
    prompt = prompt or prompt_of(assistant, user, parent)
    loaded = manager.current() if adapter == SERVING else manager.get(adapter)
    generation = assistant.engine.submit(prompt.ids, sampling, loaded, who=share_of(assistant.store, user))
    reply = ReplyStream(assistant, parent, generation, prompt.left_out)
    assistant.writing.add(reply)
    return reply


def prompt_of(assistant: Assistant, user: User, parent: str) -> Prompt:
    """The conversation up to a message, ready for a reply. Raises `NotFound` on another person's."""
    conversations.own_node(assistant.store, user, parent)
    messages = conversations.messages_of(conversations.path(assistant.store, parent))
    return chat_template.fitted(assistant.tokenizer, messages, assistant.longest_prompt)


def remark(writing: "ReplyStream | ReplyPair") -> str:
    """What a person should know of a reply's prompt, in a sentence: that the beginning of the chat did not fit."""
    if not writing.left_out:
        return ""
    which = "message" if writing.left_out == 1 else f"{writing.left_out} messages"
    fit, them = ("fits", "it") if writing.left_out == 1 else ("fit", "them")
    return f"the oldest {which} of this chat no longer {fit} into what the model reads, so it answers without {them}"


def start_pair(
    assistant: Assistant,
    user: User,
    parent: str,
    sampling: Sampling | None = None,
    asked: str = "demand",
    adapters: tuple[str | None, str | None] | None = None,
    prompt: Prompt | None = None,
) -> "ReplyPair":
    """Begin two replies to one message, by two adapters in random order on the screen.

    Without `adapters`, the serving adapter is compared with the newest candidate, or with itself if there is none;
    without `prompt`, it comes from `prompt_of`. Raises as `start_reply` does.
    """
    serving = assistant.adapters.serving()
    names = list(adapters) if adapters else [serving, assistant.adapters.challenger() or serving]
    sampling = sampling or Sampling()
    if names[0] == names[1]:
        sampling = differing(sampling)
    random.SystemRandom().shuffle(names)
    prompt = prompt or prompt_of(assistant, user, parent)
    left = start_reply(assistant, user, parent, sampling, names[0], prompt)
    second = replace(sampling, seed=sampling.seed + 1) if sampling.seed is not None else sampling
    try:
        right = start_reply(assistant, user, parent, second, names[1], prompt)
    except (Refused, EngineError):
        left.stop()
        raise
    return ReplyPair(assistant.store, left, right, asked)


def differing(sampling: Sampling) -> Sampling:
    """Sampling with which one adapter gives two replies worth comparing: neither greedy nor beam search."""
    usual = Sampling().temperature
    return replace(sampling, temperature=sampling.temperature or usual, beams=1)


class ReplyPair:
    """Two replies written side by side. Iterate for both texts so far; afterwards `pair` is the recorded pair's id."""

    def __init__(self, store: Database, left: ReplyStream, right: ReplyStream, asked: str) -> None:
        self.left = left
        self.right = right
        self.asked = asked
        self.left_out = left.left_out
        self.pair: str | None = None  # also None if either was stopped before its first word
        self._store = store

    def stop(self) -> None:
        """Stop both replies."""
        self.left.stop()
        self.right.stop()

    def wait(self) -> None:
        """Wait until both are written, without reading them as they grow."""
        try:
            for each in (self.left, self.right):
                while each.advance():
                    pass
        finally:
            self._end()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        going = [self.left, self.right]
        try:
            while going:
                going = [each for each in going if each.advance(timeout_s=0.02)]
                yield self.left.text, self.right.text
        finally:
            self._end()

    def _end(self) -> None:
        for each in (self.left, self.right):
            if not each.over:
                each.finish_now()
        if self.left.recorded and self.right.recorded:
            self.pair = conversations.add_pair(self._store, self.left.parent, self.left.id, self.right.id, self.asked)
