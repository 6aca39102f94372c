"""The controls of the chat page and their layout.

The `elem_id` of a control never changes.
"""

from dataclasses import dataclass, fields

import gradio as gr

from feedback.kinds.vote import REASONS
from ui.shared.widgets import button

# A single $ is money more often than mathematics.
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
CONSENT = """**May Nightschool learn from your ratings?** Your thumbs, choices and corrections would train tonight's
adapter, the part of the assistant that learns. They stay on this server. You can change your answer at any
time in the sidebar."""


@dataclass(frozen=True)
class Sidebar:
    """The sidebar, with the person's chats and settings."""

    new_chat: gr.Button
    chats: gr.Radio
    hide_chat: gr.Button
    temperature: gr.Slider
    top_p: gr.Slider
    max_tokens: gr.Slider
    seed: gr.Textbox
    greedy: gr.Checkbox
    beams: gr.Slider
    consent_switch: gr.Checkbox
    account: gr.HTML


@dataclass(frozen=True)
class Chat:
    """The conversation, the details of one reply, and the text box."""

    conversation: gr.Textbox  # ids are kept in the page, not in the session, so they survive a restart
    focus: gr.Textbox
    asking: gr.Textbox  # the message whose answer is being written, as far as the page knows
    consent: gr.Column
    consent_yes: gr.Button
    consent_no: gr.Button
    chatbot: gr.Chatbot
    about_row: gr.Row
    about: gr.HTML
    correct: gr.Button
    choose_again: gr.Button
    answer_it: gr.Button
    older: gr.Button
    newer: gr.Button
    box: gr.Textbox
    two_replies: gr.Button
    send: gr.Button
    stop: gr.Button
    notice: gr.HTML


@dataclass(frozen=True)
class PairPanel:
    """Two replies side by side, and the buttons of the choice."""

    panel: gr.Column
    left: gr.Chatbot
    right: gr.Chatbot
    choices: gr.Row
    left_better: gr.Button
    right_better: gr.Button
    tie: gr.Button
    both_bad: gr.Button


@dataclass(frozen=True)
class RatingPanel:
    """The reasons for a thumb, and the correction of a reply."""

    why: gr.Column
    question: gr.HTML
    reasons: gr.CheckboxGroup
    words: gr.Textbox
    save: gr.Button
    close: gr.Button
    correction: gr.Column
    corrected: gr.Textbox
    save_correction: gr.Button
    take_back: gr.Button
    cancel: gr.Button


def controls(*parts: Sidebar | Chat | PairPanel | RatingPanel) -> list[gr.blocks.Block]:
    """Every control of some parts of the page, as Gradio's list of outputs."""
    return [getattr(part, each.name) for part in parts for each in fields(part)]


def messages(elem_id: str, label: str, **more: object) -> gr.Chatbot:
    """A list of messages in which Markdown is the only markup."""
    return gr.Chatbot(
        elem_id=elem_id,
        label=label,
        show_label=False,
        container=False,
        sanitize_html=True,
        allow_tags=["img"],  # "allowed" means shown as text: an image would tell another server who reads this
        latex_delimiters=LATEX,
        height="auto",
        **more,  # type: ignore[arg-type]
    )


def build_sidebar() -> Sidebar:
    """The person's chats, the sampling settings, and the consent to learning from ratings."""
    with gr.Sidebar(elem_id="sidebar", width=290, open=False):
        gr.HTML("<h1>Nightschool</h1>", elem_id="brand")
        new_chat = gr.Button("New chat", elem_id="new-chat", variant="secondary")
        chats = gr.Radio([], label="Your chats", elem_id="chats", interactive=True)
        hide_chat = button("Remove this chat from the list", "hide-chat", visible=False)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            temperature = gr.Slider(
                0, 2, 0.7, step=0.05, label="Temperature", info="Higher: more varied", elem_id="temperature"
            )
            top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p", info="Lower: only likely words", elem_id="top-p")
            max_tokens = gr.Slider(1, 2048, 512, step=1, label="Longest reply, in tokens", elem_id="max-tokens")
            # Not gr.Number, which reads an empty field as 0.
            seed = gr.Textbox("", label="Seed", placeholder="a new one for each reply", max_lines=1, elem_id="seed")
            greedy = gr.Checkbox(False, label="Greedy: always the likeliest word", elem_id="greedy")
            beams = gr.Slider(1, 8, 1, step=1, label="Beams", info="Over 1: beam search", elem_id="beams")
        consent_switch = gr.Checkbox(False, label="Learn from my ratings", elem_id="consent-switch", container=False)
        account = gr.HTML(elem_id="account", visible=False)
    return Sidebar(
        new_chat, chats, hide_chat, temperature, top_p, max_tokens, seed, greedy, beams, consent_switch, account
    )


def build_consent() -> tuple[gr.Column, gr.Button, gr.Button]:
    """The notice that asks for consent."""
    with gr.Column(elem_id="consent", visible=False) as consent:
        gr.Markdown(CONSENT)
        with gr.Row():
            yes = button("Yes, learn from my ratings", "consent-yes", "primary")
            no = button("No, just chat", "consent-no")
    return consent, yes, no


def build_pair() -> PairPanel:
    """The panel of two blind replies."""
    with gr.Column(elem_id="pair", visible=False) as panel:
        gr.HTML("<strong>Which reply is better?</strong> The chat goes on with your choice.", elem_id="pair-question")
        with gr.Row(elem_id="pair-replies"):
            left = messages("left-reply", "Left reply", buttons=["copy"])
            right = messages("right-reply", "Right reply", buttons=["copy"])
        with gr.Row(elem_id="pair-choices") as choices:
            left_better = button("Left is better", "left-is-better")
            tie = button("Tie", "tie")
            both_bad = button("Both bad", "both-bad")
            right_better = button("Right is better", "right-is-better")
    return PairPanel(panel, left, right, choices, left_better, right_better, tie, both_bad)


def build_rating() -> RatingPanel:
    """Two small panels under the chat, one at a time."""
    with gr.Column(elem_id="why", visible=False) as why:
        question = gr.HTML(elem_id="why-question")
        reasons = gr.CheckboxGroup(
            [(words, key) for key, words in REASONS.items()],
            label="Reasons",
            show_label=False,
            container=False,
            elem_id="reasons",
        )
        with gr.Row(elem_classes="one-line"):
            words = gr.Textbox(
                label="In your own words",
                show_label=False,
                container=False,
                placeholder="In your own words (optional)",
                elem_id="why-words",
                max_lines=4,
            )
            save = button("Save", "save-why", "primary")
            close = button("Close", "close-why")
    with gr.Column(elem_id="correction", visible=False) as correction:
        corrected = gr.Textbox(
            label="The reply as it should have been", elem_id="corrected-text", lines=4, max_lines=12, container=False
        )
        with gr.Row(elem_classes="one-line"):
            save_correction = button("Save correction", "save-correction", "primary")
            take_back = button("Take correction back", "take-correction-back", visible=False)
            cancel = button("Cancel", "cancel-correction")
    return RatingPanel(
        why, question, reasons, words, save, close, correction, corrected, save_correction, take_back, cancel
    )


def build_about() -> tuple[gr.Row, gr.HTML, gr.Button, gr.Button, gr.Button, gr.Button, gr.Button]:
    """The details line under the conversation, with its buttons."""
    with gr.Row(elem_id="about-row", visible=False) as row:
        older = button("‹ Older version", "older-version", visible=False)
        newer = button("Newer version ›", "newer-version", visible=False)
        about = gr.HTML(elem_id="about")
        answer_it = button("Answer it", "answer-it", visible=False)
        choose_again = button("Choose again", "choose-again", visible=False)
        correct = button("Correct this reply", "correct", visible=False)
    return row, about, correct, choose_again, answer_it, older, newer


def build_composer() -> tuple[gr.Textbox, gr.Button, gr.Button, gr.Button, gr.HTML]:
    """The text box with its buttons, and the notice under it."""
    with gr.Column(elem_id="composer"):
        box = gr.Textbox(
            label="Your message",
            show_label=False,
            container=False,
            lines=1,
            max_lines=10,
            placeholder="Ask anything",
            autofocus=True,
            elem_id="box",
        )
        with gr.Row(elem_id="composer-buttons"):
            two = button("Two replies", "two-replies")
            send = button("Send", "send", "primary")
            stop = button("Stop", "stop", "stop", visible=False)
    notice = gr.HTML(elem_id="notice")
    return box, two, send, stop, notice


def build_main() -> tuple[Chat, PairPanel, RatingPanel]:
    """The conversation from top to bottom, and the text box under it."""
    conversation = gr.Textbox("", visible=False)
    focus = gr.Textbox("", visible=False)
    asking = gr.Textbox("", visible=False)
    with gr.Column(elem_id="main"):
        consent, yes, no = build_consent()
        chatbot = messages(
            "chat",
            "Conversation",
            layout="bubble",
            buttons=["copy"],
            editable="user",
            placeholder="## What would you like to talk about?\nWhat you say of the replies is what they learn from.",
        )
        pair = build_pair()
        row, about, correct, choose_again, answer_it, older, newer = build_about()
        panel = build_rating()
        box, two, send, stop, notice = build_composer()
    chat = Chat(
        conversation=conversation,
        focus=focus,
        asking=asking,
        consent=consent,
        consent_yes=yes,
        consent_no=no,
        chatbot=chatbot,
        about_row=row,
        about=about,
        correct=correct,
        choose_again=choose_again,
        answer_it=answer_it,
        older=older,
        newer=newer,
        box=box,
        two_replies=two,
        send=send,
        stop=stop,
        notice=notice,
    )
    return chat, pair, panel
