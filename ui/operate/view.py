"""The system status, read from the database: what serves, what trains, what is due, and whether all is well."""

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from feedback.accounts import users
from feedback.database.database import Database
from feedback.raters import account
from feedback.records import adapters, audit, nights
from feedback.records.adapters import KEPT, Adapter, Promotion
from feedback.records.audit import AuditEntry
from feedback.records.nights import RUNNING, Night
from feedback.upkeep import schedules
from feedback.upkeep.schedules import Occurrence, Schedule
from ui.schedule import processes
from ui.schedule.schedule import next_times
from ui.shared import time_format

NIGHTS_SHOWN, DEEDS_SHOWN, OCCURRENCES_SHOWN = 12, 12, 8
QUIET_S = 180  # a running night gives a sign of life far more often
PHASES = {
    "starting": "starting",
    "examples": "gathering what people said",
    "loading": "loading the model",
    "training": "training",
    "proof": "proving the new adapter",
    "saving": "saving the new adapter",
    "judging": "judging the new adapter against what serves",
}


@dataclass(frozen=True)
class SystemStatus:
    """Everything the page shows except the plots. Tuples are newest first."""

    now: datetime
    zone: tzinfo
    promotions: tuple[Promotion, ...]
    adapters: tuple[Adapter, ...]
    people: dict[int, str]
    running: Night | None
    nights: tuple[Night, ...]
    schedule: Schedule | None
    due: datetime | None
    new_feedback: int
    occurrences: tuple[Occurrence, ...]
    trail: tuple[AuditEntry, ...]
    risk: str  # the account of risk, in words

    @property
    def serving(self) -> str | None:
        return self.promotions[0].adapter if self.promotions else None

    @property
    def last(self) -> Night | None:
        """The newest night that is not running."""
        return next((night for night in self.nights if self.running is None or night.id != self.running.id), None)

    def clock(self, at: str) -> str:
        """A timestamp of the database, in this operator's time zone."""
        return time_format.clock(time_format.parsed(at), self.zone, self.now)

    def who(self, user: int | None) -> str:
        """The name of a person by id, or Nightschool's own."""
        return self.people.get(user or 0, "Nightschool")


@dataclass(frozen=True)
class Headline:
    """The headline, which says whether all is well. `state` is "well", "busy", "note" or "trouble"."""

    state: str
    title: str
    words: str


def read_status(store: Database, zone: tzinfo) -> SystemStatus:
    """The current system status."""
    now = datetime.now(UTC)
    standing = schedules.schedule(store)
    ticking = standing and standing.enabled and standing.cron
    times = next_times(standing.cron, standing.time_zone, 1) if standing and ticking else []
    return SystemStatus(
        now=now,
        zone=zone,
        promotions=tuple(adapters.promotions(store, 200)),
        adapters=tuple(adapters.adapters(store)),
        people={user.id: user.name for user in users.users(store)},
        running=processes.running_night(store),
        nights=tuple(nights.nights(store, NIGHTS_SHOWN)),
        schedule=standing,
        due=times[0] if times else None,
        new_feedback=schedules.new_feedback(store),
        occurrences=tuple(schedules.occurrences(store, OCCURRENCES_SHOWN)),
        trail=tuple(audit.trail(store, DEEDS_SHOWN)),
        risk=account.in_words(store),
    )


def headline(house: SystemStatus) -> Headline:
    """The headline: whether all is well, what is running, or what went wrong."""
    answers = f"{house.serving or 'the base model'} answers"
    last = house.last
    if house.running:
        silent_s = (house.now - time_format.parsed(house.running.beat_at)).total_seconds()
        if silent_s > QUIET_S:
            title = f"Night {house.running.id} runs, but was last heard of {time_format.span(silent_s)} ago"
            return Headline("note", title, f"it was {PHASES.get(house.running.phase, house.running.phase)}; {answers}")
        return Headline("busy", "A night is running", f"{doing(house.running)}; {answers} meanwhile")
    newest = house.promotions[0] if house.promotions else None
    if newest and newest.reason.startswith(KEPT) and not (last and last.ended_at and last.ended_at > newest.at):
        reason = newest.reason.removeprefix(KEPT)
        return Headline("trouble", "What was promoted could not serve", f"{reason}; {answers}, as before")
    if last is None:
        return Headline("well", "All is well", f"{answers}; no night has run yet")
    if last.state == RUNNING:
        title = "The last night was interrupted: its process is gone"
        return Headline("trouble", title, f"the next one goes on where it was; {answers}")
    if last.state == "failed":
        title = f"The last night failed: {last.reason}"
        return Headline("trouble", title, f"nothing of it is kept; {answers}, as before")
    if last.state in ("cancelled", "abandoned"):
        return Headline("note", f"The last night was {last.state}", f"{last.reason}; {answers}, as before")
    return Headline("well", "All is well", f"{answers}; {came_of(last)}")


def came_of(night: Night) -> str:
    """The result of a night that ended well, in words."""
    if night.state == "nothing":
        return f"night {night.id} found {night.reason}"
    return {
        "promoted": f"night {night.id} made {night.adapter}, and it was promoted",
        "candidate": f"night {night.id} made {night.adapter}, a candidate to look at",
        "refused": f"night {night.id} made {night.adapter}, which was refused",
    }.get(night.verdict or "", f"night {night.id} made {night.adapter}")


def doing(night: Night) -> str:
    """The phase of a running night, its progress and the time left, in words."""
    parts = [PHASES.get(night.phase, night.phase)]
    if night.phase == "training" and night.steps:
        parts.append(f"step {night.step} of {night.steps}")
    if night.eta_s is not None and night.phase == "training":
        parts.append(f"about {time_format.span(night.eta_s)} left" if night.eta_s >= 1 else "nearly there")
    return ", ".join(parts)


def outcome(night: Night, is_running: bool) -> tuple[str, str]:
    """The outcome of a night in a word or two, and the state that sets its colour."""
    if night.state == RUNNING:
        return ("running", "busy") if is_running else ("interrupted", "trouble")
    if night.state == "done" and night.verdict:
        return night.verdict, {"promoted": "well", "refused": "note"}.get(night.verdict, "busy")
    words = {"nothing": "nothing to do"}.get(night.state, night.state)
    return words, {"done": "well", "failed": "trouble"}.get(night.state, "note")


def learned_from(night: Night) -> str:
    """The amounts of feedback that a night trained on: "3 comparisons, 12 thumbs up"."""
    counts = {kind: count for kind, count in night.counts.items() if isinstance(count, int) and count}
    return ", ".join(
        f"{count} {kind.replace('_', ' ')}{'' if count == 1 or kind.startswith('thumbs') else 's'}"
        for kind, count in counts.items()
    )


def in_words(thing: Night | Adapter) -> str:
    """The reason of a night or an adapter, without the verdict that is shown next to it."""
    return thing.reason.removeprefix(f"{thing.verdict}: ")
