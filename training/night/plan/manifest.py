"""What a night learns from: all that is new, and as much older feedback as it has time for, from every month.

The older feedback is drawn in strata of months, all of it on a prompt together, by a hash that changes with each night
that learned something: so in the course of nights all of it comes up.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from assistant.models.base_model import Base
from feedback.database.database import Database, now
from feedback.example_types import KINDS, Example, Examples, PreferencePair
from feedback.examples.filtering import prompt
from feedback.examples.split import Places
from feedback.records import settings
from training.algorithms.base import Config, Method
from training.night.plan import pace
from training.night.plan.pace import Pace
from training.night.plan.reasons import plural

BYTES = 4  # of UTF-8 in a token, about
HALVINGS = 12  # of the share of older feedback that is taken


@dataclass(frozen=True)
class Taken:
    """The examples that a night takes, in their order, and about how long it will take."""

    examples: Examples
    minutes: float | None = None  # None: not known yet
    words: str = ""  # what it does not take; empty if it takes all
    all_sha256: str = ""  # of all examples, if it does not take all


def taken(store: Database, base: Base, method: Method, config: Config, examples: Examples, where: Places) -> Taken:
    """What a night takes of the examples; only methods that learn from examples alone take a part of them."""
    if method.on_policy or not method.makes_adapter:
        return Taken(examples, pace.of_last(store, base, method.name))
    speed, limit = pace.of_training(store, base), settings.setting(store, "night_minutes")
    learned = [each for kind in method.learns_from for each in getattr(examples, kind)]
    learned = [each for each in learned if where.part_of(each) != "held_out"]
    whole = minutes(learned, config, speed)
    since = last_taught(store)
    older = [each for each in learned if each.at < since]
    if whole <= limit or not older:
        return Taken(examples, whole)

    # the largest share of each month for which there is time; of each at least one prompt
    strata, new = by_month(older, since), [each for each in learned if each.at >= since]
    low, high = 0.0, 1.0
    best = drawn(strata, 2.0**-HALVINGS)
    for _ in range(HALVINGS):
        share = (low + high) / 2
        some = drawn(strata, share)
        if minutes([*new, *some], config, speed) <= limit:
            low, best = share, some
        else:
            high = share
    dropped = {id(each) for each in learned} - {id(each) for each in (*new, *best)}
    months, limited = (f"{count} {plural(what, count)}" for what, count in (("month", len(strata)), ("minute", limit)))
    words = f"{len(best):,} of {len(older):,} older pieces of feedback, from {months}, as {limited} allow"
    expected = minutes([*new, *best], config, speed)
    return Taken(without(examples, dropped), expected, words, examples.sha256)


def last_taught(store: Database) -> str:
    """When the newest night that made an adapter began: feedback from then on is new; empty if all of it is."""
    row = store.row("SELECT started_at FROM nights WHERE adapter IS NOT NULL ORDER BY id DESC LIMIT 1")
    return row["started_at"] if row and row["started_at"] <= now() else ""


def by_month(examples: Collection[Example], salt: str) -> dict[str, list[list[Example]]]:
    """The examples by month, oldest first, and in each by prompt, in an order by lot."""
    months: dict[str, dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for each in examples:
        months[each.at[:7]][prompt(each)].append(each)
    return {
        month: [of[name] for name in sorted(of, key=lambda name: hashlib.sha256(f"{salt} {name}".encode()).digest())]
        for month, of in sorted(months.items())
    }


def drawn(strata: dict[str, list[list[Example]]], share: float) -> list[Example]:
    """This share of each month's prompts, with all that was said of them."""
    return [each for units in strata.values() for unit in units[: ceil(share * len(units))] for each in unit]


def without(examples: Examples, dropped: Collection[int]) -> Examples:
    """The examples without those of these ids, which are counted as left for another night."""
    kept: dict[str, Any] = {
        kind: tuple(each for each in getattr(examples, kind) if id(each) not in dropped) for kind in KINDS
    }
    return replace(examples, **kept, left_out=examples.left_out | {"left for another night": len(dropped)})


def minutes(examples: Collection[Example], config: Config, speed: Pace) -> float:
    """About how long a training on these examples takes, judging included."""
    if not examples:
        return 0.0
    mean = sum(map(tokens, examples)) / len(examples)
    passes = config.count_steps(len(examples)) * getattr(config, "batch_size", 1)
    return (passes * mean / speed.tokens_per_s + speed.rest_s) / 60


def tokens(example: Example) -> float:
    """About the tokens of an example that a pass over it reads."""
    answers = (example.chosen, example.rejected) if isinstance(example, PreferencePair) else (example.answer,)
    texts = [each.content for each in example.messages] + [each.text for each in answers]
    return sum(len(each.encode()) for each in texts) / BYTES
