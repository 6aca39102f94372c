"""Nights as separate processes: starts, finds and cancels them without importing `training`."""

import argparse
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from assistant.environment import program
from feedback.database.database import Database
from feedback.errors import Conflict
from feedback.records import audit, nights
from feedback.records.nights import RUNNING, Night
from feedback.upkeep.schedules import CLOCK

APPEARS_WITHIN_S = 60.0
ENDS_WITHIN_S = 4.0


def night_command(data: Path, model: str, options: Sequence[str] = ()) -> list[str]:
    """The command line of a night, as `nightschool night` and the schedule run it."""
    return program("training.night", "--data", str(data), "--model", model, *options)


def start_night(store: Database, model: str, options: Sequence[str] = (), asked_by: int | None = None) -> Night:
    """Start a night in the background and wait for it to announce itself; its row.

    The night records the person who asked for it, or the clock if nobody did.

    Raises `Conflict` when one is running, with the night's own sentence when it ends before it announces itself, and
    when it does neither within 60 s.
    """
    if running_night(store):
        raise Conflict("a night is running already; wait for it or cancel it")
    log = store.data / "night.log"
    log.touch(mode=0o600)
    asked = ["--asked-by", CLOCK if asked_by is None else str(asked_by)]
    with log.open("ab") as output:
        began_at = output.tell()
        process = subprocess.Popen(
            night_command(store.data, model, [*options, *asked]), stdout=output, stderr=output, start_new_session=True
        )
    until = time.monotonic() + APPEARS_WITHIN_S
    while time.monotonic() < until:
        found = [night for night in nights.nights(store, 5) if night.pid == process.pid]
        if found:
            return found[0]
        if process.poll() is not None:
            said = last_line(log, began_at).removeprefix("nightschool: ")
            raise Conflict(f"the night ended at once: {said or f'exit {process.returncode}'}")
        time.sleep(0.1)
    raise Conflict(f"the night has not announced itself within {APPEARS_WITHIN_S:.0f} s; see {log}")


def last_line(log: Path, began_at: int) -> str:
    """The last line that was written to a file after a position."""
    with log.open("rb") as file:
        file.seek(began_at)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def running_night(store: Database) -> Night | None:
    """The night that is running now, if its process is alive."""
    return next((night for night in nights.nights(store, 5) if night.state == RUNNING and is_night(night.pid)), None)


def is_night(pid: int) -> bool:
    """Whether a process is alive and a night; process ids are reused."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and "training.night" in process.cmdline()
    except psutil.Error:
        return False


def starts_or_ends(store: Database) -> bool:
    """Whether a night is starting or ending: its process is alive on this data folder, and has no running row."""
    running = {night.pid for night in nights.nights(store, 5) if night.state == RUNNING}
    found = (each for each in psutil.process_iter() if each.pid not in running and is_night(each.pid))
    return any(data_of(each) == store.data.resolve() for each in found)


def data_of(process: psutil.Process) -> Path | None:
    """The data folder that a night's process was started on; None where that cannot be seen."""
    option = argparse.ArgumentParser(add_help=False)
    option.add_argument("--data", nargs="?")
    try:
        named = option.parse_known_args(process.cmdline())[0].data
        return Path(process.cwd(), named or process.environ().get("NIGHTSCHOOL_DATA", "data")).resolve()
    except psutil.Error:  # it has ended, or is another account's
        return None


def cancel_night(store: Database, night_id: int, user: int | None = None) -> None:
    """End a night's process with SIGTERM, and with SIGKILL after 4 s. Raises `Conflict` when it is not running."""
    night = nights.night(store, night_id)
    if night.state != RUNNING or not is_night(night.pid):
        raise Conflict(f"night {night_id} is not running")
    audit.record(store, user, "cancel night", str(night_id))
    os.kill(night.pid, signal.SIGTERM)
    until = time.monotonic() + ENDS_WITHIN_S
    while is_night(night.pid) and time.monotonic() < until:
        time.sleep(0.05)
    if is_night(night.pid):
        os.kill(night.pid, signal.SIGKILL)
    if nights.night(store, night_id).state == RUNNING:
        nights.end_night(store, night_id, "cancelled", "cancelled by an operator")
