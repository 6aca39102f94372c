"""Caps on the share of a night, or of what judges it, that one person's feedback may carry.

- Newcomers, and people whose agreement with others is not established, carry at most one and a half times an equal
  share: half of the whole with two or three raters, 2 % with 75 or more.
- People whose agreement is surely typical carry up to a third.
- Raters named by an operator also carry up to a third, and are never cut below half of what they said: the operator
  vouches for them, and most of a small team's feedback may come from one person.
- Imported raters and models have at most a newcomer's weight and share; all unnamed imported raters count as one.
A ranking of K replies counts as K - 1 comparisons. A person who is the only rater, and a ledger without people, have no
caps. Many accounts that agree with each other are not detected (`docs/poison.md` has the figures).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from feedback.database.database import Database
from feedback.example_types import Examples
from feedback.raters.reliability import NEW, Rating, Reliability, reliabilities, shared_ratings

PROBATION = 0.25  # the weight of a person's feedback before others have rated the same items
MOST, LEAST_SHARE = 0.5, 0.02  # a newcomer's largest share of a night, with few and with many raters
EQUAL_SHARES = 1.5  # a newcomer's largest share in between, in equal shares
TRUSTED_SHARE = 1 / 3
KEPT = 0.5  # the least share kept of the feedback of a rater named by an operator
SURE = 1.28  # standard deviations: a one-sided 90 % bound
TYPICAL = 0.5  # the share of the typical rater's agreement that a person's must surely reach
TYPICAL_FROM = 20  # the least number of ratings on items that established raters rated, too
UNNAMED = -1  # stands for all imported raters without a name


@dataclass(frozen=True)
class Bounds:
    """The raters by how much they may carry. Without people (the default) nobody is capped."""

    raters: int = 0  # people, not imported raters or models
    named: frozenset[int] = frozenset()  # people with the role of rater or operator
    typical: frozenset[int] = frozenset()
    unnamed: frozenset[int] = frozenset()  # imported raters without a name
    other: bool = False  # whether imported raters or models gave feedback, too

    def share(self, user: int) -> float:
        """The largest share of the whole that a user may carry."""
        if self.raters == 0 or (self.raters == 1 and not self.other):
            return 1.0
        least = newcomer_share(self.raters)
        return max(TRUSTED_SHARE, least) if user in self.named or user in self.typical else least

    def kept(self, user: int) -> float:
        """The share of a user's feedback that is never cut."""
        return KEPT if user in self.named else 0.0

    def carrier(self, user: int) -> int:
        """The user that this one is counted as."""
        return UNNAMED if user in self.unnamed else user


def newcomer_share(raters: int) -> float:
    """The largest share of a night that a newcomer may carry, given the number of people who rate."""
    return min(MOST, max(LEAST_SHARE, EQUAL_SHARES / max(raters, 1)))


def of_raters(store: Database, users: Iterable[int]) -> tuple[Bounds, dict[int, float]]:
    """The bounds for these raters, and each one's weight, from 0 to 1, before the bounds apply."""
    rows = {row["id"]: row for row in store.rows("SELECT id, name, role, kind FROM users")}
    said = {user: rows[user] for user in users if user in rows}
    people = {user for user, row in said.items() if is_person(row)}
    named = frozenset(user for user in people if row_is_named(said[user]))
    ratings = shared_ratings(store)
    known = {each.user: each for each in reliabilities(ratings)}
    compared = compared_with(ratings, frozenset(user for user, row in rows.items() if row_is_named(row)))
    bounds = Bounds(
        raters=len(people),
        named=named,
        typical=surely_typical(known, compared) & people,
        unnamed=frozenset(user for user, row in said.items() if row["kind"] == "imported" and ": " not in row["name"]),
        other=len(said) > len(people),
    )
    return bounds, {user: _weight(user, bounds, user in people, known.get(user), compared) for user in said}


def is_person(row: Mapping[str, Any]) -> bool:
    """Whether a user's row is of a person who rates here, not an imported rater or a model."""
    return row["kind"] in ("person", "anonymous")


def row_is_named(row: Mapping[str, Any]) -> bool:
    """Whether this account has the role of rater or operator."""
    return row["kind"] == "person" and row["role"] in ("rater", "operator")


def _weight(user: int, bounds: Bounds, person: bool, known: Reliability | None, compared: Mapping[int, int]) -> float:
    """A weight that rises from `PROBATION` to the reliability weight as others rate the same items.

    Imported raters and models stay at `PROBATION` at most; raters named by an operator have their reliability weight.
    """
    whole = known.weight if known else 1.0
    if not person:
        return min(PROBATION, whole)
    if user in bounds.named:
        return whole
    low = min(PROBATION, whole)
    return low + (whole - low) * min(compared.get(user, 0) / NEW, 1.0)


def compared_with(ratings: Sequence[Rating], named: frozenset[int]) -> dict[int, int]:
    """The number of each person's ratings on items that an established rater rated, too.

    Established raters are those named by an operator and, recursively, people who share `NEW` rated items with them. If
    none of the named raters shares an item with anybody, everybody is established, since there is nowhere to start.
    """
    people: dict[str, set[int]] = {}
    for each in ratings:
        people.setdefault(each.item, set()).add(each.user)
    everybody = {each.user for each in ratings}
    established = set(named & everybody) or everybody
    while True:
        counts = dict.fromkeys(everybody, 0)
        for raters in people.values():
            known = len(established & raters)
            for user in raters:
                counts[user] += known > (user in established)
        grown = established | {user for user, count in counts.items() if count >= NEW}
        if grown == established:
            return counts
        established = grown


def surely_typical(known: Mapping[int, Reliability], compared: Mapping[int, int]) -> frozenset[int]:
    """The people whose agreement is, at its lower bound, at least half of the typical rater's.

    The typical rater's own agreement would be too strict: by definition half of all people agree less.
    """
    enough = [each for user, each in known.items() if compared.get(user, 0) >= TYPICAL_FROM]
    if not enough:
        return frozenset()
    least = TYPICAL * median(each.mean for each in enough)
    return frozenset(each.user for each in enough if each.mean - SURE * each.deviation >= max(least, 1e-9))


def capped(sums: Mapping[int, float], bounds: Bounds) -> dict[int, float]:
    """A factor from 0 to 1 for each person that keeps them within their bounds; `sums` holds their total weights.

    Finds the largest total T with T = sum of min(own, max(share * T, kept * own)); people within their share keep all.
    """
    carried: dict[int, float] = {}
    for user, own in sums.items():
        carried[bounds.carrier(user)] = carried.get(bounds.carrier(user), 0.0) + own
    rules = [(own, bounds.share(user), bounds.kept(user) * own) for user, own in carried.items()]
    total, smaller = float("inf"), sum(carried.values())
    while smaller < total * (1 - 1e-12):
        total = smaller
        smaller = sum(min(own, max(share * total, kept)) for own, share, kept in rules)
    factors = {
        user: min(own, max(share * smaller, kept)) / own if own else 1.0
        for user, (own, share, kept) in zip(carried, rules, strict=True)
    }
    return {user: factors[bounds.carrier(user)] for user in sums}


def within(examples: Examples, bounds: Bounds, weights: Mapping[int, float]) -> Examples:
    """The examples with their raters' weights, everybody within their bounds, scaled so that the largest person's is 1.

    The scaling cancels equal weights, as when nobody has been compared with others yet.
    """
    sums: dict[int, float] = {}
    for each in examples:
        sums[each.user] = sums.get(each.user, 0.0) + weights.get(each.user, 1.0) * each.counts_as
    final = {user: weights.get(user, 1.0) * factor for user, factor in capped(sums, bounds).items()}
    most = max(final.values(), default=0.0) or 1.0
    return examples.with_weights({user: weight / most for user, weight in final.items()})


def bounded(store: Database, examples: Examples) -> Examples:
    """The examples with the weights and bounds that their raters have now."""
    return within(examples, *of_raters(store, {each.user for each in examples}))
