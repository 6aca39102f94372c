"""The controls of the operate page and their layout.

The `elem_id` of a control never changes.
"""

from dataclasses import dataclass, fields
from typing import Any
from zoneinfo import available_timezones

import gradio as gr

from feedback.records import methods
from feedback.records.settings import SETTINGS
from ui.shared.widgets import button

SHARE = "side_by_side_share"  # the setting with a place of its own, in the schedule panel
TICK_S, IDLE_TICK_S = 2.0, 6.0  # between refreshes, while a night runs and while none does
# A button in a list tells its handler which row it is in.
NAMED_BUTTONS = """element.addEventListener("click", event => {
    const button = event.target.closest("button[data-name]");
    if (button) trigger("click", {name: button.dataset.name});
});"""


@dataclass(frozen=True)
class Glance:
    """The parts that are only read; each is sent again only when it has changed."""

    account: gr.HTML
    headline: gr.HTML
    tiles: gr.HTML
    night: gr.HTML
    said: gr.HTML
    adapters: gr.HTML
    schedule: gr.HTML
    nights: gr.HTML
    clock: gr.HTML
    trail: gr.HTML


@dataclass(frozen=True)
class NightPanel:
    """Starts and cancels nights, and chooses the one that is shown."""

    running: gr.Textbox  # the id of the night shown as running
    which: gr.Dropdown
    method: gr.Dropdown
    again: gr.Checkbox
    run: gr.Button
    cancel: gr.Button
    notice: gr.HTML


@dataclass(frozen=True)
class PromotionPanel:
    """Asks for a reason before another adapter serves."""

    rollback: gr.Button
    notice: gr.HTML
    panel: gr.Column
    question: gr.HTML
    target: gr.Textbox
    instead_of: gr.Textbox  # the adapter that the operator was shown as serving
    reason: gr.Textbox
    promote: gr.Button
    close: gr.Button


@dataclass(frozen=True)
class SchedulePanel:
    """Sets when nights start, and how often two replies are shown."""

    cron: gr.Textbox
    time_zone: gr.Dropdown
    enabled: gr.Checkbox
    grace: gr.Textbox
    every_new: gr.Textbox
    next_times: gr.HTML
    save: gr.Button
    notice: gr.HTML
    share: gr.Slider
    save_share: gr.Button
    share_notice: gr.HTML


@dataclass(frozen=True)
class SettingsPanel:
    """A field for every setting but `SHARE`, by name, in the order of declaration."""

    fields: dict[str, gr.blocks.Block]
    save: gr.Button
    notice: gr.HTML


@dataclass(frozen=True)
class Controls:
    """All controls of the page. `zone` is the browser's time zone; `seen` the state of each part it has."""

    zone: gr.Textbox
    seen: gr.Textbox
    timer: gr.Timer
    glance: Glance
    night: NightPanel
    promotion: PromotionPanel
    schedule: SchedulePanel
    settings: SettingsPanel

    def controls(self) -> list[gr.blocks.Block]:
        """Every control, as Gradio's list of outputs."""
        parts = (self.glance, self.night, self.promotion, self.schedule)
        return [
            self.zone,
            self.seen,
            self.timer,
            *(getattr(part, each.name) for part in parts for each in fields(part)),
            *self.settings.fields.values(),
            self.settings.save,
            self.settings.notice,
        ]


def text(elem_id: str) -> gr.HTML:
    """An empty place for text."""
    return gr.HTML(elem_id=elem_id, padding=False)


def heading(words: str) -> None:
    """The heading of a section."""
    gr.HTML(f"<h2>{words}</h2>", padding=False, elem_classes="heading")


def build() -> Controls:
    """Lay out the page from top to bottom: overview, training and feedback, adapters and schedule, history."""
    zone, seen = gr.Textbox("", visible=False), gr.Textbox("", visible=False)
    with gr.Column(elem_id="operate"):
        account = text("account")
        headline, tiles = text("headline"), text("tiles")
        with gr.Row(elem_classes="beside"):
            with gr.Column(elem_id="night-card", elem_classes=["card", "wide"], scale=7):
                night_html, night = build_night()
            with gr.Column(elem_id="said-card", elem_classes="card", scale=5):
                heading("What people said")
                said = text("said")
        with gr.Row(elem_classes="beside"):
            with gr.Column(elem_id="adapters-card", elem_classes=["card", "wide"], scale=7):
                adapters, promotion = build_promotion()
            with gr.Column(elem_id="settings-card", elem_classes="card", scale=5):
                standing, schedule = build_schedule()
                settings = build_settings()
        with gr.Column(elem_id="nights-card", elem_classes="card"):
            heading("Nights")
            nights = gr.HTML(elem_id="nights", padding=False, js_on_load=NAMED_BUTTONS)
        with gr.Row(elem_classes="beside"):
            with gr.Column(elem_id="clock-card", elem_classes="card", scale=1):
                heading("When nights came due")
                clock = text("clock")
            with gr.Column(elem_id="trail-card", elem_classes="card", scale=1):
                heading("Who did what")
                trail = text("trail")
    glance = Glance(account, headline, tiles, night_html, said, adapters, standing, nights, clock, trail)
    return Controls(zone, seen, gr.Timer(IDLE_TICK_S), glance, night, promotion, schedule, settings)


def build_night() -> tuple[gr.HTML, NightPanel]:
    """The panel of the running or chosen night, with its curves."""
    with gr.Row(elem_id="night-top"):
        heading("Training")
        which = gr.Dropdown([], label="Night", show_label=False, container=False, elem_id="which-night", visible=False)
    night = text("night")
    with gr.Row(elem_id="night-controls"):
        method = gr.Dropdown(
            methods.menu(),
            value="",
            label="Method",
            show_label=False,
            container=False,
            elem_id="method",
            filterable=False,
        )
        again = gr.Checkbox(False, label="Also if nothing is new", elem_id="again", container=False)
        run = button("Run now", "run-now", "primary")
        cancel = button("Cancel the night", "cancel-night", "stop", visible=False)
    running = gr.Textbox("", visible=False)
    return night, NightPanel(running, which, method, again, run, cancel, text("night-notice"))


def build_promotion() -> tuple[gr.HTML, PromotionPanel]:
    """The list of adapters, and the question that comes before every promotion."""
    with gr.Row(elem_id="adapters-top"):
        heading("Adapters")
        rollback = button("Roll back…", "rollback")
    with gr.Column(elem_id="promotion", visible=False) as panel:
        question = text("promotion-question")
        target, instead_of = gr.Textbox("", visible=False), gr.Textbox("", visible=False)
        reason = gr.Textbox(
            label="Why? (kept with the promotion)",
            elem_id="reason",
            placeholder="e.g. clearer answers in ten chats I tried",
            max_lines=3,
        )
        with gr.Row(elem_id="promotion-buttons"):
            promote = button("Promote", "promote", "primary")
            close = button("Cancel", "close-promotion")
    notice = text("promotion-notice")
    adapters = gr.HTML(elem_id="adapters", padding=False, js_on_load=NAMED_BUTTONS)
    return adapters, PromotionPanel(rollback, notice, panel, question, target, instead_of, reason, promote, close)


def build_schedule() -> tuple[gr.HTML, SchedulePanel]:
    """The current schedule, the form that changes it, and the share of turns with two replies."""
    gr.HTML('<h2 id="schedule-heading">Schedule</h2>', padding=False, elem_classes="heading")
    standing = text("standing-schedule")
    enabled = gr.Checkbox(True, label="Nights start by themselves", elem_id="enabled", container=False)
    with gr.Row(elem_classes="fields"):
        cron = gr.Textbox(
            "0 3 * * *",
            label="When",
            info="minute hour day month weekday; empty: not by the clock",
            elem_id="cron",
            max_lines=1,
            min_width=120,
        )
        time_zone = gr.Dropdown(
            sorted(available_timezones()),
            value="UTC",
            label="Time zone",
            info="as in Europe/Berlin",
            allow_custom_value=True,
            elem_id="time-zone",
            min_width=120,
        )
    with gr.Row(elem_classes="fields"):
        # Not gr.Number, which reads an empty field as 0.
        grace = gr.Textbox(
            "60",
            label="Late by at most",
            info="minutes; then it is skipped",
            elem_id="grace",
            max_lines=1,
            min_width=120,
        )
        every_new = gr.Textbox(
            "",
            label="Also after so much feedback",
            info="new pieces; empty: never",
            elem_id="every-new",
            max_lines=1,
            min_width=120,
        )
    next_times = text("next-times")
    save = button("Save schedule", "save-schedule", "primary")
    notice = text("schedule-notice")
    heading("Side by side")
    share = gr.Slider(0, 100, 10, step=1, label="Turns that show two replies, in %", elem_id="share")
    save_share = button("Save share", "save-share")
    share_notice = text("share-notice")
    return standing, SchedulePanel(
        cron, time_zone, enabled, grace, every_new, next_times, save, notice, share, save_share, share_notice
    )


def build_settings() -> SettingsPanel:
    """A field for every setting but `SHARE`."""
    heading("Settings")
    made: dict[str, gr.blocks.Block] = {}
    for each in SETTINGS.values():
        if each.name == SHARE:
            continue
        name: dict[str, Any] = {"label": each.title, "info": each.help, "elem_id": each.name.replace("_", "-")}
        if each.choices is not None:
            words = [(f"{word}: {meaning}", word) for word, meaning in each.choices.items()]
            made[each.name] = gr.Dropdown(words, value=each.default, filterable=False, **name)
        else:  # not gr.Number, which reads an empty field as 0
            made[each.name] = gr.Textbox(str(each.default), max_lines=1, **name)
    return SettingsPanel(made, button("Save settings", "save-settings"), text("settings-notice"))
