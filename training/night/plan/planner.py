"""The plan of a night: its method, settings and examples, and whether there is enough to learn from."""

from typing import Any

from assistant.environment import AUTO
from assistant.models import base_model
from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.example_types import Examples
from feedback.examples.build import gather
from feedback.examples.caps import bounded
from feedback.examples.split import Places, Split, judges, places, split
from feedback.records import nights
from feedback.records.nights import Night
from training.algorithms import registry
from training.loop import limits
from training.model import policy
from training.night.plan import choice, manifest
from training.night.plan.reasons import in_words, only, unused_by, why_no_example, without_contrast
from training.night.plan.stages import Wishes, staged
from training.night.run_dir import Plan, rewards_folder

ALL = "all_sha256"  # in a night's settings: the hash of all it might have learned from, if it took a part


def make_plan(store: Database, base: Base, wishes: Wishes, settle: bool = False) -> tuple[Plan, Examples]:
    """Plan how this machine would train on the current feedback; `settle` as in `feedback.examples.split.judges`.

    Raises `Refused` if the settings make more steps of it than a night can take, or name a reward that cannot be used.
    """
    # 1. the method, and why
    everything = gather(store)
    chosen = choice.made(store, base, everything, wishes.method)
    method = registry.find(chosen.method)

    # 2. its settings, and where it begins
    config = method.config(**wishes.settings)
    limits.require_possible(base, config, wishes.settings)
    precision = precision_of(config.precision)
    config.require_usable(rewards_folder(store.data))
    config, begins = staged(store, base, method, config, wishes)

    # 3. its examples, each person's share of them limited, and about how long they take
    usable = used_by(method.name, everything)
    judging = sorted(judges(store, usable, settle))
    where = places(store, frozenset(judging))
    taken = manifest.taken(store, base, method, config, usable, where)
    examples = bounded(store, taken.examples)
    limits.require_steps(config, len(examples))

    plan = Plan(
        base.name,
        base.sha256,
        method.name,
        config.model_dump(),
        precision,
        policy.courteous_threads(),
        judging,
        why="; ".join(filter(None, (chosen.why, taken.words))),
        begins=begins,
        minutes=taken.minutes,
        all_sha256=taken.all_sha256,
    )
    return plan, examples


def precision_of(asked: str) -> str:
    """The number format that a night computes in: the one asked for, or the faster one on this machine."""
    if asked != AUTO:
        return asked
    return str(base_model.fastest_dtype(base_model.pick_device())).removeprefix("torch.")


def parts(store: Database, plan: Plan, examples: Examples) -> Split:
    """Split examples into the night's training, validation and held-out sets."""
    return split(examples, places_of(store, plan))


def places_of(store: Database, plan: Plan) -> Places:
    """What decides the part that an example of the night is in."""
    return places(store, frozenset(plan.judges))


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
    return Examples(**kept, left_out=left_out | ({unused_by(method): unused} if unused else {}))


def recorded_settings(plan: Plan) -> dict[str, Any]:
    """The settings that a night's row records."""
    more = {ALL: plan.all_sha256} if plan.all_sha256 else {}
    return plan.settings | {"model": plan.model, "base_sha256": plan.base_sha256} | more


def why_nothing(store: Database, examples: Examples, plan: Plan, again: bool) -> str:
    """The reason why there is nothing to do, in words; empty if there is something."""
    method = registry.find(plan.method)
    config = method.config(**plan.settings)
    needed = only(examples, method.needed(config))
    if not len(needed):
        return why_no_example(store, examples, method, config)
    if flat := without_contrast(needed, method, config):
        return f"nothing to learn from: {flat}"
    divided = parts(store, plan, needed)
    if not len(divided.training) + len(divided.stopping):
        whose = "all feedback so far" if len(needed) == len(examples) else f"all that {method.name} can learn from"
        return f"nothing to learn from yet; {whose} ({in_words(needed)}) is kept for judging"
    if flat := without_contrast(divided.training.with_others(divided.stopping), method, config):
        return f"nothing to learn from yet: beside what is kept for judging, {flat}"
    last = nights.last_trained(store)
    if last and not again and is_same(last, plan, examples):
        return f"nothing new since night {last.id}; --again trains on the same once more"
    return ""


def is_same(last: Night, plan: Plan, examples: Examples) -> bool:
    """Whether a night has trained by this plan, on what there is to learn from now."""
    # Settings that did not exist then had today's default.
    # What training begins from may be its own last result, which is nothing new.
    free = {"start_from": plan.settings.get("start_from"), ALL: ""}
    settings = [each | free for each in (defaults(plan.method) | last.settings, recorded_settings(plan))]
    learned = last.settings.get(ALL) or last.data_sha256
    return (learned, last.method, settings[0]) == (plan.all_sha256 or examples.sha256, plan.method, settings[1])


def defaults(method: str) -> dict[str, Any]:
    """A method's settings where nothing is asked for."""
    return registry.find(method).config().model_dump()
