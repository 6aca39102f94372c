"""How much of a night one person may carry, and of what judges it: nobody decides alone, and feedback is not wasted.

- A newcomer, or whoever's agreement with others is not shown, carries at most one and a half times an equal share: a
  half of the whole where two or three rate, 2 % from 75 people on.
- Whose agreement is surely typical carries up to a third.
- Whom an operator made a rater carries up to a third, too, and is never cut below half of what they said: somebody
  answers for them, and most of a small team's feedback may be one person's.
- Who is no person (imported raters, other models) weighs and carries what a newcomer may, at most; all imported raters
  without a name count as one.
One person alone, and a ledger without people, have no bounds. Many accounts that agree with each other are not found
(`docs/poison.md` has the figures).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from feedback.database.database import Database
from feedback.example_types import Examples
from feedback.raters.reliability import NEW, Rating, Reliability, reliabilities, shared_ratings

PROBATION = 0.25  # the weight of somebody's words before others have rated the same things
MOST, LEAST_SHARE = 0.5, 0.02  # a newcomer's largest share of a night, where few rate and where many do
EQUAL_SHARES = 1.5  # in between, so many times an equal share
TRUSTED_SHARE = 1 / 3
KEPT = 0.5  # of what a person said whom an operator made a rater, at least
SURE = 1.28  # standard deviations: a one-sided 90 % bound
TYPICAL = 0.5  # of the typical rater's agreement, that a person's must surely reach
TYPICAL_FROM = 20  # ratings that others gave too
UNNAMED = -1  # stands for all imported raters without a name


@dataclass(frozen=True)
class Bounds:
    """Who rates, and whose word is worth more than a newcomer's. Without anybody (the default) nobody is bounded."""

    raters: int = 0  # people, not imported raters or models
    named: frozenset[int] = frozenset()  # whom an operator made raters, or operators
    typical: frozenset[int] = frozenset()
    unnamed: frozenset[int] = frozenset()  # imported raters without a name
    other: bool = False  # whether imported raters or models have their say beside people

    def share(self, user: int) -> float:
        """The largest share of the whole that somebody may carry."""
        if self.raters == 0 or (self.raters == 1 and not self.other):
            return 1.0
        least = newcomer_share(self.raters)
        return max(TRUSTED_SHARE, least) if user in self.named or user in self.typical else least

    def kept(self, user: int) -> float:
        """The share of what somebody said that is never cut."""
        return KEPT if user in self.named else 0.0

    def carrier(self, user: int) -> int:
        """As whom somebody is counted."""
        return UNNAMED if user in self.unnamed else user


def newcomer_share(raters: int) -> float:
    """The largest share of a night that somebody unknown may carry, when so many people rate."""
    return min(MOST, max(LEAST_SHARE, EQUAL_SHARES / max(raters, 1)))


def of_raters(store: Database, users: Iterable[int]) -> tuple[Bounds, dict[int, float]]:
    """The bounds for those who rate, and the weight of everybody's words before them, from 0 to 1."""
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
    """Whether a user's row is of somebody who rates here."""
    return row["kind"] in ("person", "anonymous")


def row_is_named(row: Mapping[str, Any]) -> bool:
    """Whether an operator made this account a rater, or an operator."""
    return row["kind"] == "person" and row["role"] in ("rater", "operator")


def _weight(user: int, bounds: Bounds, person: bool, known: Reliability | None, compared: Mapping[int, int]) -> float:
    """From `PROBATION` up to what agreement gives, as others rate the same things; no machine goes beyond it."""
    whole = known.weight if known else 1.0
    if not person:
        return min(PROBATION, whole)
    if user in bounds.named:
        return whole
    low = min(PROBATION, whole)
    return low + (whole - low) * min(compared.get(user, 0) / NEW, 1.0)


def compared_with(ratings: Sequence[Rating], named: frozenset[int]) -> dict[int, int]:
    """How many of each person's ratings somebody established gave too.

    Established are those whom an operator named and, in turn, whoever has `NEW` ratings in common with the established.
    Where none of the named shares a rating with anybody, everybody's word counts: there is nobody to begin with.
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
    """Those whose agreement, at the lower end of what it may be, is at least half of the typical rater's.

    That of the typical rater itself would be too much to ask: by definition half of all people agree less.
    """
    enough = [each for user, each in known.items() if compared.get(user, 0) >= TYPICAL_FROM]
    if not enough:
        return frozenset()
    least = TYPICAL * median(each.mean for each in enough)
    return frozenset(each.user for each in enough if each.mean - SURE * each.deviation >= max(least, 1e-9))


def capped(sums: Mapping[int, float], bounds: Bounds) -> dict[int, float]:
    """For each person, of whose words `sums` is the weight, a factor from 0 to 1 that keeps them within their bounds.

    The largest total T with T = sum of min(own, max(share * T, kept * own)): who is within their share keeps all.
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
    """Examples of all kinds with the weight of who said so, everybody within their bounds; the greatest weight is 1.

    Where all weigh the same, as long as nobody has been compared, nobody loses anything.
    """
    sums: dict[int, float] = {}
    for each in examples:
        sums[each.user] = sums.get(each.user, 0.0) + weights.get(each.user, 1.0)
    final = {user: weights.get(user, 1.0) * factor for user, factor in capped(sums, bounds).items()}
    most = max(final.values(), default=0.0) or 1.0
    return examples.with_weights({user: weight / most for user, weight in final.items()})


def bounded(store: Database, examples: Examples) -> Examples:
    """Examples weighed by what is known now of those who gave them."""
    return within(examples, *of_raters(store, {each.user for each in examples}))
