"""What a night would do, and why: enough to learn from, which method, which settings."""

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
    """What was said on the command line; None and empty where nothing was."""

    method: str | None
    settings: dict[str, Any]
    fresh: bool


def make_plan(store: Database, base: Base, wishes: Wishes, settle: bool = False) -> tuple[Plan, Examples]:
    """How this machine would train on what stands in the store now; `settle` as in `feedback.examples.split.judges`."""
    method = wishes.method or methods.DEFAULT
    settings = registry.find(method).config(**wishes.settings).model_dump()
    precision = str(base_model.fastest_dtype(base_model.pick_device())).removeprefix("torch.")
    examples = bounded(store, used_by(method, gather(store)))  # nobody carries too much of what is learned from
    judging = sorted(judges(store, examples, settle))
    plan = Plan(base.name, base.sha256, method, settings, precision, policy.courteous_threads(), judging)
    return plan, examples


def parts(store: Database, plan: Plan, examples: Examples) -> Split:
    """What the night learns from, what says when it has learned, and what judges."""
    return split(examples, places(store, frozenset(plan.judges)))


def used_by(method: str, examples: Examples) -> Examples:
    """The examples that a method learns from; the others are counted as left out."""
    learns_from = registry.find(method).learns_from
    kept, left_out = {kind: getattr(examples, kind) for kind in learns_from}, dict(examples.left_out)
    if "demonstrations" in learns_from and "pairs" not in learns_from:
        # Comparing with what was corrected judges what learned from the correction.
        kept["pairs"] = tuple(each for each in examples.pairs if each.kind == "correction")
    if "ties" in kept:
        left_out.pop("tie", None)
    unused = sum(len(getattr(examples, kind)) - len(kept.get(kind, ())) for kind in ("pairs", "thumbs"))
    return Examples(**kept, left_out=left_out | ({f"not used by {method}": unused} if unused else {}))


def recorded_settings(plan: Plan) -> dict[str, Any]:
    """What a night's row says of how it was done."""
    return plan.settings | {"model": plan.model, "base_sha256": plan.base_sha256}


def why_nothing(store: Database, examples: Examples, plan: Plan, again: bool) -> str:
    """Why there is nothing to do, in words; empty if there is something."""
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
    """What a night learns from, for a person."""
    counts = examples.counts()
    left_out = ", ".join(f"{reason}: {count}" for reason, count in counts.pop("left_out").items())
    kinds = ", ".join(f"{count} {plural(kind, count)}" for kind, count in counts.items() if count)
    return kinds + (f" (left out: {left_out})" if left_out else "")


def plural(kind: str, count: int) -> str:
    """A kind of feedback as it is counted: one comparison, two comparisons, thumbs up."""
    return kind.replace("_", " ") if count == 1 or kind.startswith("thumbs") else f"{kind}s"
