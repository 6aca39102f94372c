"""Which feedback teaches and which judges: decided before anything is trained, and never again.

- All conversations that open with the same words, or with the same long beginning, go the same way, for ever: what
  judges an adapter was never taught, neither to it nor to one before it.
- Once five people rate, a share of those who come is kept for judging with all they say, so that an adapter is also
  judged by people whose taste it was not taught. What a person was first, they stay.
Left out on purpose: what is learned from the parts (`training/preference`), and how they judge (`training/gate`).
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from feedback.examples import KINDS, Example, Examples
from feedback.sifting import BEGINNING, PEOPLE
from feedback.store import Store, now

JUDGING = 0.15  # the share of conversations, and of people, whose feedback judges
STOPPING = 0.10  # the share of conversations whose feedback says when training has gained all it can
PARTS = ("training", "stopping", "held_out")


@dataclass(frozen=True)
class Split:
    """One night's examples in three parts that share no conversation."""

    training: Examples
    stopping: Examples
    held_out: Examples


def split(examples: Examples, judges: frozenset[int] = frozenset()) -> Split:
    """Examples by part; `judges` are the people who are kept for judging. The same example goes the same way for ever.

    What was left out is counted with the training part.
    """
    parts: dict[str, dict[str, Any]] = {name: {kind: [] for kind in KINDS} for name in PARTS}
    for kind in KINDS:
        for each in getattr(examples, kind):
            parts[part_of(each, judges)][kind].append(each)
    whole: list[dict[str, Any]] = [{kind: tuple(some) for kind, some in parts[name].items()} for name in PARTS]
    training, stopping, held_out = (Examples(**each) for each in whole)
    return Split(replace(training, left_out=examples.left_out), stopping, held_out)


def part_of(example: Example, judges: frozenset[int] = frozenset()) -> str:
    """ "training", "stopping" or "held_out"."""
    place = share(f"conversation {opening(example)}")
    if example.user in judges or place < JUDGING:
        return "held_out"
    return "stopping" if place < JUDGING + STOPPING else "training"


def opening(example: Example) -> str:
    """What a conversation's person said first, or the long beginning of it, without what differs in case or spaces."""
    first = next((each.content for each in example.messages if each.role == "user"), "")
    return " ".join(first.casefold().split())[:BEGINNING]


def share(text: str) -> float:
    """A number from 0 up to 1 that this text always gets, and another text another."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def judges(store: Store, examples: Examples, settle: bool = False) -> frozenset[int]:
    """The people who are kept for judging, among those who rate; with `settle`, newcomers are written down.

    Until five people rate nobody is.
    """
    raters = {each.user for each in examples.pairs} | {each.user for each in examples.thumbs}
    settled = {row["user"]: bool(row["held_out"]) for row in store.rows("SELECT user, held_out FROM split_people")}
    enough = len(raters | set(settled)) >= PEOPLE
    newcomers = {user: enough and share(f"person {user}") < JUDGING for user in sorted(raters - set(settled))}
    if settle and newcomers:
        with store.write():
            for user, held_out in newcomers.items():
                store.insert("split_people", {"user": user, "held_out": int(held_out), "at": now()})
    return frozenset(user for user, held_out in {**settled, **newcomers}.items() if held_out)
