"""The event handlers of the operate page: each checks for an operator, acts, and sends what has changed."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import gradio as gr

from assistant.chat.assistant import Assistant
from feedback.accounts.users import User
from feedback.errors import NotFound, Refused
from feedback.kinds import tally
from feedback.numerals import natural
from feedback.records import adapters, nights, settings
from feedback.records.adapters import BASE
from feedback.records.nights import RUNNING, Night
from feedback.records.settings import SETTINGS, Setting
from feedback.upkeep import schedules
from ui.accounts.auth import page_user, require_operator
from ui.operate import lists, render
from ui.operate.layout import IDLE_TICK_S, SHARE, TICK_S, Controls
from ui.operate.schedule_form import next_five, stands, wished
from ui.operate.view import SystemStatus, read_status
from ui.operations import operations
from ui.shared import time_format
from ui.shared.widgets import Updates, notice, telling

NEWEST = "newest"  # as the night to show: the running one, or else the last one
DAYS = 14
POINTS = 400  # at most, in a curve


class OperatePage:
    """The handlers of one page, which all operators share."""

    def __init__(self, assistant: Assistant, page: Controls) -> None:
        self.assistant = assistant
        self.store = assistant.store
        self.page = page

    def _operator(self, request: gr.Request) -> User:
        """The operator at the page. Raises `Forbidden` for anyone else, former operators included."""
        return require_operator(page_user(request, self.store))

    # Showing

    def open(self, request: gr.Request, zone: str) -> Updates:
        """The page as it opens, in the browser's time zone."""
        user = self._operator(request)
        glance = self.page.glance
        shown: Updates = {self.page.zone: zone}
        shown |= {glance.account: render.show_account(user)} | self._form(zone)
        return shown | self.screen(zone, NEWEST, "")

    def tick(self, request: gr.Request, zone: str, chosen: str, seen: str) -> Updates:
        """Send what has changed since the browser last asked."""
        self._operator(request)
        return self.screen(zone, chosen, seen)

    def screen(self, zone: str, chosen: str, seen: str) -> Updates:
        """Every part of the page whose state differs from what the browser has."""
        house = read_status(self.store, time_format.zone_of(zone))
        known = seen_of(seen)
        stamps, shown = dict(known), {}

        def differs(part: str, state: str) -> bool:
            stamps[part] = hashlib.sha256(state.encode()).hexdigest()[:12]
            return stamps[part] != known.get(part)

        for part, words in words_of(house).items():
            if differs(part, words):
                shown[getattr(self.page.glance, part)] = words
        today = house.now.astimezone(house.zone).date()
        if differs("said", f"{today} {tally.counts(self.store)}"):
            days = tally.by_day(self.store, house.zone, DAYS)
            shown[self.page.glance.said] = render.show_said(days)
        night = self._chosen(house, chosen)
        if differs("night", f"{today} {night} {house.running is None}"):
            steps = nights.night_steps(self.store, night.id, POINTS) if night else []
            shown[self.page.glance.night] = render.show_night(house, night, steps)
        running = str(house.running.id) if house.running else ""
        if differs("controls", f"{running} {chosen} {[each.id for each in house.nights]}"):
            shown |= self._controls(house, running, chosen)
        # Gradio takes an empty dict for one value too few.
        return shown | {self.page.seen: json.dumps(stamps) if shown else gr.skip()}

    def _controls(self, house: SystemStatus, running: str, chosen: str) -> Updates:
        """The updates of the buttons, the choice of nights, and the refresh interval."""
        night = self.page.night
        choices = [("The newest night", NEWEST), *((f"Night {each.id}", str(each.id)) for each in house.nights)]
        if chosen not in [value for _, value in choices]:
            chosen = NEWEST
        return {
            self.page.timer: gr.Timer(TICK_S if running else IDLE_TICK_S),
            night.running: running,
            night.run: gr.Button(visible=not running, interactive=True),
            night.method: gr.Dropdown(visible=not running),
            night.again: gr.Checkbox(visible=not running),
            night.cancel: gr.Button(f"Cancel night {running}", visible=bool(running), interactive=True),
            night.which: gr.Dropdown(choices=choices, value=chosen, visible=len(house.nights) > 1),
        }

    def _chosen(self, house: SystemStatus, chosen: str) -> Night | None:
        """The night to show; the newest where the chosen one cannot be found."""
        try:
            return nights.night(self.store, int(chosen))
        except (ValueError, TypeError, NotFound):
            return next(iter(house.nights), None)

    def _form(self, zone: str) -> Updates:
        """The updates that fill the forms with the current schedule, share and settings."""
        panel, standing = self.page.schedule, schedules.schedule(self.store)
        stand = settings.all_settings(self.store)
        shown: Updates = {panel.share: round(100 * stand[SHARE])}
        for name, control in self.page.settings.fields.items():
            shown[control] = str(stand[name])
        if standing is None:
            return shown | {panel.time_zone: zone or "UTC"}
        return shown | {
            panel.cron: standing.cron,
            panel.time_zone: standing.time_zone,
            panel.enabled: standing.enabled,
            panel.grace: str(standing.grace_minutes),
            panel.every_new: str(standing.every_new or ""),
        }

    # Nights

    def run_now(
        self, request: gr.Request, zone: str, chosen: str, seen: str, method: str, again: bool
    ) -> Iterator[Updates]:
        """Start a night, or say in one sentence why not."""
        user, panel = self._operator(request), self.page.night
        yield {panel.notice: notice("a night is being started…", good=True), panel.run: gr.Button(interactive=False)}
        words, good = "", False
        with telling() as told:
            night = operations.start_night(self.assistant, user, method, again)
            good = night.state == RUNNING
            words = "" if good else f"night {night.id} ended at once: {night.reason}"
        yield self.screen(zone, NEWEST if good else chosen, seen) | {
            panel.notice: notice(told.sentence or words),
            panel.run: gr.Button(interactive=True, visible=not good),
        }

    def cancel(self, request: gr.Request, zone: str, chosen: str, seen: str, running: str) -> Iterator[Updates]:
        """Cancel the night that was shown as running, and say how it ended."""
        user, panel = self._operator(request), self.page.night
        yield {panel.notice: notice("the night is being ended…", good=True), panel.cancel: gr.Button(interactive=False)}
        words = ""
        with telling() as told:
            number = natural(running)
            if number is None:
                raise Refused("no night is running")
            night = operations.cancel_night(self.store, user, number)
            words = (
                f"night {night.id} was {night.state}" if night.state != "done" else f"night {night.id} was done first"
            )
            words += f": {night.reason}" if night.reason and not night.reason.startswith("cancelled") else ""
            words += "; nothing of it is kept" if night.state == "cancelled" else ""
        yield self.screen(zone, chosen, seen) | {
            panel.notice: notice(told.sentence) or notice(words, good=True),
            panel.cancel: gr.Button(interactive=True),
        }

    def see_night(self, request: gr.Request, zone: str, seen: str, clicked: gr.EventData) -> Updates:
        """Show the curves of a night that was clicked in the table."""
        self._operator(request)
        chosen = str(clicked._data.get("name", NEWEST))
        return self.screen(zone, chosen, seen)

    # Adapters

    def ask(self, request: gr.Request, zone: str, clicked: gr.EventData) -> Updates:
        """Ask for the reason to promote an adapter from the list."""
        self._operator(request)
        name = str(clicked._data.get("name", ""))
        return self._question(zone, None if name == BASE else name)

    def ask_rollback(self, request: gr.Request, zone: str) -> Updates:
        """Ask for the reason to roll back."""
        self._operator(request)
        with telling() as told:
            return self._question(zone, adapters.before_serving(self.store))
        return self.close() | {self.page.promotion.notice: notice(told.sentence)}

    def _question(self, zone: str, name: str | None) -> Updates:
        panel, house = self.page.promotion, read_status(self.store, time_format.zone_of(zone))
        return {
            panel.panel: gr.Column(visible=True),
            panel.question: lists.show_question(house, name),
            panel.target: name or BASE,
            panel.instead_of: house.serving or BASE,
            panel.promote: gr.Button(f"Let {name or 'the base model'} serve", interactive=True),
            panel.notice: "",
        }

    def promote(
        self, request: gr.Request, zone: str, chosen: str, seen: str, target: str, instead_of: str, reason: str
    ) -> Updates:
        """Promote an adapter in place of the one the operator was shown as serving, or say in one sentence why not."""
        user, panel = self._operator(request), self.page.promotion
        name, believed = (None if each == BASE else each for each in (target, instead_of))
        with telling() as told:
            operations.promote(self.assistant, user, name, reason, believed)
            said = f"from the next message on, {name or 'the base model'} serves"
            return self.screen(zone, chosen, seen) | self.close() | {panel.notice: notice(said, good=True)}
        # Something else serves by now: ask again, about the current state.
        again = self._question(zone, name) if adapters.serving(self.store) not in (believed, name) else {}
        return self.screen(zone, chosen, seen) | again | {panel.notice: notice(told.sentence)}

    def close(self) -> Updates:
        """Close the question."""
        panel = self.page.promotion
        return {panel.panel: gr.Column(visible=False), panel.reason: "", panel.notice: ""}

    # Schedule and share

    def preview(
        self, request: gr.Request, cron: str, time_zone: str, enabled: bool, grace: str, every_new: str
    ) -> Updates:
        """Show the next five times of the schedule being edited, or what is wrong with it."""
        self._operator(request)
        panel = self.page.schedule
        with telling() as told:
            wish = wished(cron, time_zone, enabled, grace, every_new)
            saved = stands(self.store, wish)
            return {panel.next_times: next_five(wish, saved)} | ({} if saved else {panel.notice: ""})
        return {panel.next_times: notice(told.sentence), panel.notice: ""}

    def save_schedule(
        self,
        request: gr.Request,
        zone: str,
        chosen: str,
        seen: str,
        cron: str,
        time_zone: str,
        enabled: bool,
        grace: str,
        every_new: str,
    ) -> Updates:
        """Save the schedule."""
        user, panel = self._operator(request), self.page.schedule
        with telling() as told:
            wish = wished(cron, time_zone, enabled, grace, every_new)
            operations.set_schedule(self.store, user, wish)
            said = "the schedule is saved" if wish.enabled else "the schedule is saved; the clock starts no nights"
            shown = {panel.next_times: next_five(wish, True), panel.notice: notice(said, good=True)}
            return self.screen(zone, chosen, seen) | shown
        return {panel.next_times: notice(told.sentence), panel.notice: ""}

    def save_share(self, request: gr.Request, zone: str, chosen: str, seen: str, percent: float) -> Updates:
        """Save the share of turns that show two replies."""
        user, panel = self._operator(request), self.page.schedule
        with telling() as told:
            settings.set_setting(self.store, user.id, SHARE, percent / 100)
            said = f"{percent:g} % of turns show two replies from now on"
            return self.screen(zone, chosen, seen) | {panel.share_notice: notice(said, good=True)}
        return {panel.share_notice: notice(told.sentence)}

    def save_settings(self, request: gr.Request, zone: str, chosen: str, seen: str, *typed: Any) -> Updates:
        """Save the settings that differ from their current values."""
        user, panel = self._operator(request), self.page.settings
        with telling() as told:
            wanted = {name: as_value(SETTINGS[name], text) for name, text in zip(panel.fields, typed, strict=True)}
            standing = settings.all_settings(self.store)
            new = {name: value for name, value in wanted.items() if value != standing[name]}
            settings.set_all(self.store, user.id, new)
            said = f"saved: {', '.join(new)}" if new else "nothing has changed"
            return self.screen(zone, chosen, seen) | {panel.notice: notice(said, good=True)}
        return {panel.notice: notice(told.sentence)}


def as_value(declared: Setting, typed: Any) -> Any:
    """A setting's value from the text typed on the page; text that is no number stays text, to be refused as such."""
    text = str(typed).strip()
    if declared.choices is not None:
        return text
    if not declared.is_share:
        number = natural(text)
        return text if number is None else number
    try:
        return float(text)
    except ValueError:
        return text


def words_of(house: SystemStatus) -> dict[str, str]:
    """The parts that are rendered from the status alone, as HTML, by their names in `Glance`."""
    return {
        "headline": render.show_headline(house),
        "tiles": render.show_tiles(house),
        "schedule": render.show_schedule(house),
        "adapters": lists.show_adapters(house),
        "nights": lists.show_nights(house),
        "clock": lists.show_clock(house),
        "trail": lists.show_trail(house),
    }


def seen_of(text: str) -> dict[str, str]:
    """The state of each part that the browser has; empty if it cannot be read."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
