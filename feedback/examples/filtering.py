"""Filtering of examples: no duplicates, the newer of two that contradict, not too many from one person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from feedback.database.openings import BEGINNING
from feedback.messages import Message

if TYPE_CHECKING:
    from feedback.example_types import Example, Made

PEOPLE = 5  # the number of raters from which `MOST_PROMPTS` applies
OVER_CAP = "rater cap"  # the reason
MOST_PROMPTS = 200  # per person; near-duplicates count as one


def sift(made: Sequence[Made], left_out: Counter[str], most: Mapping[int, int]) -> list[Example]:
    """The examples in order without duplicates, contradictions and those over a rater's cap; counts these by reason.

    `most` as in `within_share`.
    """
    return within_share([made[at][1] for at in unrepeated(made, left_out)], left_out, most)


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


def within_share(examples: Sequence[Example], left_out: Counter[str], most: Mapping[int, int]) -> list[Example]:
    """The examples of each person's newest `MOST_PROMPTS` prompts, once `PEOPLE` people rate.

    Before that, of those named in `most` the newest so many, and all of the others.
    """
    raters = {each.user for each in examples}
    if len(raters) >= PEOPLE:
        most = dict.fromkeys(raters, MOST_PROMPTS)
    prompts: dict[int, dict[str, None]] = {}
    for each in reversed(examples):
        if each.user in most:
            prompts.setdefault(each.user, {}).setdefault(prompt(each))
    allowed = {user: set(islice(every, most[user])) for user, every in prompts.items()}
    kept = [each for each in examples if each.user not in most or prompt(each) in allowed[each.user]]
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
