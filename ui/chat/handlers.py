"""The event handlers of the chat page: each identifies the person, acts on the database, and shows the result."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from assistant.chat import chat as assistant_chat
from assistant.chat.assistant import Assistant
from assistant.engine.sampling.params import Sampling
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.errors import Refused
from feedback.kinds.correction import correct
from feedback.kinds.signal import signal_newest
from feedback.numerals import natural
from ui.accounts.auth import page_user
from ui.chat import feedback_panels, render, side_by_side
from ui.chat.layout import Chat, PairPanel, RatingPanel, Sidebar
from ui.chat.streams import Turns
from ui.chat.view import look, newest, newest_leaf
from ui.shared.markdown import as_typed
from ui.shared.widgets import Updates, telling

TICK_S = 0.08  # between updates of a growing reply


class ChatPage:
    """The handlers of one page, which all its visitors share; each identifies the person."""

    def __init__(self, assistant: Assistant, sidebar: Sidebar, chat: Chat, pair: PairPanel, panel: RatingPanel) -> None:
        self.assistant = assistant
        self.store = assistant.store
        self.turns = Turns()
        self.sidebar = sidebar
        self.chat = chat
        self.pair = pair
        self.panel = panel

    # Showing

    def screen(self, user: User, conversation: str | None, focus: str | None = None, sentence: str = "") -> Updates:
        """The whole page as it should look now."""
        view = look(self.store, user, conversation, focus)
        turn = self.turns.of(view.conversation)
        shown = render.show_sidebar(self.sidebar, view, user)
        shown |= render.show_conversation(self.chat, view, turn)
        shown |= render.show_about(self.chat, view, turn)
        shown |= render.show_pair(self.pair, view, turn)
        return shown | {self.chat.notice: render.notice(sentence or (turn.remark if turn else ""))}

    def open(self, request: gr.Request, left: str) -> Updates:
        """The page as it opens: the chat that was left with unsent text, else the newest."""
        user = page_user(request, self.store)
        return self.screen(user, left or newest(self.store, user)) | feedback_panels.hide_panels(self.panel)

    def new_chat(self, request: gr.Request) -> Updates:
        """Open an empty chat; it is in the list once a message is sent."""
        return (
            self.screen(page_user(request, self.store), None)
            | feedback_panels.hide_panels(self.panel)
            | {self.chat.box: ""}
        )

    def open_chat(self, request: gr.Request, picked: gr.SelectData) -> Updates:
        """Open another of the person's chats."""
        return self.screen(page_user(request, self.store), picked.value) | feedback_panels.hide_panels(self.panel)

    def hide_chat(self, conversation: str, request: gr.Request) -> Updates:
        """Take the chat out of the list and open the newest of the others."""
        user = page_user(request, self.store)
        with telling() as told:
            conversations.hide(self.store, user, conversation)
        return self.screen(user, newest(self.store, user), sentence=told.sentence) | feedback_panels.hide_panels(
            self.panel
        )

    # Talking

    def send(self, request: gr.Request, conversation: str, text: str, *settings: Any) -> Updates:
        """Send a message and begin the reply."""
        return self._send(page_user(request, self.store), conversation, text, settings)

    def two_replies(self, request: gr.Request, conversation: str, text: str, *settings: Any) -> Updates:
        """Send a message and begin two replies; with an empty box, two replies to the person's last message."""
        user = page_user(request, self.store)
        nodes = look(self.store, user, conversation).nodes
        asked = [node.id for node in nodes if node.role == "user"]
        if text.strip() or not asked:
            return self._send(user, conversation, text, settings, on_demand=True)
        return self._answer(user, asked[-1], settings, on_demand=True)

    def _send(
        self, user: User, conversation: str, text: str, settings: tuple[Any, ...], on_demand: bool = False
    ) -> Updates:
        with telling() as told:
            self.turns.check_free(conversation)
            sampling_of(settings)
            under = side_by_side.goes_on_from(self.store, user, conversation) if conversation else None
            message = assistant_chat.add_user_message(self.assistant, user, conversation or None, under, text)
            return self._answer(user, message, settings, on_demand) | {self.chat.box: ""}
        return self.screen(user, conversation, sentence=told.sentence)

    def retry(self, request: gr.Request, what: gr.RetryData, shown: list[dict[str, Any]], *settings: Any) -> Updates:
        """Begin another reply to the same message, as a new branch."""
        user, message = page_user(request, self.store), id_of(shown, what.index)
        with telling():
            signal_newest(self.store, user, message, "retry")
        return self._answer(user, message, settings)

    def answer_it(self, request: gr.Request, shown: list[dict[str, Any]], *settings: Any) -> Updates:
        """Begin a reply to the last message, which has none."""
        return self._answer(page_user(request, self.store), id_of(shown, -1), settings)

    def edit(
        self, request: gr.Request, what: gr.EditData, conversation: str, shown: list[dict[str, Any]], *settings: Any
    ) -> Updates:
        """Send another message in place of one, as a new branch."""
        user = page_user(request, self.store)
        with telling() as told:
            self.turns.check_free(conversation)
            before = conversations.own_node(self.store, user, id_of(shown, what.index))
            message = assistant_chat.add_user_message(
                self.assistant, user, before.conversation, before.parent, as_typed(str(what.value))
            )
            signal_newest(self.store, user, before.id, "edit")
            return self._answer(user, message, settings)
        return self.screen(user, conversation, sentence=told.sentence)

    def _answer(self, user: User, message: str, settings: tuple[Any, ...], on_demand: bool = False) -> Updates:
        """Begin the reply to a message, and show the chat at that message."""
        conversation = None
        with telling() as told:
            conversation = conversations.own_node(self.store, user, message).conversation
            self.turns.check_free(conversation)
            turn = side_by_side.begin(self.assistant, user, message, sampling_of(settings), on_demand)
            conversations.go_to(self.store, user, message)
            self.turns.start(conversation, turn)
        return self.screen(user, conversation, sentence=told.sentence) | feedback_panels.hide_panels(self.panel)

    def follow(self, request: gr.Request, conversation: str, asking: str) -> Iterator[Updates]:
        """Show the reply that the page waits for as it grows, then the whole page as it should look."""
        user = page_user(request, self.store)
        if not asking:
            yield {self.chat.stop: gr.Button(visible=False)}
            return
        view = look(self.store, user, conversation)
        turn = self.turns.under(view.conversation, asking)  # it may be over before the page has asked
        while turn and not turn.ended.wait(TICK_S):
            if turn.is_pair:
                shown = render.show_pair(self.pair, view, turn)
                yield {part: shown[part] for part in (self.pair.left, self.pair.right)}
            else:
                yield {self.chat.chatbot: render.transcript(view, turn)}
        yield self.screen(user, conversation, sentence=turn.remark if turn else "")

    def stop(self, request: gr.Request, conversation: str) -> None:
        """Stop the reply being written; the pages that follow it show what was written."""
        user = page_user(request, self.store)
        turn = self.turns.of(look(self.store, user, conversation).conversation)
        if turn:
            turn.writing.stop()

    def other_version(self, request: gr.Request, step: int, conversation: str) -> Updates:
        """Show the chat along the branch before or after the one shown, at its last fork."""
        user = page_user(request, self.store)
        with telling() as told:
            self.turns.check_free(conversation)
            versions = look(self.store, user, conversation).versions
            if versions and 0 <= versions.at + step < len(versions.ids):
                conversations.go_to(self.store, user, newest_leaf(self.store, versions.ids[versions.at + step]))
        return self.screen(user, conversation, sentence=told.sentence) | feedback_panels.hide_panels(self.panel)

    # Rating

    def choose(self, request: gr.Request, choice: str, conversation: str) -> Updates:
        """Record a choice: left, right, tie or both bad."""
        user = page_user(request, self.store)
        with telling() as told:
            side_by_side.choose(self.store, user, conversation, choice)
        return self.screen(user, conversation, sentence=told.sentence)

    def choose_again(self, request: gr.Request, conversation: str, focus: str) -> Updates:
        """Take back the choice and show the two replies again."""
        user = page_user(request, self.store)
        with telling() as told:
            side_by_side.choose_again(self.store, user, focus)
        return self.screen(user, conversation, sentence=told.sentence) | feedback_panels.hide_panels(self.panel)

    def thumb(self, request: gr.Request, what: gr.LikeData, conversation: str, shown: list[dict[str, Any]]) -> Updates:
        """Record a thumb given, changed or taken back, and ask for the reasons if there is one."""
        user = page_user(request, self.store)
        reply = id_of(shown, what.index)
        panels = feedback_panels.hide_panels(self.panel)
        with telling() as told:
            feedback_panels.thumb(self.store, user, reply, what.liked)
            panels = feedback_panels.ask_why(self.panel, self.store, user, reply)
        return self.screen(user, conversation, reply, told.sentence) | panels

    def explain(self, request: gr.Request, conversation: str, reply: str, reasons: list[str], words: str) -> Updates:
        """Record reasons and words for a thumb."""
        user = page_user(request, self.store)
        panels: Updates = {}
        with telling() as told:
            feedback_panels.explain(self.store, user, reply, reasons, words)
            panels = feedback_panels.hide_panels(self.panel)
        return self.screen(user, conversation, reply, told.sentence) | panels

    def ask_correction(self, request: gr.Request, conversation: str, reply: str) -> Updates:
        """Open the correction panel of a reply."""
        user = page_user(request, self.store)
        with telling() as told:
            return feedback_panels.ask_correction(self.panel, self.store, user, reply)
        return self.screen(user, conversation, sentence=told.sentence)

    def correct(self, request: gr.Request, conversation: str, reply: str, text: str) -> Updates:
        """Record the correction of a reply."""
        user = page_user(request, self.store)
        panels: Updates = {}
        with telling() as told:
            feedback_panels.correct(self.store, user, reply, text)
            panels = feedback_panels.hide_panels(self.panel)
        return self.screen(user, conversation, reply, told.sentence) | panels

    def take_correction_back(self, request: gr.Request, conversation: str, reply: str) -> Updates:
        """Take back the correction of a reply."""
        user = page_user(request, self.store)
        with telling() as told:
            correct(self.store, user, reply, "")
        return self.screen(user, conversation, reply, told.sentence) | feedback_panels.hide_panels(self.panel)

    def point_at(
        self, request: gr.Request, what: gr.SelectData, conversation: str, shown: list[dict[str, Any]]
    ) -> Updates:
        """Show the details of the reply that was clicked."""
        user = page_user(request, self.store)
        view = look(self.store, user, conversation, id_of(shown, what.index))
        return render.show_about(self.chat, view, self.turns.of(view.conversation))

    def consent(self, request: gr.Request, given: bool) -> Updates:
        """Record whether this person's ratings may be used for training."""
        user = page_user(request, self.store)
        with telling() as told:
            users.set_consent(self.store, user, given)
        standing = users.consent(self.store, user)
        return {
            self.chat.consent: gr.Column(visible=standing is None),
            self.sidebar.consent_switch: bool(standing),
            self.chat.notice: render.notice(told.sentence),
        }


def id_of(shown: list[dict[str, Any]], index: int | tuple[int, int]) -> str:
    """The id of a message in the chatbot; empty out of range. A correction's id is not one of the database."""
    place = index if isinstance(index, int) else index[0]
    if not -len(shown) <= place < len(shown):
        return ""
    return str((shown[place].get("metadata") or {}).get("id", ""))


def sampling_of(settings: tuple[Any, ...]) -> Sampling:
    """The sampling parameters from values in the order of `sampling_controls`. Raises `Refused` on invalid ones."""
    temperature, top_p, max_tokens, seed, greedy, beams = settings
    number = natural(seed.strip())
    if seed.strip() and number is None:
        raise Refused(f"a seed is a whole number, or empty for a new one each time, not {seed.strip()[:40]!r}")
    return Sampling(
        temperature=0.0 if greedy else float(temperature),
        top_p=float(top_p),
        max_tokens=int(max_tokens),
        seed=number,
        beams=int(beams),
    )
