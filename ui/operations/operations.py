"""The actions of operators, shared by the page and the HTTP API; each leaves its audit row."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from assistant.chat.assistant import Assistant
from assistant.models.adapter import Agreement
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.records import adapters, nights
from feedback.records.adapters import ANYTHING
from feedback.records.nights import Night
from ui.schedule import processes, schedule

PREVIOUS = "previous"  # as an adapter's name: what served before


@dataclass(frozen=True)
class ScheduleForm:
    """A requested schedule. An empty `cron`: not by the clock."""

    cron: str
    time_zone: str
    enabled: bool
    grace_minutes: int = 60
    every_new: int | None = None


def start_night(
    assistant: Assistant,
    user: User,
    method: str | None = None,
    again: bool = False,
    settings: Mapping[str, int | float | str] | None = None,
) -> Night:
    """Start a night now. Raises as `processes.start_night` does."""
    options = [*(["--method", method] if method else []), *(["--again"] if again else [])]
    options += [f"--set={name}={value}" for name, value in (settings or {}).items()]
    return processes.start_night(assistant.store, assistant.base.name, options, user.id)


def cancel_night(store: Database, user: User, night: int) -> Night:
    """Cancel a night; its row afterwards. Raises as `processes.cancel_night` does."""
    processes.cancel_night(store, night, user.id)
    return nights.night(store, night)


def promote(
    assistant: Assistant, user: User, name: str | None, reason: str, instead_of: str | None = ANYTHING
) -> tuple[str | None, Agreement | None]:
    """Prove an adapter and promote it; its name (None: the base), and its proof.

    Raises as `AdapterManager.promote` does.
    """
    if name == PREVIOUS:
        name = adapters.before_serving(assistant.store)
    return name, assistant.adapters.promote(user.id, name, reason, instead_of)


def set_schedule(store: Database, user: User, wish: ScheduleForm) -> None:
    """Save a schedule. Raises as `schedule.change` does."""
    schedule.change(store, user.id, **asdict(wish))
