"""The schedule form: reads what was typed into it, and previews when that would come due."""

from dataclasses import fields

from feedback.database.database import Database
from feedback.errors import Refused
from feedback.numerals import natural
from feedback.upkeep import schedules
from ui.operate import render
from ui.operations.operations import ScheduleForm
from ui.schedule import schedule

NEXT_TIMES = 5


def wished(cron: str, time_zone: str | None, enabled: bool, grace: str, every_new: str) -> ScheduleForm:
    """The schedule in a filled form. Raises `Refused` on an invalid one."""
    minutes = whole_number(grace, "late by at most", "minutes")
    pieces = whole_number(every_new, "also after so much feedback", "pieces") if every_new.strip() else None
    wish = ScheduleForm(" ".join(cron.split()), (time_zone or "").strip(), enabled, minutes, pieces)
    schedule.check(wish.cron, wish.time_zone, wish.enabled, wish.grace_minutes, wish.every_new)
    return wish


def whole_number(text: str, field: str, unit: str) -> int:
    """The whole number in a field. Raises `Refused` on anything else."""
    number = natural(text.strip())
    if number is None:
        raise Refused(f"“{field}” is a whole number of {unit}, not {text.strip()[:40]!r}")
    return number


def stands(store: Database, wish: ScheduleForm) -> bool:
    """Whether this is the current schedule."""
    standing = schedules.schedule(store)
    return (
        standing is not None
        and ScheduleForm(**{each.name: getattr(standing, each.name) for each in fields(ScheduleForm)}) == wish
    )


def next_five(wish: ScheduleForm, saved: bool) -> str:
    """The next times of a schedule, as HTML."""
    times = schedule.next_times(wish.cron, wish.time_zone, NEXT_TIMES) if wish.cron else []
    return render.show_times(times, wish.enabled, saved)
