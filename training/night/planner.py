"""The plan of a night: its method, settings and examples, and whether there is enough to learn from."""

from dataclasses import dataclass
from typing import Any

from assistant.models import base_model
from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.example_types import Examples
from feedback.examples.build import gather
from feedback.examples.caps import bounded
from feedback.examples.split import Split, judges, places, split
from feedback.records import methods, nights
from training.algorithms import registry
from training.model import policy
from training.night.run_dir import Plan


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for; None or empty where it says nothing."""

    method: str | None
    settings: dict[str, Any]
    fresh: bool


def make_plan(store: Database, base: Base, wishes: Wishes, settle: bool = False) -> tuple[Plan, Examples]:
    """Plan how this machine would train on the current feedback; `settle` as in `feedback.examples.split.judges`."""
    method = wishes.method or methods.DEFAULT
    settings = registry.find(method).config(**wishes.settings).model_dump()
    precision = str(base_model.fastest_dtype(base_model.pick_device())).removeprefix("torch.")
    examples = bounded(store, used_by(method, gather(store)))  # limits each person's share
    judging = sorted(judges(store, examples, settle))
    plan = Plan(base.name, base.sha256, method, settings, precision, policy.courteous_threads(), judging)
    return plan, examples


def parts(store: Database, plan: Plan, examples: Examples) -> Split:
    """Split examples into the night's training, validation and held-out sets."""
    return split(examples, places(store, frozenset(plan.judges)))


def used_by(method: str, examples: Examples) -> Examples:
    """The examples that a method learns from; the others are counted as left out."""
    learns_from = registry.find(method).learns_from
    kept, left_out = {kind: getattr(examples, kind) for kind in learns_from}, dict(examples.left_out)
    if "demonstrations" in learns_from and "pairs" not in learns_from:
        # The gate judges a method that learns from corrections by comparing each with what it corrected.
        kept["pairs"] = tuple(each for each in examples.pairs if each.kind == "correction")
    if "ties" in kept:
        left_out.pop("tie", None)
    unused = sum(len(getattr(examples, kind)) - len(kept.get(kind, ())) for kind in ("pairs", "thumbs"))
    return Examples(**kept, left_out=left_out | ({f"not used by {method}": unused} if unused else {}))


def recorded_settings(plan: Plan) -> dict[str, Any]:
    """The settings that a night's row records."""
    return plan.settings | {"model": plan.model, "base_sha256": plan.base_sha256}


def why_nothing(store: Database, examples: Examples, plan: Plan, again: bool) -> str:
    """The reason why there is nothing to do, in words; empty if there is something."""
    if not len(examples):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in examples.left_out.items())
        return "nothing to learn from" + (f"; left out were {reasons}" if reasons else "; nobody has rated a reply yet")
    divided = parts(store, plan, examples)
    if not len(divided.training) + len(divided.stopping):
        return f"nothing to learn from yet; all feedback so far ({in_words(examples)}) is kept for judging"
    last = nights.last_trained(store)
    same = last and (last.data_sha256, last.method, last.settings)
    if last and not again and same == (examples.sha256, plan.method, recorded_settings(plan)):
        return f"nothing new since night {last.id}; --again trains on the same once more"
    return ""


def in_words(examples: Examples) -> str:
    """The counts of a night's examples, in words."""
    counts = examples.counts()
    left_out = ", ".join(f"{reason}: {count}" for reason, count in counts.pop("left_out").items())
    kinds = ", ".join(f"{count} {plural(kind, count)}" for kind, count in counts.items() if count)
    return kinds + (f" (left out: {left_out})" if left_out else "")


def plural(kind: str, count: int) -> str:
    """The name of a kind of feedback after a count: one comparison, two comparisons, thumbs up."""
    return kind.replace("_", " ") if count == 1 or kind.startswith("thumbs") else f"{kind}s"
