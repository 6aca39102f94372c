"""The panels under the chat: reasons and words for a thumb, and the correction of a reply."""

from html import escape

import gradio as gr

from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.kinds import correction
from feedback.kinds.correction import standing_correction
from feedback.kinds.vote import DOWN, NONE, UP, standing_vote, vote
from ui.chat.layout import RatingPanel
from ui.shared.widgets import Updates


def thumb(store: Database, user: User, reply: str, liked: bool | str) -> int:
    """Record a click on a thumb; the vote's value."""
    # Gradio sends "" when a thumb is taken back.
    value = NONE if liked == "" else UP if liked is True else DOWN
    vote(store, user, reply, value)
    return value


def explain(store: Database, user: User, reply: str, reasons: list[str], words: str) -> None:
    """Record reasons and words for the current thumb. Raises `Refused` when it was taken back meanwhile."""
    standing = standing_vote(store, user, reply)
    if standing is None:
        raise Refused("your thumb on this reply was taken back; give one first")
    kept = reasons if standing.value == DOWN else []  # all reasons say what was wrong
    vote(store, user, reply, standing.value, kept, words.strip())


def correct(store: Database, user: User, reply: str, text: str) -> None:
    """Record the correction of a reply. Raises `Refused` when it is empty or the reply as it was."""
    if not text.strip():
        raise Refused("an empty correction says nothing; write the reply as it should have been")
    if text.strip() == conversations.own_reply(store, user, reply).content.strip():
        raise Refused("this is the reply as it was; change it into what it should have been")
    correction.correct(store, user, reply, text)


def ask_why(panel: RatingPanel, store: Database, user: User, reply: str) -> Updates:
    """Open the panel of reasons, with the current ones."""
    standing = standing_vote(store, user, reply)
    if standing is None:
        return hide_panels(panel)
    start = escape(" ".join(conversations.own_reply(store, user, reply).content.split())[:60])
    question = "What was good?" if standing.value == UP else "What was wrong?"
    return hide_panels(panel) | {
        panel.why: gr.Column(visible=True),
        panel.question: f'<strong>{question}</strong> <span class="which">“{start}…”</span>',
        panel.reasons: gr.CheckboxGroup(value=list(standing.reasons), visible=standing.value == DOWN),
        panel.words: standing.words,
    }


def ask_correction(panel: RatingPanel, store: Database, user: User, reply: str) -> Updates:
    """Open the correction panel, with the current correction or else the reply."""
    before = standing_correction(store, user, reply)
    return hide_panels(panel) | {
        panel.correction: gr.Column(visible=True),
        panel.corrected: before or conversations.own_reply(store, user, reply).content,
        panel.take_back: gr.Button(visible=before is not None),
    }


def hide_panels(panel: RatingPanel) -> Updates:
    """Hide both panels."""
    return {panel.why: gr.Column(visible=False), panel.correction: gr.Column(visible=False)}
