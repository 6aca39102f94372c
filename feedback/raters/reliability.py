"""How far each person's ratings agree with those of others, and what weight follows; nobody is ever banned.

A person's score is the correlation of what they said with the mean of what the others said of the same things (others
counting by their own scores), and a little of their plain agreement, so that of two who always say the same the one
who says what most say stands higher. The score is drawn towards that of a typical rater as long as they said little:
the posterior mean under a normal prior. On real ratings of ambiguous content this finds careless raters where
Dawid-Skene does not (`docs/ledger.md`). Whoever is honest but for one subject is not found: their words on the rest
speak for them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from feedback.database.database import Database
from feedback.kinds import current
from feedback.kinds.base import KINDS, Kind

PEOPLE = ("person", "anonymous")  # the kinds of users whose agreement is looked at; no model, and nothing imported
LEAST = 0.25  # the weight of the least reliable person
NEW = 10  # ratings that others gave too; below it somebody is new
WINDOW = 20_000  # newest rows of each kind that are looked at
ROUNDS = 6
AGREEMENT = 0.3  # standard deviations of the score that one of plain agreement counts for


@dataclass(frozen=True)
class Rating:
    """What somebody said of a thing that others may have rated too; `value` from -1 to 1."""

    user: int
    item: str
    value: float


@dataclass(frozen=True)
class Reliability:
    """What is known of one rater. `mean` and `deviation` are of the posterior of their score, 1 at most."""

    user: int
    ratings: int  # that others gave too
    mean: float
    deviation: float
    weight: float  # `LEAST` to 1

    @property
    def new(self) -> bool:
        """Whether too little is known to say anything."""
        return self.ratings < NEW


def weights(store: Database) -> dict[int, float]:
    """The weight of each person whose ratings can be compared with others'; everybody else's is 1."""
    return {each.user: each.weight for each in reliabilities(shared_ratings(store))}


def shared_ratings(store: Database, window: int = WINDOW) -> list[Rating]:
    """Standing thumbs, choices and the like of `PEOPLE` that may be used, as far as more than one of them rated the
    thing; the newest of them."""
    found: list[Rating] = []
    for kind in rating():
        for row in heard(store, kind, window):
            if kind.ratings and not kind.is_taken_back(row):
                found += (Rating(row["user"], item, value) for item, value in kind.ratings(row))
    people: dict[str, set[int]] = {}
    for each in found:
        people.setdefault(each.item, set()).add(each.user)
    return [each for each in found if len(people[each.item]) > 1]


def rating() -> list[Kind]:
    """The kinds whose rows others may agree with, or not."""
    return [kind for kind in KINDS.values() if kind.ratings]


def heard(store: Database, kind: Kind, window: int = WINDOW) -> list[dict[str, Any]]:
    """The standing rows of `PEOPLE` that may be used, among the newest of a kind."""
    since = {kind.table: max(current.position(store)[kind.table] - window, 0)}
    return [row for row in current.rows(store, kind, since) if row["usable"] and row["by"] in PEOPLE]


def reliabilities(ratings: Iterable[Rating]) -> list[Reliability]:
    """Every rater's posterior and weight, by user. One who shares no item with anybody is not among them."""
    import numpy as np

    ratings = list(ratings)
    if not ratings:
        return []
    people, who = np.unique([each.user for each in ratings], return_inverse=True)
    _, what = np.unique([each.item for each in ratings], return_inverse=True)
    said = np.array([each.value for each in ratings])
    weight = np.ones(len(people))
    for _ in range(ROUNDS):
        score, count = _scores(who, what, said, weight)
        weight = np.maximum(score, 0.02)
    known = count >= NEW
    typical = max(float(np.median(score[known])), 0.05) if known.any() else 0.5
    spread = max(float(np.var(score[known])), 0.01) if known.sum() > 2 else 0.04
    noise = (1 - np.clip(score, -0.95, 0.95) ** 2) ** 2 / np.maximum(count - 1, 0.5)  # of a correlation
    mean = (spread * score + noise * typical) / (spread + noise)
    deviation = np.sqrt(spread * noise / (spread + noise))
    weight = np.clip(mean / typical, LEAST, 1.0)
    columns = (each.tolist() for each in (people, count, mean, deviation, weight))
    return [Reliability(u, int(n), m, d, w) for u, n, m, d, w in zip(*columns, strict=True) if n]


def _scores(who, what, said, weight):  # type: ignore[no-untyped-def]
    """One round: (raters,) scores under (raters,) weights, and how many of their ratings others gave too."""
    import numpy as np

    own = weight[who]
    total, heavy = np.bincount(what, own * said), np.bincount(what, own)
    left = heavy[what] - own
    shared = left > 1e-9
    others = (total[what] - own * said)[shared] / left[shared]
    who, said = who[shared], said[shared]

    def summed(values):  # type: ignore[no-untyped-def]
        return np.bincount(who, values, minlength=len(weight))

    count = np.bincount(who, minlength=len(weight))
    n = np.maximum(count, 1)
    covariance = summed(said * others) / n - summed(said) / n * summed(others) / n
    variances = (summed(said**2) / n - (summed(said) / n) ** 2) * (summed(others**2) / n - (summed(others) / n) ** 2)
    correlation = np.where(variances > 1e-12, covariance / np.sqrt(np.maximum(variances, 1e-12)), 0.0)
    agreement = summed(said * others) / n
    spread = agreement.std()
    standard = (agreement - agreement.mean()) / spread if spread > 1e-9 else 0.0
    return correlation + AGREEMENT * correlation.std() * standard, count
