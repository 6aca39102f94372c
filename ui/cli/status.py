"""`nightschool status`: what serves, what runs, and how much feedback there is."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from assistant.command_line import data_option
from ui.cli.command import Command, existing, json_option, show

if TYPE_CHECKING:
    from feedback.records.nights import Night
    from feedback.upkeep.schedules import Schedule

# The few metrics that say how a night is going, and their short names.
SHORT = {
    "loss": "loss",
    "reward": "reward",
    "kl": "kl",
    "rewards/accuracies": "accuracy",
    "reward_loss": "loss",  # of a reward model
    "reward_accuracy": "accuracy",
}


@click.command("status", cls=Command)
@data_option
@json_option
def status(data: Path, as_json: bool) -> None:
    """Show the state of the system. That is: what serves, what trains, what is due, and how much feedback there is."""
    from feedback.kinds import tally
    from feedback.records import adapters, nights
    from feedback.upkeep import schedules
    from ui.schedule.processes import running_night

    with existing(data) as store:
        serving, counts, standing = adapters.serving(store), tally.counts(store), schedules.schedule(store)
        running, last = running_night(store), next(iter(nights.nights(store, 1)), None)
        steps = nights.night_steps(store, running.id) if running else []
    metrics = steps[-1] if steps else {}
    facts = {
        "serving": serving,
        "feedback": counts,
        "night": asdict(running) if running else None,
        "metrics": metrics or None,
        "last_night": asdict(last) if last else None,
        "schedule": asdict(standing) if standing else None,
    }
    told = {
        "serving": serving or "the base",
        "feedback": ", ".join(f"{count} {kind}" for kind, count in counts.items()),
        **night_line(running, last, metrics),
        "schedule": schedule_words(standing),
    }
    show(as_json, facts, [f"{name:<11}{words}" for name, words in told.items()])


def night_line(running: "Night | None", last: "Night | None", metrics: Mapping[str, float]) -> dict[str, str]:
    """The running night, or the last one: its name and its state in words."""
    if running:
        return {f"night {running.id}": f"{progress(running)}{'; ' if metrics else ''}{in_short(metrics)}"}
    if last:
        return {f"night {last.id}": f"{last.state}: {last.reason}"}
    return {"night": "none yet; start one with: nightschool night"}


def progress(night: "Night") -> str:
    """The progress of a night and the time left, in words."""
    words = [night.phase]
    if night.steps:
        words += [f"step {night.step} of {night.steps}"]
    if night.eta_s:
        words += [f"about {night.eta_s / 60:.0f} min left" if night.eta_s >= 90 else "about a minute left"]
    return ", ".join(words) + (f"; {night.reason}" if night.reason else "")


def in_short(metrics: Mapping[str, float]) -> str:
    """The metrics of a step that say most, in words."""
    return ", ".join(f"{short} {metrics[name]:.2f}" for name, short in SHORT.items() if name in metrics)


def schedule_words(standing: "Schedule | None") -> str:
    """The schedule in words."""
    if standing is None:
        return "none; nights start by hand"
    if not standing.enabled:
        return "off"
    words = [f"{standing.cron} in {standing.time_zone}"] if standing.cron else []
    words += [f"every {standing.every_new} new pieces of feedback"] if standing.every_new else []
    return ", and ".join(words) or "neither by the clock nor by feedback"
