"""The split of feedback into training, early stopping and held-out parts, fixed before anything is trained on it.

- All conversations with the same opening (first words, or a long beginning) stay in the same part for ever, so what
  judges an adapter was never taught to it or to an earlier one. Outsiders cannot tell which part that is (`openings`).
- What says when to stop may be trained on instead, where a night has too little else; what judges, never.
- Once five people rate, a share of new raters is kept for judging with all their feedback, so that an adapter is also
  judged by people whose taste it was not taught. Their feedback is held out whatever the conversation's part. This
  decision never changes for a person.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from feedback.database.database import Database, now
from feedback.database.openings import JUDGING, alike, name_of, number, part_at
from feedback.example_types import KINDS, Example, Examples
from feedback.examples.filtering import PEOPLE

PARTS = ("training", "stopping", "held_out")


@dataclass(frozen=True)
class Split:
    """One night's examples in three parts; only feedback of `judges` may share a conversation with another part."""

    training: Examples
    stopping: Examples
    held_out: Examples


@dataclass(frozen=True)
class Places:
    """Everything that decides an example's part, in one data folder; `judges` are the people kept for judging."""

    secret: str
    placed: Mapping[str, str] = field(default_factory=dict)  # name of an opening -> part, if placed before the secret
    judges: frozenset[int] = frozenset()

    def part_of(self, example: Example) -> str:
        """The part of an example: "training", "stopping" or "held_out"."""
        if example.user in self.judges:
            return "held_out"
        first = opening(example)
        return self.placed.get(name_of(self.secret, first)) or part_at(number(self.secret, f"conversation {first}"))


def places(store: Database, judges: frozenset[int] = frozenset()) -> Places:
    """The `Places` of this data folder."""
    placed = {row["opening"]: row["part"] for row in store.rows("SELECT opening, part FROM split_openings")}
    return Places(secret_of(store), placed, judges)


def secret_of(store: Database) -> str:
    """The secret that keys the split, so that outsiders cannot tell which part an opening is in."""
    return str(store.rows("SELECT secret FROM split_secret")[0]["secret"])


def split(examples: Examples, where: Places) -> Split:
    """The examples by part, always the same part for the same example.

    The counts of what was left out go with the training part.
    """
    parts: dict[str, dict[str, Any]] = {name: {kind: [] for kind in KINDS} for name in PARTS}
    for kind in KINDS:
        for each in getattr(examples, kind):
            parts[where.part_of(each)][kind].append(each)
    whole: list[dict[str, Any]] = [{kind: tuple(some) for kind, some in parts[name].items()} for name in PARTS]
    training, stopping, held_out = (Examples(**each) for each in whole)
    return Split(replace(training, left_out=examples.left_out), stopping, held_out)


def opening(example: Example) -> str:
    """The opening of an example's conversation."""
    return alike(next((each.content for each in example.messages if each.role == "user"), ""))


def judges(store: Database, examples: Examples, settle: bool = False) -> frozenset[int]:
    """The raters who are kept for judging; with `settle`, the decision for newcomers is recorded.

    Nobody is kept for judging until five people rate.
    """
    raters = {each.user for each in examples.pairs} | {each.user for each in examples.thumbs}
    settled = {row["user"]: bool(row["held_out"]) for row in store.rows("SELECT user, held_out FROM split_people")}
    enough = len(raters | set(settled)) >= PEOPLE
    secret = secret_of(store)
    newcomers = {user: enough and number(secret, f"person {user}") < JUDGING for user in sorted(raters - set(settled))}
    if settle and newcomers:
        with store.transaction():
            for user, held_out in newcomers.items():
                store.insert("split_people", {"user": user, "held_out": int(held_out), "at": now()})
    return frozenset(user for user, held_out in {**settled, **newcomers}.items() if held_out)
