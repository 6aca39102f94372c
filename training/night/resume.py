"""Resuming nights that were killed, or closing them.

A night may resume if it would still train on the same: same base, same method and settings as far as any are asked for,
and none of its examples taken back or changed since. Otherwise it is closed as abandoned, with the reason.
"""

from collections.abc import Iterable

from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.example_types import KINDS, Examples
from feedback.records import nights
from feedback.records.nights import RUNNING, Night
from training.loop.config import SERVES
from training.night import run_dir
from training.night.plan.stages import Wishes
from training.night.run_dir import Plan


def go_on(store: Database, base: Base, standing: Examples, wishes: Wishes) -> tuple[int, Plan, Examples] | None:
    """Find the interrupted night that may resume, if any, with its plan and examples; close all others.

    The caller holds the lock of nights, so a row that says "running" is of a process that is gone.
    """
    found = None
    for night in _running(store):
        saved = _saved(store, night)
        reason = "a newer night goes on" if found else _why_not(saved, base, standing, wishes)
        if reason or saved is None:
            nights.end_night(store, night.id, "abandoned", f"interrupted, and not continued: {reason}")
            run_dir.remove(run_dir.folder(store.data, night.id))
        else:
            found = (night.id, *saved)
    return found


def _running(store: Database) -> Iterable[Night]:
    return [night for night in nights.nights(store) if night.state == RUNNING]


def _saved(store: Database, night: Night) -> tuple[Plan, Examples] | None:
    try:
        plan, examples = run_dir.load_plan(run_dir.folder(store.data, night.id))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (plan, examples) if examples.sha256 == night.data_sha256 else None


def _why_not(saved: tuple[Plan, Examples] | None, base: Base, standing: Examples, wishes: Wishes) -> str:
    """The reason why a night may not resume, in words; empty if it may."""
    if wishes.fresh:
        return "a fresh start was asked for"
    if saved is None:
        return "its saved examples and settings cannot be read"
    plan, examples = saved
    if plan.base_sha256 != base.sha256:
        return f"it trained another base model, {plan.model}"
    if wishes.method not in (None, plan.method):
        return f"method {wishes.method} was asked for, and it used {plan.method}"
    for name, value in wishes.settings.items():
        if plan.settings.get(name) != value and value != SERVES:  # which served when it was planned
            return f"{name}={value} was asked for, and it used {plan.settings.get(name)}"
    taken_back = {each for kind in KINDS for each in getattr(examples, kind)}
    taken_back -= {each for kind in KINDS for each in getattr(standing, kind)}
    if taken_back:
        return f"{len(taken_back)} of its examples have been taken back or changed since"
    return ""
