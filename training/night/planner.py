"""The plan of a night: its method, settings and examples, and whether there is enough to learn from."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from assistant.environment import AUTO
from assistant.models import base_model
from assistant.models.adapter import AdapterCard, checked_card
from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.errors import NotFound, Refused
from feedback.example_types import Examples
from feedback.examples.build import gather
from feedback.examples.caps import bounded
from feedback.examples.split import Places, Split, judges, places, split
from feedback.kinds import current
from feedback.kinds.comparison import COMPARISON, TAKEN_BACK
from feedback.records import adapters, methods, nights
from training.algorithms import registry
from training.algorithms.base import Method
from training.data.tokenize import TOO_LONG
from training.loop import limits
from training.loop.config import SERVES, Config
from training.model import policy
from training.night.run_dir import Plan, rewards_folder

SHAPE = ("rank", "alpha")  # of an adapter; what begins as one has its
ROOM = 0.6  # the share of the KL budget that what serves may have used up, for a training to begin from it
LEARNS_FROM = {"pairs": "preferences", "thumbs": "thumbs", "ties": "ties", "demonstrations": "demonstrations"}
UNDECIDED = {  # choices that prefer no reply: one of them, and several
    "tie": ("a tie", "ties"),
    "both_bad": ("“both bad”", "“both bad”"),
    "cannot_tell": ("“can't tell”", "“can't tell”"),
}


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for; None or empty where it says nothing."""

    method: str | None
    settings: dict[str, Any]
    fresh: bool


def make_plan(store: Database, base: Base, wishes: Wishes, settle: bool = False) -> tuple[Plan, Examples]:
    """Plan how this machine would train on the current feedback; `settle` as in `feedback.examples.split.judges`.

    Raises `Refused` if the settings make more steps of it than a night can take, or name a reward that cannot be used.
    """
    method = wishes.method or methods.DEFAULT
    config = registry.find(method).config(**wishes.settings)
    precision = precision_of(config.precision)
    config.require_usable(rewards_folder(store.data))
    config = staged(store, base, registry.find(method), config, wishes)
    examples = bounded(store, used_by(method, gather(store)))  # limits each person's share
    limits.require_steps(config, len(examples))
    judging = sorted(judges(store, examples, settle))
    plan = Plan(base.name, base.sha256, method, config.model_dump(), precision, policy.courteous_threads(), judging)
    return plan, examples


def staged(store: Database, base: Base, method: Method, config: Config, wishes: Wishes) -> Config:
    """The config with the adapters decided that training begins from and refers to; it takes the former's rank.

    Raises `Refused` if one of them cannot be used.
    """
    start, reference = config.start_from, config.reference
    if start == SERVES:
        start = _serving_with_room(store, base, config, wishes) or ""
    if not method.makes_adapter and (start or reference):
        raise Refused(f"{method.name} makes reward models, which begin as the base and refer to nothing")
    cards = {id: _card_of(store, base, id) for id in {start, reference} - {""}}
    found: dict[str, Any] = {"start_from": start}
    if start:
        found |= {name: cards[start].settings[name] for name in SHAPE}
        for name in SHAPE:
            if wishes.settings.get(name, found[name]) != found[name]:
                raise Refused(f"{name} is {found[name]}, that of {start}, which training begins from")
    return config.model_copy(update=found)


def _serving_with_room(store: Database, base: Base, config: Config, wishes: Wishes) -> str | None:
    """The adapter that serves, if a training can begin from it: of this base, and not yet far from it."""
    serving = adapters.serving(store)
    if serving is None:
        return None
    try:
        card = _card_of(store, base, serving)
    except Refused:
        return None
    fits = all(wishes.settings.get(name, card.settings[name]) == card.settings[name] for name in SHAPE)
    budget = getattr(config, "kl_budget", math.inf)
    return serving if fits and card.metrics.get("kl", math.inf) <= ROOM * budget else None


def _card_of(store: Database, base: Base, adapter: str) -> AdapterCard:
    """An adapter's card. Raises `Refused` if there is none of this base, it does not tell its rank, or has to go."""
    try:
        known = adapters.adapter(store, adapter)
    except NotFound as error:
        raise Refused(str(error)) from error
    if nights.forgotten_people(store, known.night):
        raise Refused(f"{adapter} learned from somebody who was forgotten, so no training can begin from it")
    card = checked_card(adapters.directory(store, adapter), base.sha256)
    if not all(isinstance(card.settings.get(name), int) for name in SHAPE):
        raise Refused(f"{adapter} does not tell its rank, so no training can begin from it")
    return card


def in_stages(plan: Plan) -> str:
    """What a plan's training begins from and refers to, in words; empty if both are the base."""
    start, reference = plan.settings.get("start_from"), plan.settings.get("reference")
    told = (f"from {start}" if start else "", f"with {reference} as its reference" if reference else "")
    return ", ".join(filter(None, told))


def earlier_nights(store: Database, plan: Plan) -> list[int]:
    """The nights that made what a plan's training begins from and refers to."""
    named = {plan.settings.get("start_from"), plan.settings.get("reference")} - {"", None}
    made = (adapters.adapter(store, str(each)).night for each in sorted(map(str, named)))
    return [night for night in made if night is not None]


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


def unused_by(method: str) -> str:
    """The reason why examples of kinds that a method does not learn from are left out."""
    return f"not used by {method}"


def recorded_settings(plan: Plan) -> dict[str, Any]:
    """The settings that a night's row records."""
    return plan.settings | {"model": plan.model, "base_sha256": plan.base_sha256}


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
    # Settings that did not exist then had today's default.
    # What training begins from may be its own last result, which is nothing new.
    own = {"start_from": plan.settings.get("start_from")}
    same = last and (last.data_sha256, last.method, defaults(plan.method) | last.settings | own)
    if last and not again and same == (examples.sha256, plan.method, recorded_settings(plan)):
        return f"nothing new since night {last.id}; --again trains on the same once more"
    return ""


def only(examples: Examples, kinds: Collection[str]) -> Examples:
    """The examples of these kinds, with the counts of what was left out."""
    return Examples(**{kind: getattr(examples, kind) for kind in kinds}, left_out=examples.left_out)


def why_no_example(store: Database, examples: Examples, method: Method, config: Config) -> str:
    """The reason why there is no example of the kinds that a method needs, in words."""
    learns = learns_from(method, config)
    if undecided := no_preference(store):
        return f"nothing to learn from: {undecided}, and {learns}"
    if len(examples):
        return f"nothing to learn from: {learns}, and there are {in_words(examples)}"
    if not examples.left_out:
        return "nothing to learn from; nobody has rated a reply yet"
    unused = f": {learns}" if unused_by(method.name) in examples.left_out else ""
    return f"nothing to learn from{unused}; left out were {left_out_words(examples.left_out)}"


def learns_from(method: Method, config: Config) -> str:
    """The kinds of examples of which a method needs one or more, in words."""
    kinds = [LEARNS_FROM[kind] for kind in method.needed(config)]
    both = " of both kinds" if method.needs_contrast_with(config) else ""
    return f"{method.name} learns from {' and '.join(kinds)}{both}"


def without_contrast(examples: Examples, method: Method, config: Config) -> str:
    """What all thumbs are, in words, where a method cannot learn from that alone; empty if it can."""
    kinds = {thumb.wanted for thumb in examples.thumbs}
    if not method.needs_contrast_with(config) or examples.pairs or len(kinds) != 1:
        return ""
    kind, count = "up" if kinds.pop() else "down", len(examples.thumbs)
    thumbs = f"all {count:,} thumbs are" if count > 1 else "the only thumb is"
    return f"{thumbs} {kind}, and {learns_from(method, config)}"


def no_preference(store: Database) -> str:
    """What all comparisons are, in words, if not one of them prefers a reply; empty if one does, or there are none."""
    choices = Counter(row["choice"] for row in current.rows(store, COMPARISON) if row["usable"])
    choices.pop(TAKEN_BACK, None)
    if not choices or choices.keys() - UNDECIDED.keys():
        return ""
    if choices.total() == 1:
        return f"the one comparison is {UNDECIDED[next(iter(choices))][0]}"
    told = [f"{count:,} {UNDECIDED[choice][1]}" for choice, count in choices.most_common()]
    if len(told) == 1:
        return f"all {choices.total():,} comparisons are {UNDECIDED[next(iter(choices))][1]}"
    return f"none of {choices.total():,} comparisons prefers a reply ({', '.join(told)})"


def why_unfit(unfit: Mapping[str, int], max_length: int, examples: Examples) -> str:
    """The reason why no example is left once all are tokenized, in words; `unfit` counts those that were dropped."""
    if set(unfit) == {TOO_LONG}:
        return f"no example fits into {max_length:,} tokens ({in_words(examples)})"
    return f"no example is left to learn from ({in_words(examples)})"


def added(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Add up two counts by reason."""
    return {reason: counts.get(reason, 0) + more.get(reason, 0) for reason in {**counts, **more}}


def defaults(method: str) -> dict[str, Any]:
    """A method's settings where nothing is asked for."""
    return registry.find(method).config().model_dump()


def in_words(examples: Examples) -> str:
    """The counts of a night's examples, in words."""
    counts = examples.counts()
    left_out = left_out_words(counts.pop("left_out"))
    kinds = ", ".join(f"{count} {plural(kind, count)}" for kind, count in counts.items() if count)
    return kinds + (f" (left out: {left_out})" if left_out else "")


def left_out_words(left_out: Mapping[str, int]) -> str:
    """What was left out, in words: "tie: 3, no consent: 7"."""
    return ", ".join(f"{reason}: {count}" for reason, count in left_out.items())


def plural(kind: str, count: int) -> str:
    """The name of a kind of feedback after a count: one comparison, two comparisons, thumbs up."""
    return kind.replace("_", " ") if count == 1 or kind.startswith("thumbs") else f"{kind}s"
