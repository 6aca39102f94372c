"""Filtering of examples: no duplicates, the newer of two that contradict, not too many from one person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from feedback.database.openings import BEGINNING
from feedback.messages import Message

if TYPE_CHECKING:
    from feedback.example_types import Example, Made

PEOPLE = 5  # the number of raters from which `MOST_PROMPTS` applies
OVER_CAP = "rater cap"  # the reason
MOST_PROMPTS = 200  # per person; near-duplicates count as one


def sift(made: Sequence[Made], left_out: Counter[str]) -> list[Example]:
    """The examples in order without duplicates, contradictions and those over a rater's cap; counts these by reason."""
    return within_share([made[at][1] for at in unrepeated(made, left_out)], left_out)


def unrepeated(made: Sequence[Made], left_out: Counter[str]) -> list[int]:
    """The places of the examples that are no duplicates and not contradicted by a newer one; counts the others."""
    newest: dict[Any, tuple[str, Any]] = {}
    for at, example in made:
        about, said = example.meaning()
        if about not in newest or at >= newest[about][0]:
            newest[about] = (at, said)
    kept, seen = [], set()
    for place, (_, example) in enumerate(made):
        about, said = example.meaning()
        if newest[about][1] != said:
            left_out["contradicts itself"] += 1
        elif about in seen:
            left_out["duplicate"] += 1
        else:
            seen.add(about)
            kept.append(place)
    return kept


def within_share(examples: Sequence[Example], left_out: Counter[str]) -> list[Example]:
    """The examples of each person's newest `MOST_PROMPTS` prompts, once `PEOPLE` people rate; all before that."""
    if len({each.user for each in examples}) < PEOPLE:
        return list(examples)
    prompts: dict[int, dict[str, None]] = {}
    for each in reversed(examples):
        prompts.setdefault(each.user, {}).setdefault(prompt(each))
    allowed = {user: set(list(every)[:MOST_PROMPTS]) for user, every in prompts.items()}
    kept = [each for each in examples if prompt(each) in allowed[each.user]]
    if len(kept) < len(examples):
        left_out[OVER_CAP] += len(examples) - len(kept)
    return kept


def prompt(example: Example) -> str:
    """The normalised beginning of an example's prompt; prompts that share it are near-duplicates."""
    return beginning(example.messages)


def beginning(messages: Iterable[Message]) -> str:
    """The normalised beginning of a conversation."""
    said = " ".join(f"{each.role}: {each.content}" for each in messages)
    return " ".join(said.casefold().split())[:BEGINNING]
