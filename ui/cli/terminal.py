"""Chat in a terminal, with thumbs and corrections: `nightschool chat`.

Messages and ratings go into the same database as those of the page, and are used for training alike.
"""

import sys
from dataclasses import dataclass

from assistant.chat.assistant import Assistant
from assistant.chat.chat import ReplyStream, add_user_message, remark, start_reply
from assistant.engine.sampling.params import Sampling
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations as talks
from feedback.errors import Refused
from feedback.kinds.correction import correct
from feedback.kinds.vote import DOWN, NONE, UP, vote

HELP = """Write a message, or:
  /up, /down [words]   rate the last reply      /undo           take the rating back
  /correct TEXT        what it should have said /who            which adapter answered
  /consent yes|no      may ratings teach?       /new, /quit     Ctrl-C stops a reply"""


@dataclass
class Talk:
    """The state of this chat."""

    conversation: str | None = None
    last: str | None = None  # message id of the last reply
    adapter: str | None = None


def chat(assistant: Assistant, user: User, sampling: Sampling) -> None:
    """Read messages and commands until the end of input."""
    print(HELP)
    if users.consent(assistant.store, user) is None:
        print("Your ratings can train tonight's adapter, on this machine only. /consent yes allows it.")
    talk = Talk()
    while True:
        try:
            line = input("\nyou> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line == "/quit":
            return
        try:
            if line.startswith("/"):
                print(command(assistant, user, talk, line))
            elif line:
                turn(assistant, user, talk, line, sampling)
        except Refused as error:
            print(f"({error})")


def turn(assistant: Assistant, user: User, talk: Talk, text: str, sampling: Sampling) -> None:
    """Send one message, and print its reply as it is written."""
    message = add_user_message(assistant, user, talk.conversation, talk.last, text, source="terminal")
    reply = start_reply(assistant, user, message, sampling)
    if told := remark(reply):
        print(f"({told})")
    written = 0
    try:
        for so_far in reply:
            print(so_far[written:], end="", flush=True)
            written = len(so_far)
    except KeyboardInterrupt:
        reply.finish_now()
        print(" (stopped)", end="")
    print()
    remember(assistant, talk, reply)


def remember(assistant: Assistant, talk: Talk, reply: ReplyStream) -> None:
    """Continue the chat from this reply, unless it is empty."""
    if reply.text:
        talk.last, talk.adapter = reply.id, reply.adapter
        talk.conversation = talks.node(assistant.store, reply.id).conversation


def command(assistant: Assistant, user: User, talk: Talk, line: str) -> str:
    """Carry out a line that begins with /; the words to print."""
    store = assistant.store
    name, _, rest = line.partition(" ")
    if name == "/new":
        talk.conversation = talk.last = talk.adapter = None
        return "A new chat."
    if name == "/consent" and rest in ("yes", "no"):
        users.set_consent(store, user, rest == "yes")
        return "Thank you, noted."
    if name in ("/up", "/down", "/undo", "/correct", "/who") and talk.last is None:
        return "There is no reply yet."
    if name in ("/up", "/down", "/undo") and talk.last:
        value = {"/up": UP, "/down": DOWN, "/undo": NONE}[name]
        vote(store, user, talk.last, value, words=rest)
        return "Taken back." if name == "/undo" else "Noted."
    if name == "/correct" and rest.strip() and talk.last:
        correct(store, user, talk.last, rest)
        return "Noted."
    if name == "/who":
        return talk.adapter or "the base model"
    return HELP


def sure_of_utf8() -> None:
    """Let any character be printed, whatever encoding the terminal declares."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
