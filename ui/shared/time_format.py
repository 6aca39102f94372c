"""Times and durations in words, in a given time zone."""

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo


def zone_of(name: str) -> tzinfo:
    """The time zone of that name; UTC where there is none."""
    try:
        return ZoneInfo(name or "UTC")
    except (OSError, ValueError, KeyError):
        return UTC


def parsed(at: str) -> datetime:
    """A timestamp of the database as a `datetime`."""
    return datetime.fromisoformat(at)


def clock(at: datetime, zone: tzinfo, now: datetime | None = None) -> str:
    """A time with its day: "today 03:00", "tomorrow 03:00", "21 Nov 03:00"; with the year if it is another one."""
    here, today = at.astimezone(zone), (now or datetime.now(UTC)).astimezone(zone).date()
    days = (here.date() - today).days
    named = {0: "today", 1: "tomorrow", -1: "yesterday"}.get(days)
    if named:
        return f"{named} {here:%H:%M}"
    return f"{here.day} {here:%b %H:%M}" if here.year == today.year else f"{here.day} {here:%b %Y %H:%M}"


def calendar(at: datetime, zone: tzinfo) -> str:
    """A time with its weekday and date: "Sun 22 Nov 2026, 03:00 CET"."""
    here = at.astimezone(zone)
    return f"{here:%a} {here.day} {here:%b %Y, %H:%M %Z}"


def span(seconds: float) -> str:
    """A duration in its largest one or two units: "8 s", "4 min", "2 h 5 min", "3 days"."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 10 and seconds % 60:
        return f"{minutes} min {seconds % 60} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    if hours < 48:
        return f"{hours} h {minutes % 60} min" if minutes % 60 and hours < 10 else f"{hours} h"
    return f"{hours // 24} days"


def away(at: datetime, now: datetime | None = None) -> str:
    """A time relative to now: "5 min ago", "in 7 h", "just now"."""
    seconds = (at - (now or datetime.now(UTC))).total_seconds()
    if abs(seconds) < 60:
        return "just now" if seconds <= 0 else "in a moment"
    rough = span(abs(seconds) // 60 * 60)
    return f"in {rough}" if seconds > 0 else f"{rough} ago"
