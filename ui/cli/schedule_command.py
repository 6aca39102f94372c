"""The command `nightschool schedule`: show when nights start, and change it. `python -m ui.cli.schedule_command`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from feedback.database.database import Database
from feedback.database.private_files import keep_private
from feedback.errors import NotFound, Refused
from feedback.records import adapters
from feedback.upkeep import schedules
from ui.cli.__main__ import default_data, existing
from ui.schedule.schedule import change, next_nights

NEXT_TIMES, LAST_OCCURRENCES = 5, 10
OFF = "off"
NONE_YET = schedules.Schedule("", "UTC", enabled=True, grace_minutes=60, every_new=None, at="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 when what was asked for cannot be done."""
    keep_private()
    options = parser().parse_args(arguments)
    try:
        store = existing(options.data)
        with adapters.at_terminal():
            if options.act == "set":
                set_as_asked(store, options)
            elif options.act:
                turn(store, enabled=options.act == "on")
        show(store, options.json)
    except Refused as error:
        print(f"nightschool: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has enough
        sys.stdout = None
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = "Show when nights start, or change it; a server that runs takes it up within seconds."
    top = argparse.ArgumentParser(prog="nightschool schedule", description=words)
    top.add_argument("--data", type=Path, default=default_data(), metavar="DIR", help="the data folder")
    top.add_argument("--json", action="store_true", help="print JSON")
    acts = top.add_subparsers(dest="act", metavar="set|on|off")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data", type=Path, default=argparse.SUPPRESS, metavar="DIR", help="the data folder")
    shared.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    kept = "Change the schedule and turn it on; what is not named stays as it was."
    asked = acts.add_parser("set", parents=[shared], help=kept.lower().rstrip("."), description=kept)
    line = "minute hour day month weekday, as in crontab; '' for no clock"
    asked.add_argument("--cron", metavar="LINE", help=line)
    asked.add_argument("--time-zone", metavar="ZONE", help="as in Europe/Berlin (default: UTC)")
    late = "make up for a missed time when it is found within so many minutes (default: 60)"
    asked.add_argument("--grace-minutes", metavar="N", help=late)
    asked.add_argument("--every-new", metavar="N", help=f"a night for N new pieces of feedback; '{OFF}': not so")
    acts.add_parser("on", parents=[shared], help="follow the schedule again")
    acts.add_parser(OFF, parents=[shared], help="start no nights until it is turned on again")
    return top


def set_as_asked(store: Database, options: argparse.Namespace) -> None:
    """`nightschool schedule set`. Raises `Refused`."""
    asked = (options.cron, options.time_zone, options.grace_minutes, options.every_new)
    if asked == (None, None, None, None):
        raise Refused("say what to set: --cron, --time-zone, --grace-minutes or --every-new")
    old = schedules.schedule(store) or NONE_YET
    cron, time_zone, grace, every = old.cron, old.time_zone, old.grace_minutes, old.every_new
    if options.cron is not None:
        cron = options.cron
    if options.time_zone is not None:
        time_zone = options.time_zone
    if options.grace_minutes is not None:
        grace = whole("--grace-minutes", options.grace_minutes)
    if options.every_new is not None:
        every = None if options.every_new == OFF else whole("--every-new", options.every_new)
    change(store, None, cron, time_zone, True, grace, every)


def whole(option: str, text: str) -> int:
    """A whole number as typed. Raises `Refused`."""
    if not (text.isascii() and text.removeprefix("-").isdecimal()):
        raise Refused(f"{option} takes a whole number, not {text!r}")
    return int(text)


def turn(store: Database, enabled: bool) -> None:
    """`nightschool schedule on` and `off`. Raises `NotFound` where there is no schedule."""
    old = schedules.schedule(store)
    if old is None:
        raise NotFound("there is no schedule yet; set one with: nightschool schedule set --cron '0 3 * * *'")
    if old.enabled != enabled:
        change(store, None, old.cron, old.time_zone, enabled, old.grace_minutes, old.every_new)


def show(store: Database, as_json: bool) -> None:
    """`nightschool schedule`."""
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


def standing_lines(standing: schedules.Schedule | None, arrived: int) -> list[str]:
    """The schedule as it stands."""
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
    """When the clock comes due next."""
    return [f"{'' if number else 'next':<11}{each:%a %d %b %Y %H:%M %Z}" for number, each in enumerate(times)]


def past_line(past: schedules.Occurrence) -> str:
    """What became of one occurrence."""
    became = (
        f"night {past.night}" if past.night else "a night begins" if past.outcome == schedules.STARTED else "no night"
    )
    return f"{past.cause:<11}{past.due}: {became}: {past.reason}"


if __name__ == "__main__":
    sys.exit(main())
