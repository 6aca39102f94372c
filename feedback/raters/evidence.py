"""The tests that decide about adapters: pure functions of numbers, for one ledger or for many at once.

The question is always whether people prefer one adapter to another. What each person said is summed up by three numbers
(`Votes`), over units that are independent of each other: conversations where recorded feedback judges offline, nights
where people choose live. The hypothesis that a promotion must reject is that the mean over these people, weighted by
their reliability, is at most one half. So a person who says much is known better, and counts no more.

- Up to `SAMPLE` people are taken as they are: all the chance is in their units (a stratified mean). One person alone is
  an exact test of a fair coin. More people are a sample of those who will come, and the chance is between them.
- From `MANY` people on, each counts once they have said enough to be known (`KNOWN` units), and those are left out, on
  either side, whose record lies beyond what chance and the spread of tastes explain; the mean must exceed one half by
  `MARGIN`. So a few accounts that always side with the newest adapter promote nothing.

Offline, a p-value is taken at planned looks. Live, people are asked until it is decided, by an e-value that may be
looked at after every vote: a mean of likelihood ratios (Robbins, 1970, "Statistical methods related to the law of the
iterated logarithm"; arXiv 1906.07801). A stratified mean at growing information is a Brownian motion in it (Jennison
and Turnbull, 1997, "Group-sequential analysis incorporating covariate information").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr

Numbers = NDArray[np.float64]

SAMPLE = 20  # people; more of them are a sample
MANY = 10  # people from whom on nobody decides by an odd record
KNOWN = 7  # units with which one of many counts; then a record all for one side is odd
MARGIN = 0.02  # by which the mean of many people must exceed one half
ODD = 2.5  # standard deviations from the middle beyond which a record is odd
COST = 1.12  # of leaving records beyond that out, in variance, where none is odd but by chance
TASTES = 1.6  # times what chance explains; people who differ by more differ in taste
GAINS = (0.03, 0.05, 0.1, 0.2, 0.3)  # of the mean over one half, each as likely before anybody has voted
HARMS = (0.1, 0.1, 0.1, 0.2)  # likewise below it, for an adapter that serves already


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
        return Votes(self.units, -self.total, self.square, self.weight)


@dataclass(frozen=True)
class Preference:
    """The mean over people, less one half, each of shape (...)."""

    gain: Numbers  # from -1/2 to 1/2
    error: Numbers  # standard error; infinite if nobody said anything decisive
    people: Numbers  # who are counted
    unknown: Numbers  # who said too little yet
    odd: Numbers  # who are left out for an odd record
    decisive: Numbers  # units that are no draw, of those who are counted


def preference(votes: Votes) -> Preference:
    """The mean preference of the people of each ledger, and its standard error."""
    there = votes.units > 0
    count = np.maximum(votes.units, 1)
    mean, own = votes.total / count, votes.square / count**2
    many = (there.sum(-1) >= MANY)[..., None]
    known = there & ((votes.units >= KNOWN) | ~many)
    kept = known & ~(_odd(votes, mean, known) & many)
    gain, weight = _weighted(mean, kept, votes.weight)
    within = (weight**2 * own).sum(-1)
    alike = (weight**2).sum(-1)  # 1 over the effective number of people (Kish, 1965)
    between = (weight**2 * (mean - gain[..., None]) ** 2).sum(-1) / np.maximum(1 - alike, 1e-9)
    variance = np.where(kept.sum(-1) > SAMPLE, between, within) * np.where(many[..., 0], COST, 1.0)
    enough = (variance > 0) & ((kept.sum(-1) >= MANY) | ~many[..., 0])
    return Preference(
        gain,
        np.where(enough, np.sqrt(variance), np.inf),
        kept.sum(-1),
        (there & ~known).sum(-1),
        (known & ~kept).sum(-1),
        4 * (votes.square * kept).sum(-1),
    )


def _weighted(mean: Numbers, kept: NDArray[np.bool_], reliability: Numbers) -> tuple[Numbers, Numbers]:
    weight = np.where(kept, reliability, 0.0)
    weight = weight / np.maximum(weight.sum(-1, keepdims=True), 1e-12)
    return (weight * mean).sum(-1), weight


def _odd(votes: Votes, mean: Numbers, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whose record is odd: further from the middle of all than chance, and than the spread of tastes, explain.

    The middle is at first the mean without a tenth of the people at either end, then that of those who are not odd.
    """
    chance = 0.5 / np.sqrt(np.maximum(votes.units, 1))
    count = known.sum(-1, keepdims=True)
    rank = np.where(known, mean, np.inf).argsort(-1).argsort(-1)
    kept = known & (rank >= count // 10) & (rank < count - count // 10)
    odd = np.zeros_like(known)
    for _ in range(3):
        middle, _ = _weighted(mean, kept, votes.weight)
        away = np.abs(mean - middle[..., None])
        ratio = _median(away / chance, known) * 1.4826  # a normal distribution's median distance, in deviations
        spread = np.where(ratio > TASTES, ratio, 1.0)[..., None]
        odd = known & (away >= ODD * chance * spread - 1e-12)
        kept = known & ~odd
    return odd


def _median(values: Numbers, there: NDArray[np.bool_]) -> Numbers:
    """The median of the values that are there; 0 if none is."""
    ordered = np.sort(np.where(there, values, np.inf), axis=-1)
    count = there.sum(-1, keepdims=True)
    lower, upper = (np.take_along_axis(ordered, np.maximum(at, 0), -1) for at in ((count - 1) // 2, count // 2))
    return np.where(count > 0, (lower + upper) / 2, 0.0)[..., 0]


def p_value(votes: Votes) -> Numbers:
    """The chance of votes at least as much for the newer adapter, were people's mean one half; shape (...)."""
    found = preference(votes)
    error = np.where(np.isfinite(found.error), found.error, 1e9)
    steps = np.maximum(found.decisive, 1)
    z = (found.gain - 0.5 / steps) / error  # the mean moves in steps of 1 / decisive: half of one is taken off
    many = np.where(found.people > SAMPLE, stats.t.sf(z, np.maximum(found.people - 1, 1)), ndtr(-z))
    alone = (votes.units > 0).sum(-1) <= 1
    decisive = np.rint(4 * votes.square.sum(-1))
    wins = np.rint(decisive / 2 + votes.total.sum(-1))
    return np.where(alone, stats.binom.sf(wins - 1, decisive, 0.5), many)


def e_value(votes: Votes, gains: Sequence[float] = GAINS) -> Numbers:
    """The evidence that people's mean is above one half, at most 1 in expectation if it is not; shape (...).

    The mean over `gains` of the likelihood ratio of that gain to none.
    """
    found = preference(votes)
    information = 1 / found.error**2
    of_each = [np.exp(gain * found.gain * information - gain**2 * information / 2) for gain in gains]
    return np.mean(of_each, axis=0)


# The account of risk: the expected number of false promotions in any 365 days

LOOK, CHALLENGER = 0.0465, 1 / 8  # shares of the year's risk that one look offline, and one challenger live, may spend
LEFT = 1 / 4  # of what is left in the year, at most


def allowed(risk: float, spent: Numbers | float, share: float) -> Numbers:
    """The chance of a false promotion that the next test may take, once `spent` of the year's `risk` is gone."""
    return np.maximum(np.minimum(share * risk, LEFT * (risk - np.asarray(spent))), 0.0)


GROWTH = 5 / 4  # of the held-out conversations, from one look to the next
FIRST = 2.0  # times the fewest conversations that can convince


def next_look(tested: Numbers | int, alpha: Numbers | float) -> Numbers:
    """The number of held-out conversations at which a candidate is tested next; `tested` were there the last time."""
    fewest = np.ceil(FIRST * np.log2(1 / np.maximum(alpha, 1e-12)))
    return np.maximum(fewest, np.ceil(GROWTH * np.asarray(tested)))


def promotes(votes: Votes, alpha: Numbers | float) -> NDArray[np.bool_]:
    """Whether held-out votes promote, at a chance `alpha` of a false promotion; at the same, `refuses`."""
    return (p_value(votes) <= alpha) & _clear(votes)


def refuses(votes: Votes, alpha: Numbers | float) -> NDArray[np.bool_]:
    """Whether held-out votes refuse a candidate: the older adapter would be promoted by them."""
    return promotes(votes.against, alpha)


def _clear(votes: Votes) -> NDArray[np.bool_]:
    return ((votes.units > 0).sum(-1) < MANY) | (preference(votes).gain > MARGIN)


NIGHTS = 60  # after which a challenger that has convinced nobody gives way
LOST = 0.1  # the chance that a challenger as good as what serves is retired before


def wins_live(votes: Votes, alpha: Numbers | float) -> NDArray[np.bool_]:
    """Whether a challenger is promoted by people's choices so far."""
    return (e_value(votes) * alpha >= 1) & _clear(votes)


def loses_live(votes: Votes, nights: Numbers | int) -> NDArray[np.bool_]:
    """Whether a challenger is retired, after so many nights."""
    return (e_value(votes.against) * LOST >= 1) | (np.asarray(nights) >= NIGHTS)


HARMED = 0.05  # the chance that an adapter as good as what it replaced is taken back


def harms(votes: Votes) -> NDArray[np.bool_]:
    """Whether choices against what an adapter replaced say that it does harm."""
    return e_value(votes.against, HARMS) * HARMED >= 1
