"""Feedback counts: in total and by day."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from feedback.database.database import Database
from feedback.kinds import current
from feedback.kinds.base import spoken


@dataclass(frozen=True)
class Day:
    """One day's counts, for each of `titles`."""

    day: date
    counts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def counts(store: Database) -> dict[str, int]:
    """The number of rows of each kind of feedback, by table."""
    # Rows are never removed, so the newest id is the count; count(*) would read the whole table.
    return current.position(store)


def titles() -> dict[str, str]:
    """The daily counts, by name, with their titles for a legend."""
    return {each.name: each.title for kind in spoken() for each in kind.daily}


def by_day(store: Database, zone: tzinfo, days: int = 14) -> list[Day]:
    """The counts of the last `days` days up to today in a time zone, oldest first."""
    today = datetime.now(zone).date()
    found = {today - timedelta(days=ago): dict.fromkeys(titles(), 0) for ago in reversed(range(days))}
    since = datetime.combine(min(found), time(), zone).astimezone(UTC).isoformat(timespec="milliseconds")
    # Grouped by quarter hour, since every time zone's offset is a multiple of one.
    quarter = "substr(at, 1, 14) || substr('0' || (substr(at, 15, 2) / 15 * 15), -2)"
    for kind in spoken():
        for each in kind.daily:
            sql = f"""SELECT {quarter} AS quarter, count(*) AS number FROM {kind.table}
                WHERE {each.rows or kind.gives()} AND at >= ? GROUP BY 1"""
            for row in store.rows(sql, since):
                day = datetime.fromisoformat(row["quarter"]).replace(tzinfo=UTC).astimezone(zone).date()
                if day in found:
                    found[day][each.name] += row["number"]
    return [Day(day, counted) for day, counted in found.items()]
