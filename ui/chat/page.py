"""The chat page: a person's chats, the one that is open, and their ratings of its replies.

Everything shown is read from the database, and every message and rating is in the database before the page shows it.
"""

from pathlib import Path
from typing import Any

import gradio as gr

from assistant.chat.assistant import Assistant
from ui.chat import feedback_panels, layout
from ui.chat.handlers import ChatPage
from ui.chat.layout import Sidebar
from ui.gradio_guard import GuardedBlocks
from ui.shared.declaration import Page
from ui.shared.widgets import in_turn, on

CSS = Path(__file__).with_name("chat.css").read_text()
# The sidebar is open where there is room, and closes on a phone once a chat is picked.
ROOM_FOR_SIDEBAR = """() => {
    const bar = document.querySelector("#sidebar");
    if (bar && bar.classList.contains("open") !== innerWidth > 768) bar.querySelector(".toggle-button").click();
}"""
CHAT_LEFT = "() => [window.nightschool?.draft().chat ?? '']"
OPENED = "() => { document.querySelector('#main').dataset.opened = 'yes'; nightschool.opened(); }"
SHOW_CORRECTION = "() => nightschool.show('#correction', '#corrected-text textarea')"


def build(assistant: Assistant) -> gr.Blocks:
    """The page, ready to be mounted."""
    with GuardedBlocks(title="Nightschool", analytics_enabled=False, fill_width=True) as page:
        sidebar = layout.build_sidebar()
        chat, pair, panel = layout.build_main()
        handlers = ChatPage(assistant, sidebar, chat, pair, panel)
        wire_talking(page, handlers)
        wire_rating(handlers)
    return page.queue(default_concurrency_limit=None, api_open=False)


def wire_talking(page: gr.Blocks, handlers: ChatPage) -> None:
    """Wire the controls that send, stop, open and hide."""
    chat, sidebar = handlers.chat, handlers.sidebar
    everything = layout.controls(sidebar, chat, handlers.pair, handlers.panel)
    settings = sampling_controls(sidebar)
    spoken = [chat.conversation, chat.box, *settings]

    for trigger in (page.load, sidebar.new_chat.click, sidebar.chats.select):
        trigger(None, js=ROOM_FOR_SIDEBAR, api_visibility="private")
    opened = on(page.load, handlers.open, [chat.conversation], everything, js=CHAT_LEFT)
    opened.then(None, js=OPENED, api_visibility="private")
    begun = [
        opened,
        in_turn(chat.box.submit, handlers.send, spoken, everything, once="say"),
        in_turn(chat.send.click, handlers.send, spoken, everything, once="say"),
        in_turn(chat.two_replies.click, handlers.two_replies, spoken, everything, once="say"),
        in_turn(chat.chatbot.retry, handlers.retry, [chat.chatbot, *settings], everything, once="retry"),
        in_turn(
            chat.chatbot.edit, handlers.edit, [chat.conversation, chat.chatbot, *settings], everything, once="edit"
        ),
        in_turn(chat.answer_it.click, handlers.answer_it, [chat.chatbot, *settings], everything, once="answer_it"),
    ]
    awaited = [chat.conversation, chat.asking]
    following = [on(each.then, handlers.follow, awaited, everything, trigger_mode="multiple") for each in begun]
    # When another chat is opened, the reply being written goes on in its own thread.
    for trigger, act, inputs in (
        (sidebar.new_chat.click, handlers.new_chat, []),
        (sidebar.chats.select, handlers.open_chat, []),
        (sidebar.hide_chat.click, handlers.hide_chat, [chat.conversation]),
    ):
        opened = in_turn(trigger, act, inputs, everything, cancels=following)
        following.append(on(opened.then, handlers.follow, awaited, everything, trigger_mode="multiple"))
    on(chat.stop.click, handlers.stop, [chat.conversation], [])
    in_turn(chat.older.click, handlers.other_version, [gr.State(-1), chat.conversation], everything)
    in_turn(chat.newer.click, handlers.other_version, [gr.State(1), chat.conversation], everything)


def wire_rating(handlers: ChatPage) -> None:
    """Wire the controls that rate, choose, correct and consent."""
    chat, sidebar, pair, panel = handlers.chat, handlers.sidebar, handlers.pair, handlers.panel
    everything = layout.controls(sidebar, chat, pair, panel)
    about = [chat.conversation, chat.focus]

    for button, choice in (
        (pair.left_better, "left"),
        (pair.right_better, "right"),
        (pair.tie, "tie"),
        (pair.both_bad, "both_bad"),
    ):
        in_turn(button.click, handlers.choose, [gr.State(choice), chat.conversation], everything, once=choice)
    in_turn(chat.choose_again.click, handlers.choose_again, about, everything, once="choose_again")
    in_turn(chat.chatbot.like, handlers.thumb, [chat.conversation, chat.chatbot], everything)
    in_turn(chat.chatbot.select, handlers.point_at, [chat.conversation, chat.chatbot], everything)
    in_turn(panel.save.click, handlers.explain, [*about, panel.reasons, panel.words], everything)
    in_turn(panel.words.submit, handlers.explain, [*about, panel.reasons, panel.words], everything)
    asked = in_turn(chat.correct.click, handlers.ask_correction, about, everything)
    asked.then(None, js=SHOW_CORRECTION, api_visibility="private")
    in_turn(panel.save_correction.click, handlers.correct, [*about, panel.corrected], everything)
    in_turn(panel.take_back.click, handlers.take_correction_back, about, everything)
    for close in (panel.close, panel.cancel):
        in_turn(close.click, lambda: feedback_panels.hide_panels(panel), [], everything)
    consent = [chat.consent, sidebar.consent_switch, chat.notice]
    in_turn(chat.consent_yes.click, handlers.consent, [gr.State(True)], consent)
    in_turn(chat.consent_no.click, handlers.consent, [gr.State(False)], consent)
    in_turn(sidebar.consent_switch.input, handlers.consent, [sidebar.consent_switch], consent)


def sampling_controls(sidebar: Sidebar) -> list[Any]:
    """The controls that `sampling_of` reads, in its order."""
    return [sidebar.temperature, sidebar.top_p, sidebar.max_tokens, sidebar.seed, sidebar.greedy, sidebar.beams]


PAGE = Page("/", build, css=CSS)
