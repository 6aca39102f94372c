"""`nightschool schedule`: show when nights start, and change it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assistant.command_line import data_option
from feedback.errors import NotFound, Refused
from feedback.numerals import natural
from ui.cli.command import Command, InOrder, existing, json_option

if TYPE_CHECKING:
    from feedback.database.database import Database
    from feedback.upkeep.schedules import Occurrence, Schedule

NEXT_TIMES, LAST_OCCURRENCES = 5, 10
TIME_ZONE, GRACE_MINUTES = "UTC", 60
OFF = "off"


@click.group("schedule", cls=InOrder, invoke_without_command=True)
@data_option
@json_option
@click.pass_context
def schedule(context: click.Context, data: Path, as_json: bool) -> None:
    """Show when nights start, or change it. A server that runs takes a change up within seconds."""
    if context.invoked_subcommand is None:
        with existing(data) as store:
            show_schedule(store, as_json)


@schedule.command("set", cls=Command)
@click.option("--cron", metavar="LINE", help="Minute hour day month weekday, as in crontab; '' for no clock.")
@click.option("--time-zone", metavar="ZONE", help=f"As in Europe/Berlin (default: {TIME_ZONE}).")
@click.option(
    "--grace-minutes",
    metavar="N",
    help=f"Make up for a missed time when it is found within so many minutes (default: {GRACE_MINUTES}).",
)
@click.option("--every-new", metavar="N", help=f"A night for N new pieces of feedback; '{OFF}': not so.")
@data_option
@json_option
def set_(
    cron: str | None, time_zone: str | None, grace_minutes: str | None, every_new: str | None, data: Path, as_json: bool
) -> None:
    """Change the schedule and turn it on. Options not given stay as they were."""
    from feedback.upkeep import schedules
    from ui.schedule.schedule import change

    with existing(data) as store:
        if (cron, time_zone, grace_minutes, every_new) == (None, None, None, None):
            raise Refused("say what to set: --cron, --time-zone, --grace-minutes or --every-new")
        old = schedules.schedule(store) or schedules.Schedule("", TIME_ZONE, True, GRACE_MINUTES, None, at="")
        grace = old.grace_minutes if grace_minutes is None else whole("--grace-minutes", grace_minutes)
        every = old.every_new
        if every_new is not None:
            every = None if every_new == OFF else whole("--every-new", every_new)
        line, zone = old.cron if cron is None else cron, old.time_zone if time_zone is None else time_zone
        change(store, None, line, zone, True, grace, every)
        show_schedule(store, as_json)


@schedule.command("on", cls=Command)
@data_option
@json_option
def on(data: Path, as_json: bool) -> None:
    """Turn the schedule on again."""
    turn(data, True, as_json)


@schedule.command(OFF, cls=Command)
@data_option
@json_option
def off(data: Path, as_json: bool) -> None:
    """Turn the schedule off."""
    turn(data, False, as_json)


def turn(data: Path, enabled: bool, as_json: bool) -> None:
    """Turn the schedule on or off, and show it. Raises `NotFound` where there is none."""
    from feedback.upkeep import schedules
    from ui.schedule.schedule import change

    with existing(data) as store:
        old = schedules.schedule(store)
        if old is None:
            raise NotFound("there is no schedule yet; set one with: nightschool schedule set --cron '0 3 * * *'")
        if old.enabled != enabled:
            change(store, None, old.cron, old.time_zone, enabled, old.grace_minutes, old.every_new)
        show_schedule(store, as_json)


def whole(option: str, text: str) -> int:
    """A whole number as typed. Raises `Refused` on anything else."""
    number = natural(text.removeprefix("-"))
    if number is None:
        raise Refused(f"{option} takes a whole number, not {text[:40]!r}")
    return -number if text.startswith("-") else number


def show_schedule(store: "Database", as_json: bool) -> None:
    """Print the schedule, its next times, and the latest occurrences."""
    from feedback.upkeep import schedules
    from ui.schedule.schedule import next_nights

    standing = schedules.schedule(store)
    times = next_nights(standing, NEXT_TIMES)
    past = schedules.occurrences(store, LAST_OCCURRENCES)
    arrived = schedules.new_feedback(store)
    if as_json:
        facts: dict[str, Any] = {"schedule": asdict(standing) if standing else None, "new_feedback": arrived}
        facts |= {"next": [each.isoformat() for each in times], "occurrences": [asdict(each) for each in past]}
        print(json.dumps(facts, indent=1))
        return
    print("\n".join([*standing_lines(standing, arrived), *next_lines(times), *map(past_line, past)]))


def standing_lines(standing: "Schedule | None", arrived: int) -> list[str]:
    """The current schedule, as lines of text."""
    if standing is None:
        return ["no schedule yet; set one with: nightschool schedule set --cron '0 3 * * *'"]
    lines = [f"schedule   {'on' if standing.enabled else 'off'}"]
    if standing.cron:
        lines += [
            f"clock      {standing.cron} in {standing.time_zone}, made up for within {standing.grace_minutes} min"
        ]
    if standing.every_new:
        lines += [f"feedback   every {standing.every_new} new pieces; {arrived} since the last night"]
    return lines


def next_lines(times: Sequence[datetime]) -> list[str]:
    """The next times of the clock, as lines of text."""
    return [f"{'' if number else 'next':<11}{each:%a %d %b %Y %H:%M %Z}" for number, each in enumerate(times)]


def past_line(past: "Occurrence") -> str:
    """An occurrence and its outcome, as a line of text."""
    from feedback.upkeep.schedules import STARTED

    became = f"night {past.night}" if past.night else "a night begins" if past.outcome == STARTED else "no night"
    return f"{past.cause:<11}{past.due}: {became}: {past.reason}"
