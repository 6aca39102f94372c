"""The times at which a crontab line comes due in its time zone.

The syntax is that of crontab(5), weekdays included: 0 and 7 are Sunday, and where both a day of the month and a weekday
are named, either matches. Each wall-clock time comes due once: one that is skipped in spring is due at the moment of
the change, one that occurs twice in autumn is due the first time.
"""

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from feedback.errors import Refused
from feedback.numerals import natural

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
LONGEST_LINE = 200
SECOND = timedelta(seconds=1)


def next_times(cron: str, time_zone: str, count: int, after: datetime | None = None) -> list[datetime]:
    """The next times a schedule comes due, in its own time zone. Raises as `trigger` does."""
    found = due_times(cron, time_zone, after or datetime.now(UTC))
    return [each.astimezone(ZoneInfo(time_zone)) for each in islice(found, count)]


def last_time(cron: str, time_zone: str, after: datetime, until: datetime) -> datetime | None:
    """The latest due time, in UTC, after one moment and up to another; None if there is none."""
    span = timedelta(hours=2)
    while True:  # search back from the end in growing strides: the start may be years ago
        since = max(after, until - span)
        up_to = takewhile(lambda each: each <= until, due_times(cron, time_zone, since))
        newest = deque(up_to, maxlen=1)
        if newest or since == after:
            return newest[0] if newest else None
        span *= 8


def due_times(cron: str, time_zone: str, after: datetime) -> Iterator[datetime]:
    """Every time after a moment at which a schedule comes due, in order, in UTC. Raises as `trigger` does."""
    due, zone = trigger(cron, time_zone), ZoneInfo(time_zone)
    last = after.astimezone(UTC)
    wall: datetime | None = after.astimezone(zone).replace(tzinfo=UTC, fold=0)
    while (wall := due.get_next_fire_time(None, wall)) is not None:
        moment = moment_of(wall.replace(tzinfo=None), zone)
        if moment > last:
            yield moment
            last = moment
        wall += SECOND


def moment_of(wall: datetime, zone: ZoneInfo) -> datetime:
    """The moment, in UTC, of a zone's wall-clock time: the first of two, or the moment of the change that skips it."""
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first.astimezone(zone).replace(tzinfo=None) == wall:
        return first
    # Skipped: with the offset from after the change it lies before the change, and the other way round.
    before, after = second, first
    while after - before > SECOND:
        middle = before + (after - before) // 2
        if middle.astimezone(zone).utcoffset() == before.astimezone(zone).utcoffset():
            before = middle
        else:
            after = middle
    return after.replace(microsecond=0)


def trigger(cron: str, time_zone: str) -> BaseTrigger:
    """The trigger of a crontab line on a wall clock that is taken for UTC; `due_times` converts its times to moments.

    Raises `Refused` on a line that is malformed or never comes due, and on a time zone that does not exist.
    """
    try:
        ZoneInfo(time_zone)
    except (OSError, ValueError, KeyError) as error:
        raise Refused(
            f"there is no time zone {time_zone[:LONGEST_LINE]!r}; name one as in Europe/Berlin, or UTC"
        ) from error
    fields = cron.split() if len(cron) <= LONGEST_LINE else []
    if len(fields) != 5:
        shown = cron if len(cron) <= LONGEST_LINE else cron[:20] + "..."
        raise Refused(f"a schedule is five fields (minute hour day month weekday) as in '0 3 * * *', not {shown!r}")
    minute, hour, day, month, weekday = fields
    try:
        named = ",".join(WEEKDAYS[each] for each in sorted(set(weekdays(weekday))))
        both = not day.startswith("*") and not weekday.startswith("*")
        choices = [{"day": day}, {"day_of_week": named}] if both else [{"day": day, "day_of_week": named}]
        # UTC, which has no clock changes: a CronTrigger in a zone with summer time fires twice in autumn.
        triggers = [CronTrigger(minute=minute, hour=hour, month=month, timezone=UTC, **each) for each in choices]
        due = triggers[0] if len(triggers) == 1 else OrTrigger(triggers)
        first = due.get_next_fire_time(None, datetime.now(UTC))
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
            numbers = range(start, end + 1 if end >= start else end + 8)  # fri-mon wraps around the weekend
        else:
            numbers = range(weekday_number(first), 7 if slash else weekday_number(first) + 1)
        if not numbers or (slash and not natural(step)):
            raise ValueError(f"{item[:40]!r} names no weekday")
        yield from (number % 7 for number in numbers[:: int(step or 1)])


def weekday_number(name: str) -> int:
    """A weekday's number, from 0 to 7 (0 and 7 are Sunday) or its name's first three letters. Raises `ValueError`."""
    if name in WEEKDAYS:
        return WEEKDAYS.index(name)
    number = natural(name)
    if number is None or number > 7:
        raise ValueError(f"{name[:40]!r} is not a weekday from 0 (Sunday) to 7 (Sunday), or its name")
    return number
