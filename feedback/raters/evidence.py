"""The tests that decide about adapters: pure functions of numbers, for one ledger or for many at once.

The question is always whether people prefer one adapter to another. What each person said is summed up by three numbers
(`Votes`), over units that are independent of each other: conversations where recorded feedback judges offline, nights
where people choose live. The hypothesis that a promotion must reject is that the mean over these people, weighted by
their reliability, is at most one half. So a person who says much is known better, and counts no more.

- Up to `SAMPLE` people are taken as they are: all the chance is in their units (a stratified mean). One person alone is
  an exact test of a fair coin. More people are a sample of those who will come, and the chance is between them.
- From `MANY` people on, nothing is decided before they have said `EACH` units on average. Then those are left out, on
  either side, whose record lies beyond what chance and the spread of tastes explain, and the mean must exceed one half
  by `MARGIN`. So a few accounts that always side with the newest adapter promote nothing.

Offline, a p-value is taken at planned looks. Live, people are asked until it is decided, by an e-value that may be
looked at after every vote: a mean of likelihood ratios (Robbins, 1970, "Statistical methods related to the law of the
iterated logarithm"; arXiv 1906.07801). A stratified mean at growing information is a Brownian motion in it (Jennison
and Turnbull, 1997, "Group-sequential analysis incorporating covariate information"). What each test may risk comes from
one account, of the expected number of false promotions a year.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr

Numbers = NDArray[Any]  # of any number format
Truths = NDArray[np.bool_]

SAMPLE = 20  # people; more of them are a sample
MANY = 10  # people from whom on nobody decides by an odd record
EACH = 11  # units a person, on average, before so many decide
MARGIN = 0.02  # by which their mean must exceed one half
ODD, KNOWN = 2.6, 7  # standard deviations from the middle beyond which a record is odd, and the units that this takes
# In variance, of leaving such records out: that of a normal sample's mean cut at `ODD` deviations (Huber, 1981).
COST = 1 / (stats.norm.cdf(ODD) - stats.norm.cdf(-ODD) - 2 * ODD * stats.norm.pdf(ODD))
TASTES = 2.0  # times the spread that chance explains; people who differ by more differ in taste
GAINS = (0.03, 0.05, 0.1, 0.2, 0.3)  # of the mean over one half, each as likely before anybody has voted
HARMS = (0.1, 0.1, 0.1, 0.1, 0.2)  # the same below it, of an adapter that serves already

LOOK, CHALLENGER = 0.0465, 1 / 8  # the share of a year's risk of one look offline, and of one challenger live
LEFT = 2  # times that share of what is left of the year's risk, which one test takes at most
GROWTH = 5 / 4  # of the held-out conversations, from one look to the next
FIRST = 2.0  # the first look, in the fewest conversations that could convince
NIGHTS = 60  # after which a challenger that convinced nobody gives way
LOST = 0.1  # the chance that a challenger as good as what serves is retired before
HARMED = 0.045  # the chance that an adapter as good as what it replaced is taken back


@dataclass(frozen=True)
class Votes:
    """What people said, as arrays of shape (..., people). A unit is 1 for the newer adapter, 0 against it, 1/2 a draw.

    Where ledgers have different numbers of people, those without units count as nobody.
    """

    units: Numbers
    total: Numbers  # the sum over units of x - 1/2
    square: Numbers  # the sum over units of (x - 1/2)^2
    weight: Numbers  # reliability, above 0

    @property
    def against(self) -> "Votes":
        """The same votes as said of the older adapter."""
        return replace(self, total=-self.total)


def votes_of(units: Mapping[int, Sequence[float]], reliability: Mapping[int, float]) -> Votes:
    """The votes of one ledger from each person's units: 1, 0 or in between; people without a reliability have 1."""
    people = sorted(units) or [0]  # who said nothing
    said = [np.asarray(units.get(user, ()), float) - 0.5 for user in people]
    return Votes(
        np.array([float(len(each)) for each in said]),
        np.array([each.sum() for each in said]),
        np.array([(each**2).sum() for each in said]),
        np.array([reliability.get(user, 1.0) for user in people]),
    )


@dataclass(frozen=True)
class Preference:
    """The mean over people, less one half, each of shape (...)."""

    gain: Numbers  # from -1/2 to 1/2
    error: Numbers  # standard error; infinite while nothing can be decided
    people: Numbers  # who said anything
    odd: Numbers  # those of them who are left out for an odd record
    decisive: Numbers  # units that are no draw, of the others
    balance: Numbers  # sum over these of x - 1/2

    @property
    def against(self) -> "Preference":
        """The same as a preference for the older adapter."""
        return replace(self, gain=-self.gain, balance=-self.balance)

    @property
    def clear(self) -> Truths:
        """Whether the mean is as far above one half as so many people's must be."""
        return (self.people < MANY) | (self.gain > MARGIN)


def preference(votes: Votes, guarded: bool = True) -> Preference:
    """The mean preference of the people of each ledger, with its error; `guarded`: without odd records of many."""
    there = votes.units > 0
    people = there.sum(-1)
    many = (people >= MANY) & guarded
    count = np.maximum(votes.units, 1)
    mean, own = votes.total / count, votes.square / count**2
    odd = _odd(votes, mean) & many[..., None]
    kept = there & ~odd
    gain, weight = _weighted(mean, np.where(kept, votes.weight, 0.0))
    within = (weight**2 * own).sum(-1)
    alike = (weight**2).sum(-1)  # 1 over the effective number of people (Kish, "Survey Sampling", 1965)
    between = (weight**2 * (mean - gain[..., None]) ** 2).sum(-1) / np.maximum(1 - alike, 1e-9)
    variance = np.where(kept.sum(-1) > SAMPLE, between, within) * np.where(many, COST, 1.0)
    enough = (variance > 0) & (~many | (votes.units.sum(-1) >= EACH * people))
    error = np.where(enough, np.sqrt(variance), np.inf)
    sums = (4 * (votes.square * kept).sum(-1), (votes.total * kept).sum(-1))
    return Preference(gain, error, people, odd.sum(-1), *sums)


def _weighted(mean: Numbers, weight: Numbers) -> tuple[Numbers, Numbers]:
    """The weighted mean over people, and their weights with a sum of 1."""
    weight = weight / np.maximum(weight.sum(-1, keepdims=True), 1e-12)
    return (weight * mean).sum(-1), weight


def _odd(votes: Votes, mean: Numbers) -> Truths:
    """Whose record is odd: further from the middle of all than chance, and than the spread of tastes, explain.

    The middle is at first the mean without a tenth of the people at either end, then that of those who are not odd.
    """
    there = votes.units > 0
    chance = 0.5 / np.sqrt(np.maximum(votes.units, 1))  # standard deviation of a person's mean, were it one half
    count = there.sum(-1, keepdims=True)
    rank = np.where(there, mean, np.inf).argsort(-1).argsort(-1)
    kept = there & (rank >= count // 10) & (rank < count - count // 10)
    odd = np.zeros_like(there)
    for _ in range(3):
        middle, _ = _weighted(mean, np.where(kept, votes.weight, 0.0))
        away = np.abs(mean - middle[..., None])
        spread = _median(away / chance, there) * 1.4826  # of a normal sample: deviations by the median distance
        far = ODD * chance * np.where(spread > TASTES, spread, 1.0)[..., None]
        odd = there & (votes.units >= KNOWN) & (away >= far - 1e-12)
        kept = there & ~odd
    return odd


def _median(values: Numbers, there: Truths) -> Numbers:
    """The median of the values that are there; 0 if none is."""
    ordered = np.sort(np.where(there, values, np.inf), axis=-1)
    count = there.sum(-1, keepdims=True)
    middle = [np.take_along_axis(ordered, np.maximum(at, 0), -1) for at in ((count - 1) // 2, count // 2)]
    return np.where(count > 0, sum(middle) / 2, 0.0)[..., 0]


def p_value(votes: Votes) -> Numbers:
    """The chance of votes at least as much for the newer adapter, were people's mean one half; shape (...)."""
    found = preference(votes)
    step = 0.5 / np.maximum(found.decisive, 1)  # half of the steps in which the mean moves
    z = (found.gain - step) / found.error
    counted = found.people - found.odd
    several = np.where(counted > SAMPLE, stats.t.sf(z, np.maximum(counted - 1, 1)), ndtr(-z))
    several = np.where(np.isfinite(found.error), several, 1.0)
    wins = np.rint(found.decisive / 2 + found.balance)
    alone = stats.binom.sf(wins - 1, np.rint(found.decisive), 0.5)
    return np.where(found.people <= 1, alone, several)


def e_value(found: Preference, gains: Sequence[float] = GAINS) -> Numbers:
    """The evidence that people's mean is above one half, at most 1 in expectation if it is not; shape (...).

    The mean over `gains` of the likelihood ratio of that gain to none.
    """
    information = 1 / found.error**2
    powers = [gain * found.gain * information - gain**2 * information / 2 for gain in gains]
    return np.mean([np.exp(np.minimum(each, 700.0)) for each in powers], axis=0)


def allowed(risk: Numbers | float, spent: Numbers | float, share: float) -> Numbers:
    """The chance of a false promotion that a test may take, where `spent` of the year's `risk` is gone; shape (...)."""
    return share * np.clip(LEFT * (np.asarray(risk) - spent), 0.0, risk)


def next_look(tested: Numbers | int, alpha: Numbers | float) -> Numbers:
    """The number of held-out conversations at which a candidate is tested next, if `tested` were there the last time.

    None are tested before there could be an answer: all for one side, n conversations have a chance of 2^-n.
    """
    first = np.ceil(FIRST * np.log2(1 / np.maximum(alpha, 1e-12)))
    return np.maximum(first, np.ceil(GROWTH * np.asarray(tested)))


def promotes(votes: Votes, alpha: Numbers | float) -> Truths:
    """Whether held-out votes promote a candidate, at a chance `alpha` that it is no better."""
    return (p_value(votes) <= alpha) & preference(votes).clear


def refuses(votes: Votes, alpha: Numbers | float) -> Truths:
    """Whether held-out votes refuse a candidate: as surely as they would promote it."""
    return promotes(votes.against, alpha)


def may_challenge(votes: Votes) -> Truths:
    """Whether a candidate may meet people: the upper end of its 95 % interval reaches one half."""
    return p_value(votes.against) >= 0.025


def wins(found: Preference, alpha: Numbers | float) -> Truths:
    """Whether people's choices so far promote a challenger, at a chance `alpha` that it is no better."""
    return (e_value(found) * alpha >= 1) & found.clear


def loses(found: Preference, nights: Numbers | int) -> Truths:
    """Whether a challenger is retired after so many nights."""
    return (e_value(found.against) * LOST >= 1) | (np.asarray(nights) >= NIGHTS)


def harms(votes: Votes) -> Truths:
    """Whether choices between an adapter and what it replaced take it back.

    Nobody is left out here: what goes back to what people had needs no guard against them.
    """
    return e_value(preference(votes, guarded=False).against, HARMS) * HARMED >= 1
