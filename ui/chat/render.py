"""The rendering of a chat, from its view to Gradio's updates.

The same view always gives the same screen, so showing it again corrects the page, whatever happened before.
"""

from html import escape
from typing import Any

import gradio as gr

from feedback.accounts.users import User
from feedback.kinds.vote import DOWN, REASONS, UP
from ui.chat.layout import Chat, PairPanel, Sidebar
from ui.chat.streams import Turn
from ui.chat.view import About, ChatView
from ui.shared.markdown import with_maths, without_tags
from ui.shared.widgets import Updates

THUMBS = {UP: "Like", DOWN: "Dislike"}  # Gradio draws these two words as thumbs


def message(role: str, text: str, message_id: str, **more: str) -> dict[str, Any]:
    """One message for a Chatbot; as a part, so that Gradio takes its text as it is."""
    shown = without_tags(with_maths(text) if role == "assistant" else text)
    parts = [{"type": "text", "text": shown or "(an empty reply)"}]
    return {"role": role, "content": parts, "metadata": {"id": message_id} | more}


def transcript(view: ChatView, turn: Turn | None = None) -> list[dict[str, Any]]:
    """The conversation, each correction folded in under its reply, and the reply that is being written."""
    shown = []
    for node in view.nodes:
        shown.append(message(node.role, node.content, node.id))
        if node.id in view.corrections:
            text = view.corrections[node.id]
            shown.append(message("assistant", text, f"corrects-{node.id}", title="Your correction", status="done"))
    if turn and not turn.is_pair and turn.texts:
        shown.append(message("assistant", turn.texts[0] or "…", "being-written"))
    return shown


def thumbs(view: ChatView) -> list[str | None]:
    """The thumb of each reply, in order; None for no thumb."""
    replies = (node.id for node in view.nodes if node.role == "assistant")
    return [THUMBS[view.votes[reply].value] if reply in view.votes else None for reply in replies]


def show_conversation(chat: Chat, view: ChatView, turn: Turn | None) -> Updates:
    """The conversation and the controls around it."""
    return {
        chat.conversation: view.conversation or "",
        chat.asking: turn.parent if turn else "",
        chat.consent: gr.Column(visible=view.consent is None),
        chat.chatbot: gr.Chatbot(transcript(view, turn), feedback_value=thumbs(view)),  # type: ignore[arg-type]
        chat.send: gr.Button(visible=turn is None),
        chat.two_replies: gr.Button(visible=turn is None),
        chat.stop: gr.Button(visible=turn is not None),
    }


def show_about(chat: Chat, view: ChatView, turn: Turn | None) -> Updates:
    """The details line: who wrote the reply and how its reader rated it. Hidden while two replies wait for a choice."""
    about = view.about if turn is None and view.pair is None else None
    unanswered = turn is None and view.is_unanswered
    versions = view.versions if turn is None and view.pair is None else None
    return {
        chat.focus: about.reply if about else "",
        chat.about_row: gr.Row(visible=bool(about or unanswered)),
        chat.about: about_line(about) if about else "This message has no reply yet.",
        chat.correct: gr.Button(
            visible=about is not None, value="Change correction" if about and about.correction else "Correct this reply"
        ),
        chat.choose_again: gr.Button(visible=bool(about and about.chosen_over and about.is_last)),
        chat.answer_it: gr.Button(visible=unanswered),
        chat.older: gr.Button(visible=bool(versions and versions.at > 0)),
        chat.newer: gr.Button(visible=bool(versions and versions.at < len(versions.ids) - 1)),
    }


def notice(sentence: str) -> str:
    """One sentence under the text box, as HTML."""
    sentence = sentence[:1].upper() + sentence[1:]
    full_stop = "" if not sentence or sentence.endswith((".", "?", "!")) else "."
    return f'<span role="alert">{escape(sentence)}{full_stop}</span>' if sentence else ""


def about_line(about: About) -> str:
    """The details line as HTML; everything that a person or model wrote is escaped."""
    parts = []
    if not about.is_last:
        start = " ".join(about.text.split())[:40]
        parts.append(f'<span class="which">“{escape(start)}…”</span>')
    parts.append(f'<span id="answered-by">answered by {escape(about.adapter or "the base model")}</span>')
    if about.vote:
        said = [REASONS[reason] for reason in about.vote.reasons] + (
            [f"“{about.vote.words}”"] if about.vote.words else []
        )
        verdict = "good" if about.vote.value == UP else "bad"
        words = f"you: {verdict}" + (f" ({', '.join(said)})" if said else "")
        parts.append(f'<span id="your-rating">{escape(words)}</span>')
    if about.correction:
        parts.append('<span id="your-correction">you corrected it</span>')
    return " · ".join(parts)


def show_pair(panel: PairPanel, view: ChatView, turn: Turn | None) -> Updates:
    """Two replies, being written or waiting for a choice."""
    writing = turn is not None and turn.is_pair
    if not writing and view.pair is None:
        return {panel.panel: gr.Column(visible=False), panel.left: [], panel.right: []}
    left, right = (turn.texts or ("", "")) if turn and writing else (view.pair.left, view.pair.right)  # type: ignore[union-attr]
    return {
        panel.panel: gr.Column(visible=True),
        panel.left: [message("assistant", left or "…", "left")],
        panel.right: [message("assistant", right or "…", "right")],
        panel.choices: gr.Row(visible=not writing),
    }


def show_sidebar(sidebar: Sidebar, view: ChatView, user: User) -> Updates:
    """The person's chats, the current one marked; the consent switch and the account."""
    known = view.conversation in [each for _, each in view.chats]
    account = '<a id="to-operate" href="operate/">Operate</a>' if user.may("operator") else ""
    if user.password_hash is not None:
        leave = '<form method="post" action="logout"><button id="log-out">Log out</button></form>'
        account += (
            f'<a id="to-account" href="account" title="{escape(user.name)}">Account: {escape(user.name)}</a>{leave}'
        )
    return {
        sidebar.chats: gr.Radio(
            choices=list(view.chats), value=view.conversation if known else None, visible=bool(view.chats)
        ),
        sidebar.hide_chat: gr.Button(visible=known),
        sidebar.consent_switch: bool(view.consent),
        sidebar.account: gr.HTML(value=f"<nav>{account}</nav>", visible=bool(account)),
    }
