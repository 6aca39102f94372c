"""What of the examples counts: once each, the newer of two that contradict, not too many of one person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from feedback.database.openings import BEGINNING

if TYPE_CHECKING:
    from feedback.example_types import Example, Made

PEOPLE = 5  # that rate, before one person's words are too many
MOST_PROMPTS = 200  # of one person, once others rate too; near-duplicates count as one


def sift(made: Sequence[Made], left_out: Counter[str]) -> list[Example]:
    """Examples without repetitions, contradictions and what is over a person's share, in order; counts those."""
    newest: dict[Any, tuple[str, Any]] = {}
    for at, example in made:
        about, said = example.meaning()
        if about not in newest or at >= newest[about][0]:
            newest[about] = (at, said)
    kept, seen = [], set()
    for _, example in made:
        about, said = example.meaning()
        if newest[about][1] != said:
            left_out["contradicts itself"] += 1
        elif about in seen:
            left_out["duplicate"] += 1
        else:
            seen.add(about)
            kept.append(example)
    return within_share(kept, left_out)


def within_share(examples: Sequence[Example], left_out: Counter[str]) -> list[Example]:
    """Each person's newest `MOST_PROMPTS` prompts, once `PEOPLE` people rate."""
    if len({each.user for each in examples}) < PEOPLE:
        return list(examples)
    prompts: dict[int, dict[str, None]] = {}
    for each in reversed(examples):
        prompts.setdefault(each.user, {}).setdefault(prompt(each))
    allowed = {user: set(list(every)[:MOST_PROMPTS]) for user, every in prompts.items()}
    kept = [each for each in examples if prompt(each) in allowed[each.user]]
    if len(kept) < len(examples):
        left_out["rater cap"] += len(examples) - len(kept)
    return kept


def prompt(example: Example) -> str:
    """A prompt, or the long beginning of it: those that share one are near-duplicates."""
    said = " ".join(f"{each.role}: {each.content}" for each in example.messages)
    return " ".join(said.casefold().split())[:BEGINNING]
