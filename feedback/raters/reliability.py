"""Each rater's reliability: how far their ratings agree with others', and the resulting weight. Nobody is ever banned.

A person's score is the correlation of their ratings with the mean of others' ratings of the same items, weighted by the
others' scores. A little plain agreement is added, so that of two people who always give the same rating, the one who
gives the majority's scores higher. While a person has few ratings, the score is shrunk towards a typical rater's: it is
the posterior mean under a normal prior. On real ratings of ambiguous content this finds careless raters where
Dawid-Skene does not (`docs/ledger.md`). It does not find people who are honest except on one subject, because their
other ratings vouch for them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from feedback.database.database import Database
from feedback.kinds import current
from feedback.kinds.base import KINDS, Kind

PEOPLE = ("person", "anonymous")  # the kinds of users whose agreement counts: no models, no imported raters
IMPORTED = "imported"  # the kind of user whose ratings come from a file
LEAST = 0.25  # the weight of the least reliable person
NEW = 10  # a person with fewer ratings on items that others rated, too, is new
WINDOW = 20_000  # the number of newest rows of each kind to consider
ROUNDS = 6
AGREEMENT = 0.3  # standard deviations of correlation per standard deviation of plain agreement


@dataclass(frozen=True)
class Rating:
    """One person's rating of an item that others may have rated, too; `value` is from -1 to 1."""

    user: int
    item: str
    value: float


@dataclass(frozen=True)
class Reliability:
    """One rater's reliability. `mean` and `deviation` are of the posterior of their score, which is at most 1."""

    user: int
    ratings: int  # on items that others rated, too
    mean: float
    deviation: float
    weight: float  # `LEAST` to 1

    @property
    def new(self) -> bool:
        """Whether there are too few ratings to judge by."""
        return self.ratings < NEW


def weights(store: Database) -> dict[int, float]:
    """The weight of each person whose ratings can be compared with others'; all other weights are 1."""
    return {each.user: each.weight for each in reliabilities(shared_ratings(store))}


def shared_ratings(store: Database, window: int = WINDOW) -> list[Rating]:
    """The current ratings by `PEOPLE` that may be used, of items that more than one of them rated.

    Only the newest `window` rows of each kind are considered.
    """
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
    """The kinds of feedback whose rows are ratings."""
    return [kind for kind in KINDS.values() if kind.ratings]


def heard(store: Database, kind: Kind, window: int = WINDOW) -> list[dict[str, Any]]:
    """The current rows of `PEOPLE` that may be used, among the newest `window` rows of a kind."""
    since = {kind.table: max(current.position(store)[kind.table] - window, 0)}
    return [row for row in current.rows(store, kind, since) if row["usable"] and row["by"] in PEOPLE]


def reliabilities(ratings: Iterable[Rating]) -> list[Reliability]:
    """Every rater's posterior and weight, by user; raters who share no item with anybody are left out."""
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
    noise = (1 - np.clip(score, -0.95, 0.95) ** 2) ** 2 / np.maximum(count - 1, 0.5)  # variance of a correlation
    mean = (spread * score + noise * typical) / (spread + noise)
    deviation = np.sqrt(spread * noise / (spread + noise))
    weight = np.clip(mean / typical, LEAST, 1.0)
    columns = (each.tolist() for each in (people, count, mean, deviation, weight))
    return [Reliability(u, int(n), m, d, w) for u, n, m, d, w in zip(*columns, strict=True) if n]


def _scores(who, what, said, weight):  # type: ignore[no-untyped-def]
    """One round: (raters,) scores under (raters,) weights, and (raters,) counts of ratings on shared items."""
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
