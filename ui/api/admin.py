"""The HTTP API for operators: nights, adapters, promotions, the schedule and the status."""

from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from feedback.database.database import Database
from feedback.kinds import tally
from feedback.records import adapters, decisions, nights
from feedback.records.adapters import ANYTHING, BASE
from feedback.upkeep import schedules
from ui.accounts.auth import Operator, operator
from ui.accounts.dependencies import REFUSALS, STRICT, TheAssistant, TheStore, Writing
from ui.operations import operations
from ui.schedule import processes
from ui.schedule.schedule import next_nights

NEXT_TIMES = 5
LAST_OCCURRENCES = 10
SettingName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,40}$")]

router = APIRouter(prefix="/api", tags=["operating"], dependencies=[Depends(operator)], responses=REFUSALS)


class Night(BaseModel):
    """One training run: at `step` of `steps` in `phase`; `reason` says in words how it ended."""

    id: int
    state: str = Field(description="running, done, nothing, failed, cancelled or abandoned.")
    method: str
    settings: dict[str, Any]
    counts: dict[str, Any] = Field(description="How much feedback of each kind, and what was left out and why.")
    data_sha256: str | None
    phase: str
    step: int
    steps: int
    eta_s: float | None
    adapter: str | None
    reason: str
    started_at: str
    beat_at: str = Field(description="Its last sign of life.")
    ended_at: str | None
    verdict: str | None = Field(description="Of the gate on its adapter: promoted, candidate or refused.")


class NightWithSteps(Night):
    """A night with the metrics of each step."""

    metrics: list[dict[str, Any]]


class NightAsked(BaseModel):
    """How to train."""

    model_config = STRICT
    method: str | None = Field(None, pattern="^[a-z][a-z0-9-]{0,30}$", description="As `nightschool night --method`.")
    again: bool = Field(False, description="Also where nothing new was said since the last night.")
    settings: dict[SettingName, int | float | Annotated[str, Field(max_length=500)]] = Field(
        {}, max_length=50, description="As `nightschool night --set`, by name."
    )


class Adapter(BaseModel):
    """What a night made."""

    id: str
    parent: str | None
    night: int | None
    method: str
    base_sha256: str
    weights_sha256: str
    verdict: str = Field(description="candidate, refused or retired.")
    reason: str
    created_at: str
    evidence: dict[str, Any] = Field(description="What the gate measured: held-out win rate, KL, length, checks.")


class Decision(BaseModel):
    """A decision about an adapter, with what it rests on."""

    adapter: str
    against: str | None = Field(description="What it was compared with; null: the base.")
    night: int | None
    door: str = Field(description="By what it was decided. offline: held-out conversations.")
    outcome: str = Field(description="promoted, candidate or refused.")
    risk: float = Field(description="The chance of a false promotion that it took, of the setting `risk` a year.")
    reason: str
    evidence: dict[str, Any]
    at: str


class Promotion(BaseModel):
    """From `at` on, `adapter` serves (null: the base)."""

    id: int
    adapter: str | None
    user: int | None = Field(description="Who said so; null: the program itself.")
    reason: str
    at: str


class PromotionAsked(BaseModel):
    """Which adapter shall serve, and why. A rollback is one too."""

    model_config = STRICT
    adapter: str | None = Field(description='An adapter\'s id; null or "base": the base; "previous": a rollback.')
    reason: str
    instead_of: str | None = Field(
        ANYTHING, description="What you believe to serve now, likewise named; if another does, it is refused with 409."
    )


class Promoted(BaseModel):
    """How the served-adapter proof went, in nats: the server's log-probs against the trainer's, and the base's."""

    adapter: str | None
    proof: dict[str, float] | None


class ScheduleAsked(BaseModel):
    """When nights start: by the clock, by how much was said, or by both."""

    model_config = STRICT
    cron: str = Field("", description="minute hour day month weekday, as in crontab: '0 3 * * *'; empty: no clock.")
    time_zone: str = Field("UTC", description="As in Europe/Berlin, or UTC.")
    enabled: bool = Field(True, description="false turns both off.")
    grace_minutes: int = Field(60, description="A time that was missed is made up for when found within these.")
    every_new: int | None = Field(None, description="A night for so many new pieces of feedback; null: not so.")


class Occurrence(BaseModel):
    """A time at which a night was due, and what became of it."""

    cause: str = Field(description="clock or feedback.")
    due: str = Field(description="The time in UTC, or the feedback that made it due.")
    outcome: str = Field(description="started or skipped.")
    reason: str
    night: int | None = Field(description="null with started: it has not announced itself yet.")
    at: str


class Schedule(BaseModel):
    """The current schedule (null: none was set), the next times it comes due, and the outcome of the last ones."""

    cron: str | None
    time_zone: str | None
    enabled: bool
    grace_minutes: int | None
    every_new: int | None
    new_feedback: int = Field(description="Pieces of feedback since the last night that heard them all began.")
    next: list[datetime]
    occurrences: list[Occurrence]


class Status(BaseModel):
    """The system status."""

    version: str
    model: str
    serving: str | None = Field(description="The adapter that answers; null: the base.")
    loaded: list[str]
    active: int = Field(description="Replies being written.")
    waiting: int
    running_night: Night | None
    last_night: Night | None
    next_night: datetime | None
    feedback: dict[str, int]


@router.get("/nights", response_model=list[Night])
def list_nights(store: TheStore) -> list[dict[str, Any]]:
    """The newest fifty nights, newest first."""
    return [asdict(night) for night in nights.nights(store)]


@router.get("/nights/{night}", response_model=NightWithSteps)
def one_night(night: int, store: TheStore) -> dict[str, Any]:
    """One night, with its metrics step by step; it can be watched while it runs."""
    return asdict(nights.night(store, night)) | {"metrics": nights.night_steps(store, night)}


@router.get("/nights/{night}/evidence", response_model=list[Decision])
def night_evidence(night: int, store: TheStore) -> list[dict[str, Any]]:
    """Every decision about what a night made, newest first."""
    nights.night(store, night)
    return [asdict(each) for each in decisions.decisions(store, night)]


@router.post("/nights", response_model=Night)
def start_night(body: NightAsked, user: Operator, assistant: TheAssistant, write: Writing) -> dict[str, Any]:
    """Start a night now, as a process of its own."""
    asked = (body.method, body.again, body.settings)
    return write.in_time(body, lambda: asdict(operations.start_night(assistant, user, *asked)))


@router.delete("/nights/{night}", response_model=Night)
def cancel_night(night: int, user: Operator, store: TheStore, write: Writing) -> dict[str, Any]:
    """Cancel a running night."""
    return write.in_time(None, lambda: asdict(operations.cancel_night(store, user, night)))


@router.get("/adapters", response_model=list[Adapter])
def list_adapters(store: TheStore) -> list[dict[str, Any]]:
    """Every adapter, newest first."""
    return [asdict(each) for each in adapters.adapters(store)]


@router.get("/promotions", response_model=list[Promotion])
def list_promotions(store: TheStore) -> list[dict[str, Any]]:
    """The newest fifty promotions, newest first."""
    return [asdict(each) for each in adapters.promotions(store)]


@router.post("/promotions", response_model=Promoted)
def promote(body: PromotionAsked, user: Operator, assistant: TheAssistant, write: Writing) -> dict[str, Any]:
    """Prove and promote an adapter; it serves from the next message on."""
    asked, believed = (None if each == BASE else each for each in (body.adapter, body.instead_of))

    def act() -> dict[str, Any]:
        name, proof = operations.promote(assistant, user, asked, body.reason, believed)
        return {"adapter": name, "proof": asdict(proof) if proof else None}

    return write.in_time(body, act)


@router.get("/schedule", response_model=Schedule)
def schedule(store: TheStore) -> dict[str, Any]:
    """When nights start."""
    return standing_schedule(store)


@router.put("/schedule", response_model=Schedule)
def set_schedule(body: ScheduleAsked, user: Operator, store: TheStore, write: Writing) -> dict[str, Any]:
    """Set when nights start; takes effect within seconds."""

    def act() -> dict[str, Any]:
        operations.set_schedule(store, user, operations.ScheduleForm(**body.model_dump()))
        return standing_schedule(store)

    return write.at_once(body, act)


@router.get("/status", response_model=Status)
def status(assistant: TheAssistant) -> dict[str, Any]:
    """The system status: what answers, what trains, what is due, and how much feedback there is."""
    store = assistant.store
    running = processes.running_night(store)
    over = next((night for night in nights.nights(store) if night.ended_at), None)
    due = standing_schedule(store)
    return {
        "version": our_version(),
        "model": assistant.base.name,
        "serving": assistant.adapters.serving(),
        "loaded": assistant.adapters.loaded(),
        "active": assistant.engine.active,
        "waiting": assistant.engine.waiting,
        "running_night": asdict(running) if running else None,
        "last_night": asdict(over) if over else None,
        "next_night": next(iter(due["next"]), None),
        "feedback": tally.counts(store),
    }


def standing_schedule(store: Database) -> dict[str, Any]:
    """The current schedule, with its next times (as text, so that a write's answer can be kept)."""
    standing = schedules.schedule(store)
    names = ("cron", "time_zone", "enabled", "grace_minutes", "every_new")
    return {name: getattr(standing, name, None) for name in names} | {
        "enabled": bool(standing and standing.enabled),
        "new_feedback": schedules.new_feedback(store),
        "next": [each.isoformat() for each in next_nights(standing, NEXT_TIMES)],
        "occurrences": [asdict(each) for each in schedules.occurrences(store, LAST_OCCURRENCES)],
    }


def our_version() -> str:
    """The installed version of Nightschool."""
    try:
        return version("nightschool")
    except PackageNotFoundError:
        return "run from source, not installed"
