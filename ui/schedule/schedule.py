"""The clock that starts nights: a night that the current schedule makes due starts once, or is recorded as skipped.

Every few seconds each server checks what has come due since the newest recorded time, and claims it with a row in the
occurrences. No state is kept in memory between checks, so a restart, a sleeping laptop, a second server or a clock that
was set does not change what is due. Of several missed times only the newest counts, and its reason mentions the others.
Feedback that makes a night due while another runs waits for that one to end.
"""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile

from filelock import FileLock, Timeout

from feedback.database.database import Database
from feedback.errors import Conflict, Refused
from feedback.records.nights import Night
from feedback.upkeep import schedules
from feedback.upkeep.schedules import CLOCK, FEEDBACK, SKIPPED, STARTED, Occurrence
from ui.schedule import processes
from ui.schedule.crontab import due_times, last_time, next_times, trigger

__all__ = ["Schedule", "change", "check", "next_nights", "next_times", "trigger"]
LOOK_EVERY_S = 3.0
ON_TIME = timedelta(minutes=1)  # a delay up to this counts as none, whatever the grace
COUNTED_AT_MOST = 100

log = logging.getLogger(__name__)


class Schedule:
    """Starts nights when they are due, for as long as it runs."""

    def __init__(
        self,
        store: Database,
        model: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        start: Callable[[Database, str], Night] = processes.start_night,
    ) -> None:
        self.store = store
        self.model = model
        self._now = now
        self._start_night = start
        self._over = threading.Event()
        self._trouble = ""

    def start(self) -> None:
        """Start checking in a thread; does not wait."""
        # Not an APScheduler job: that sleeps until a time of day, so after the clock is set back by an hour it would
        # check nothing for an hour. A thread's wait does not depend on the clock.
        threading.Thread(target=self._look_on, name="schedule", daemon=True).start()

    def stop(self) -> None:
        """Stop checking; does not wait. A running night is a separate process, and continues."""
        self._over.set()

    def _look_on(self) -> None:
        while not self._over.is_set():
            try:
                self.tick()
                self._trouble = ""
            except Exception as error:  # tried again at the next check; the same error is logged once
                if repr(error) != self._trouble:
                    log.exception("could not see whether a night is due")
                self._trouble = repr(error)
            self._over.wait(LOOK_EVERY_S)

    def tick(self) -> None:
        """Check once and do what is due: start at most one night, and wait until it announces itself.

        Returns at once while another check is under way, here or in another process.
        """
        try:
            with FileLock(self.store.data / "schedule.lock", timeout=0):
                standing = schedules.schedule(self.store)
                if standing:
                    self._look(standing, self._now())
        except Timeout:
            return

    def _look(self, standing: schedules.Schedule, now: datetime) -> None:
        # 1. claims that have no night yet; while one is starting, nothing else is due
        for claimed in schedules.unsettled(self.store):
            if not self._resolve(claimed, standing, now):
                return

        # 2. what is due: a time by the clock, or enough new feedback
        due, enough = self._due(standing, now), self._enough(standing)
        if not (due or enough) or processes.starts_or_ends(self.store):
            return

        # 3. by the clock
        if due:
            reason, why_not = self._why(due, standing, now)
            if self._take(CLOCK, in_utc(due), reason, why_not):
                return

        # 4. by new feedback
        if enough:
            self._take(FEEDBACK, enough, "enough new feedback", "")

    def _due(self, standing: schedules.Schedule, now: datetime) -> datetime | None:
        """The newest time by the clock that has passed and is not recorded, by the schedule that was current then."""
        recorded = schedules.last_due(self.store, in_utc(now))
        handled = datetime.fromisoformat(recorded) if recorded else datetime.min.replace(tzinfo=UTC)
        if datetime.fromisoformat(standing.at) > now:
            # The clock has been set back since this schedule was saved, so when that was is unknown.
            return due_by(standing, max(handled, now - grace(standing)), now)
        until = now
        for each in schedules.history(self.store):
            began = datetime.fromisoformat(each.at)
            due = due_by(each, max(began, handled), until)
            if due or began <= handled:
                return due
            until = min(until, began)
        return None

    def _enough(self, standing: schedules.Schedule) -> str:
        """The new feedback that makes a night due and is not recorded, in words; empty if too little or while one runs.

        It is named by the multiple of `every_new` that was reached: after a failed night, as much again is needed.
        """
        if not standing.enabled or not standing.every_new:
            return ""
        reached = schedules.new_feedback(self.store) // standing.every_new * standing.every_new
        due = f"{reached} since {schedules.heard_by(self.store)}"
        if not reached or schedules.is_recorded(self.store, FEEDBACK, due) or processes.running_night(self.store):
            return ""
        return due

    def _why(self, due: datetime, standing: schedules.Schedule, now: datetime) -> tuple[str, str]:
        """The reason to start a night at a due time, and the reason not to (empty to start it)."""
        others = self._missed_before(due, standing)
        late = now - due
        reason = "on time" if late <= ON_TIME else f"made up for, {in_words(late)} late"
        running = processes.running_night(self.store)
        if not standing.enabled or not standing.cron:
            return reason, "the clock was switched off before a night could start" + others
        if late > grace(standing):
            within = in_words(grace(standing))
            return reason, f"missed: seen {in_words(late)} late, and made up for within {within}{others}"
        if running:
            return reason, f"night {running.id} was running{others}"
        return reason + others, schedules.why_nothing_new(self.store)

    def _missed_before(self, due: datetime, standing: schedules.Schedule) -> str:
        """The number of earlier times that were missed too, in words; empty for none."""
        if not standing.cron:
            return ""
        since = max(standing.at, schedules.last_due(self.store, in_utc(due)) or "")
        found = due_times(standing.cron, standing.time_zone, datetime.fromisoformat(since))
        earlier = takewhile(lambda each: each < due, found)
        count = len(list(islice(earlier, COUNTED_AT_MOST)))
        return f"; {count}{'+' * (count == COUNTED_AT_MOST)} earlier missed too" if count else ""

    def _take(self, cause: str, due: str, reason: str, why_not: str) -> bool:
        """Claim an occurrence and start its night, or record why not; True if a night was to start."""
        claimed = schedules.claim(self.store, cause, due, SKIPPED if why_not else STARTED, why_not or reason)
        if claimed is None:  # another server was first
            return False
        if why_not:
            log.info("no night for %s: %s", due, why_not)
            return False
        self._begin(claimed, reason)
        return True

    def _begin(self, claimed: Occurrence, reason: str) -> None:
        """Start the night of a claimed occurrence and record which it is, or why there is none."""
        try:
            night = self._start_night(self.store, self.model)
        except Conflict as error:
            if processes.starts_or_ends(self.store):
                return  # slow, but not given up: a later check records its outcome
            schedules.settle(self.store, claimed.id, SKIPPED, str(error))
            log.warning("no night for %s: %s", claimed.due, error)
            return
        schedules.settle(self.store, claimed.id, STARTED, reason, night.id)
        log.info("started night %d for %s: %s", night.id, claimed.due, reason)

    def _resolve(self, claimed: Occurrence, standing: schedules.Schedule, now: datetime) -> bool:
        """Find the night of a claim that has none yet, start it again, or record why not; False while it starts."""
        night = schedules.night_alive_since(self.store, claimed.at)
        if night:
            schedules.settle(self.store, claimed.id, STARTED, claimed.reason, night)
            return True
        if processes.starts_or_ends(self.store):
            return False
        late = now - datetime.fromisoformat(claimed.due if claimed.cause == CLOCK else claimed.at)
        wanted = standing.cron if claimed.cause == CLOCK else standing.every_new
        running = processes.running_night(self.store)
        why_not = ""
        if not (standing.enabled and wanted):
            why_not = "switched off before the night began"
        elif late > grace(standing):
            why_not = f"the server ended before the night began, {in_words(late)} ago"
        elif running:
            why_not = f"night {running.id} was running"
        if why_not:
            schedules.settle(self.store, claimed.id, SKIPPED, why_not)
            return True
        self._begin(claimed, f"{claimed.reason}; started again, as the server had ended before the night began")
        return False


def change(
    store: Database,
    user: int | None,
    cron: str,
    time_zone: str,
    enabled: bool,
    grace_minutes: int = 60,
    every_new: int | None = None,
) -> None:
    """Check a schedule and save it; for the API, the page and the command line. Raises as `check` does."""
    check(cron, time_zone, enabled, grace_minutes, every_new)
    schedules.set_schedule(store, user, " ".join(cron.split()), time_zone, enabled, grace_minutes, every_new)


def check(cron: str, time_zone: str, enabled: bool, grace_minutes: int = 60, every_new: int | None = None) -> None:
    """Raises `Refused`, in one sentence, on an invalid schedule. An empty `cron`: not by the clock."""
    trigger(cron if cron.strip() else "0 0 * * *", time_zone)
    schedules.check_numbers(grace_minutes, every_new)
    if enabled and not cron.strip() and every_new is None:
        raise Refused("a schedule that is on needs a clock (cron), a number of new pieces of feedback, or both")


def next_nights(standing: schedules.Schedule | None, count: int) -> list[datetime]:
    """The next times of a schedule's clock, in its time zone; empty if it is off or has no clock."""
    ticking = standing and standing.enabled and standing.cron
    return next_times(standing.cron, standing.time_zone, count) if standing and ticking else []


def due_by(standing: schedules.Schedule, after: datetime, until: datetime) -> datetime | None:
    """The newest time by a schedule's clock after one moment and up to another; None if there is none."""
    if not (standing.enabled and standing.cron and after < until):
        return None
    return last_time(standing.cron, standing.time_zone, after, until)


def grace(standing: schedules.Schedule) -> timedelta:
    """The longest delay with which a night may still start, at least `ON_TIME`."""
    return max(timedelta(minutes=standing.grace_minutes), ON_TIME)


def in_utc(moment: datetime) -> str:
    """A moment as the occurrences store it: in UTC, to the second."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def in_words(span: timedelta) -> str:
    """A duration in words: minutes, hours or days."""
    minutes = round(span.total_seconds() / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days"
