"""The clock that starts nights: the standing schedule, read again whenever it changes.

Times are written as in crontab(5), weekdays included: 0 and 7 are Sunday, and where both a day of the month and a
weekday are named, either will do.
Left out on purpose: what a night does, and when one is worth it (`training/night`).
"""

import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from assistant import processes
from feedback import nights
from feedback.store import Conflict, Refused, Store

NIGHT = "night"
REREAD_EVERY_S = 3
LATE_BY_AT_MOST_S = 3600
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")

log = logging.getLogger(__name__)


class Schedule:
    """Starts nights when they are due, for as long as it runs."""

    def __init__(self, store: Store, model: str) -> None:
        self.store = store
        self.model = model
        self._standing: dict[str, Any] | None = None
        job = {"coalesce": True, "max_instances": 1, "misfire_grace_time": LATE_BY_AT_MOST_S}
        self._clock = BackgroundScheduler(timezone=ZoneInfo("UTC"), job_defaults=job)

    def start(self) -> None:
        """Begin; does not wait."""
        self.reread()
        self._clock.add_job(self.reread, "interval", seconds=REREAD_EVERY_S)
        self._clock.start()

    def stop(self) -> None:
        """End. A night that runs is a process of its own, and goes on."""
        if self._clock.running:
            self._clock.shutdown(wait=False)

    def reread(self) -> None:
        """Take up a schedule that was changed, by whichever process."""
        standing = nights.schedule(self.store)
        if standing == self._standing:
            return
        self._standing = standing
        if self._clock.get_job(NIGHT):
            self._clock.remove_job(NIGHT)
        if standing and standing["enabled"]:
            self._clock.add_job(self.run_night, trigger(standing["cron"], standing["time_zone"]), id=NIGHT)

    def due(self) -> datetime | None:
        """When the clock will next start a night."""
        job = self._clock.get_job(NIGHT)
        return job.next_run_time if job else None

    def run_night(self) -> None:
        """Start a night now, unless one is running."""
        try:
            night = processes.start_night(self.store, self.model)
            log.info("started night %d", night.id)
        except Conflict as error:
            log.warning("no night now: %s", error)


def next_times(cron: str, time_zone: str, count: int, after: datetime | None = None) -> list[datetime]:
    """The next times a schedule comes due, in its own time zone. Raises as `trigger` does."""
    due = trigger(cron, time_zone)
    moment = after or datetime.now(ZoneInfo(time_zone))
    times: list[datetime] = []
    while len(times) < count:
        found = due.get_next_fire_time(times[-1] if times else None, moment)
        if found is None:
            break
        times.append(found)
        moment = max(moment, found)
    return times


def trigger(cron: str, time_zone: str) -> BaseTrigger:
    """When a crontab line comes due. Raises `Refused` on one that is malformed, or never does."""
    try:
        zone = ZoneInfo(time_zone)
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"there is no time zone {time_zone!r}; name one as in Europe/Berlin, or UTC") from error
    fields = cron.split()
    if len(fields) != 5:
        raise Refused(f"a schedule is five fields (minute hour day month weekday) as in '0 3 * * *', not {cron!r}")
    minute, hour, day, month, weekday = fields
    try:
        named = ",".join(WEEKDAYS[each] for each in sorted(set(weekdays(weekday))))
        both = not day.startswith("*") and not weekday.startswith("*")
        choices = [{"day": day}, {"day_of_week": named}] if both else [{"day": day, "day_of_week": named}]
        triggers = [CronTrigger(minute=minute, hour=hour, month=month, timezone=zone, **each) for each in choices]
        due = triggers[0] if len(triggers) == 1 else OrTrigger(triggers)
        first = due.get_next_fire_time(None, datetime.now(zone))
    except (ValueError, OverflowError) as error:
        raise Refused(f"{cron!r} is not a schedule: {error}") from error
    if first is None:
        raise Refused(f"{cron!r} never comes due")
    return due


def weekdays(field: str) -> Iterator[int]:
    """The weekdays (0 is Sunday) that a crontab field names. Raises `ValueError`."""
    for item in field.lower().split(","):
        span, slash, step = item.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            numbers = range(0, 7)
        elif dash:
            start, end = weekday_number(first), weekday_number(last)
            numbers = range(start, end + 1 if end >= start else end + 8)  # fri-mon goes over the weekend
        else:
            numbers = range(weekday_number(first), 7 if slash else weekday_number(first) + 1)
        if not numbers or (slash and not (step.isdecimal() and int(step))):
            raise ValueError(f"{item!r} names no weekday")
        yield from (number % 7 for number in numbers[:: int(step or 1)])


def weekday_number(name: str) -> int:
    """0 to 7 (0 and 7 are Sunday), or the first three letters of a weekday's name."""
    if name in WEEKDAYS:
        return WEEKDAYS.index(name)
    if not name.isdecimal() or int(name) > 7:
        raise ValueError(f"{name!r} is not a weekday from 0 (Sunday) to 7 (Sunday), or its name")
    return int(name)
