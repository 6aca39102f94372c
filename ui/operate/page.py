"""The operate page: an overview that says whether all is well, then nights, adapters, the schedule and the history.

Everything shown is read from the database, again every few seconds. Only what has changed is sent, and a field in
which somebody may be typing is never overwritten.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr

from assistant.chat.assistant import Assistant
from ui.gradio_guard import GuardedBlocks
from ui.operate import layout
from ui.operate.handlers import OperatePage
from ui.operate.layout import Controls
from ui.shared.declaration import Page
from ui.shared.widgets import in_turn, on

CSS = Path(__file__).with_name("operate.css").read_text()
ZONE = "() => Intl.DateTimeFormat().resolvedOptions().timeZone"
OPENED = "() => { document.querySelector('#operate').dataset.opened = 'yes'; nightschool.watch(); }"
SHOW_NIGHT = "() => nightschool.seen('#night')"
SHOW_QUESTION = "() => nightschool.show('#promotion', '#reason textarea')"
SHOW_NOTICE = "() => nightschool.seen('#promotion-notice')"
BACK = "() => nightschool.back()"


def build(assistant: Assistant) -> gr.Blocks:
    """The page, ready to be mounted."""
    with GuardedBlocks(title="Operate · Nightschool", analytics_enabled=False, fill_width=True) as blocks:
        page = layout.build()
        handlers = OperatePage(assistant, page)
        wire_looking(blocks, page, handlers)
        wire_acting(page, handlers)
    return blocks.queue(default_concurrency_limit=None, api_open=False)


def watched(page: Controls) -> list[Any]:
    """The controls that a refresh may change: all but the fields in which somebody may be typing."""
    glance = [getattr(page.glance, each.name) for each in fields(page.glance)]
    night = page.night
    return [
        page.seen,
        page.timer,
        *glance,
        night.running,
        night.which,
        night.method,
        night.again,
        night.run,
        night.cancel,
    ]


def wire_looking(blocks: gr.Blocks, page: Controls, handlers: OperatePage) -> None:
    """Wire what refreshes the page, and the choice of the night it shows."""
    opened = on(blocks.load, handlers.open, [page.zone], page.controls(), js=ZONE)
    opened.then(None, js=OPENED, api_visibility="private")
    on(page.timer.tick, handlers.tick, looked_at(page), watched(page))
    in_turn(page.night.which.input, handlers.tick, looked_at(page), watched(page))
    picked = in_turn(page.glance.nights.click, handlers.see_night, [page.zone, page.seen], watched(page))
    picked.then(None, js=SHOW_NIGHT, api_visibility="private")


def looked_at(page: Controls) -> list[Any]:
    """The inputs of a refresh: the time zone, the chosen night, and what the browser has."""
    return [page.zone, page.night.which, page.seen]


def wire_acting(page: Controls, handlers: OperatePage) -> None:
    """Wire the controls that start and cancel nights, promote adapters, and save settings."""
    night, promotion, schedule = page.night, page.promotion, page.schedule
    shown, looks = watched(page), looked_at(page)
    in_turn(night.run.click, handlers.run_now, [*looks, night.method, night.again], [*shown, night.notice], once="run")
    in_turn(night.cancel.click, handlers.cancel, [*looks, night.running], [*shown, night.notice], once="cancel")

    asked = [getattr(promotion, each.name) for each in fields(promotion)]
    for trigger, ask in (
        (page.glance.adapters.click, handlers.ask),
        (promotion.rollback.click, handlers.ask_rollback),
    ):
        in_turn(trigger, ask, [page.zone], asked).then(None, js=SHOW_QUESTION, api_visibility="private")
    closed = in_turn(promotion.close.click, handlers.close, [], asked)
    closed.then(None, js=BACK, api_visibility="private")
    decided = [*looks, promotion.target, promotion.instead_of, promotion.reason]
    for trigger in (promotion.promote.click, promotion.reason.submit):
        decision = in_turn(trigger, handlers.promote, decided, [*shown, *asked], once="promote")
        decision.then(None, js=SHOW_NOTICE, api_visibility="private")

    form: list[Any] = [schedule.cron, schedule.time_zone, schedule.enabled, schedule.grace, schedule.every_new]
    told = [schedule.next_times, schedule.notice]
    for field in form:
        on(field.change, handlers.preview, form, told, trigger_mode="always_last")
    in_turn(schedule.save.click, handlers.save_schedule, [*looks, *form], [*shown, *told])
    in_turn(schedule.save_share.click, handlers.save_share, [*looks, schedule.share], [*shown, schedule.share_notice])
    panel = page.settings
    in_turn(panel.save.click, handlers.save_settings, [*looks, *panel.fields.values()], [*shown, panel.notice])


PAGE = Page("/operate", build, role="operator", css=CSS)
