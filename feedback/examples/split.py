"""Which feedback teaches and which judges: decided before anything is trained, and never again.

- All conversations that open with the same words, or with the same long beginning, go the same way, for ever: what
  judges an adapter was never taught, neither to it nor to one before it. Nobody outside can tell which (`openings`).
- Once five people rate, a share of those who come is kept for judging with all they say, so that an adapter is also
  judged by people whose taste it was not taught. What a person was first, they stay.
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
    """One night's examples in three parts that share no conversation."""

    training: Examples
    stopping: Examples
    held_out: Examples


@dataclass(frozen=True)
class Places:
    """What decides where an example belongs, in one data folder; `judges` are the people who are kept for judging."""

    secret: str
    placed: Mapping[str, str] = field(default_factory=dict)  # opening, by its name -> part: without the secret
    judges: frozenset[int] = frozenset()

    def part_of(self, example: Example) -> str:
        """ "training", "stopping" or "held_out"."""
        if example.user in self.judges:
            return "held_out"
        first = opening(example)
        return self.placed.get(name_of(self.secret, first)) or part_at(number(self.secret, f"conversation {first}"))


def places(store: Database, judges: frozenset[int] = frozenset()) -> Places:
    """Where examples of this data folder belong."""
    placed = {row["opening"]: row["part"] for row in store.rows("SELECT opening, part FROM split_openings")}
    return Places(secret_of(store), placed, judges)


def secret_of(store: Database) -> str:
    """What keeps others from telling which way an opening goes."""
    return str(store.rows("SELECT secret FROM split_secret")[0]["secret"])


def split(examples: Examples, where: Places) -> Split:
    """Examples by part. The same example goes the same way for ever.

    What was left out is counted with the training part.
    """
    parts: dict[str, dict[str, Any]] = {name: {kind: [] for kind in KINDS} for name in PARTS}
    for kind in KINDS:
        for each in getattr(examples, kind):
            parts[where.part_of(each)][kind].append(each)
    whole: list[dict[str, Any]] = [{kind: tuple(some) for kind, some in parts[name].items()} for name in PARTS]
    training, stopping, held_out = (Examples(**each) for each in whole)
    return Split(replace(training, left_out=examples.left_out), stopping, held_out)


def opening(example: Example) -> str:
    """How the conversation of an example opens."""
    return alike(next((each.content for each in example.messages if each.role == "user"), ""))


def judges(store: Database, examples: Examples, settle: bool = False) -> frozenset[int]:
    """The people who are kept for judging, among those who rate; with `settle`, newcomers are written down.

    Until five people rate nobody is.
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
