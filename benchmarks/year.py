"""A year of nights that nobody watches: how often a loop promotes what is no better, and how soon what is.

    python -m benchmarks.year [--ledgers N] [--only NAME,...]

Ledgers of simulated people, decided by the functions that a night and a server decide by
(`feedback.raters.evidence`). The last line is one JSON object with every figure and the parameters of its scenario.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contest import say
from benchmarks.loop import processor
from feedback.raters import evidence
from feedback.raters.evidence import CHALLENGER, LOOK, Numbers, Votes

YEAR = 365
ACCOUNTS, ALONE = 0.05, 1.0  # the risk a year with accounts, and of one person


@dataclass(frozen=True)
class Scenario:
    """People, and the candidates they meet; the newest of them every night."""

    people: int
    a_night: int  # held-out conversations offline, choices between two replies live
    risk: float = ACCOUNTS
    heavy: float | None = None  # the share of all that one person says; None: all say as much
    tastes: bool = False  # half of the people side with any candidate in 85 %, half in 15 %
    bought: float = 0.0  # the share of accounts that always side with the newest
    better: float = 0.0  # the share of candidates that are better
    rate: float = 0.6  # at which people side with a better one
    kept: float | None = None  # the chance that a conversation keeps last night's sign; None: candidates independent
    nights: int = YEAR
    goes_on: bool = False  # after a false promotion, too

    def shares(self) -> Numbers:
        """The share of all that each person says."""
        if self.heavy is None:
            return np.full(self.people, 1 / self.people)
        return np.array([self.heavy, *[(1 - self.heavy) / (self.people - 1)] * (self.people - 1)])

    def rates(self, better: NDArray[np.bool_]) -> Numbers:
        """The rate at which each person sides with a candidate, (ledgers, people)."""
        side = np.full((len(better), self.people), 0.5)
        if self.tastes:
            side[:] = np.where(np.arange(self.people) % 2, 0.15, 0.85)
        side[better] = self.rate
        side[:, : round(self.bought * self.people)] = 1.0
        return side


@dataclass
class Sums:
    """What people said so far, (ledgers, people)."""

    units: Numbers
    total: Numbers
    square: Numbers

    @classmethod
    def none(cls, ledgers: int, people: int) -> "Sums":
        return cls(*(np.zeros((ledgers, people)) for _ in range(3)))

    def votes(self) -> Votes:
        return Votes(self.units, self.total, self.square, np.ones_like(self.units))

    def forget(self, which: NDArray[np.bool_]) -> None:
        for each in (self.units, self.total, self.square):
            each[which] = 0.0


def of_counts(units: Numbers, wins: Numbers) -> Votes:
    """Votes of conversations, none of them a draw."""
    return Votes(units, wins - units / 2, units / 4, np.ones_like(units))


@dataclass
class Account:
    """The risk that each ledger has spent in the last 365 days."""

    risk: float
    spent: list[tuple[int, Numbers]] = field(default_factory=list)

    def take(self, night: int, share: float, which: NDArray[np.bool_]) -> Numbers:
        """What a test of these ledgers may spend this night; it is spent."""
        alpha = self.would(night, share)
        self.spent.append((night, np.where(which, alpha, 0.0)))
        return alpha

    def would(self, night: int, share: float) -> Numbers:
        gone = sum((each for at, each in self.spent if at > night - YEAR), np.zeros(1))
        return evidence.allowed(self.risk, gone, share)


@dataclass(frozen=True)
class Years:
    """What became of each ledger."""

    false: Numbers  # promotions of candidates that are no better
    true: Numbers
    refused: Numbers  # better candidates that were refused

    def figures(self) -> dict[str, float]:
        """As shares of years, and a year."""
        return {
            "false": float((self.false > 0).mean()),
            "false_a_year": float(self.false.mean()),
            "true_a_year": float(self.true.mean()),
            "better_refused": float((self.refused > 0).mean()),
        }


def offline(scenario: Scenario, ledgers: int, chance: np.random.Generator) -> Years:
    """Years in which held-out conversations promote."""
    people, account = scenario.people, Account(scenario.risk)
    units, wins = np.zeros((ledgers, people)), np.zeros((ledgers, people))
    tested = np.zeros(ledgers)
    counts = [np.zeros(ledgers) for _ in range(3)]
    for night in range(1, scenario.nights + 1):
        going = (counts[0] == 0) | scenario.goes_on
        better = chance.random(ledgers) < scenario.better
        new = chance.multinomial(scenario.a_night, scenario.shares(), size=ledgers)
        if scenario.kept is None:
            units += new
        else:  # a sign is kept, or drawn anew
            stay = (1 + scenario.kept) / 2
            wins = chance.binomial(wins.astype(int), stay) + chance.binomial((units - wins).astype(int), 1 - stay)
            wins = wins + chance.binomial(new, 0.5)
            units += new
        due = going & (units.sum(1) >= evidence.next_look(tested, account.would(night, LOOK)))
        if not due.any():
            continue
        alpha = account.take(night, LOOK, due)
        tested[due] = units.sum(1)[due]
        if scenario.kept is None or better.any():
            drawn = chance.binomial(units.astype(int), scenario.rates(better))
            found = drawn if scenario.kept is None else np.where(better[:, None], drawn, wins)
        else:
            found = wins
        votes = of_counts(units, found)
        promoted = due & evidence.promotes(votes, alpha)
        counts[0] += promoted & ~better
        counts[1] += promoted & better
        counts[2] += due & better & evidence.refuses(votes, alpha)
        for each in (units, wins):
            each[promoted] = 0
        tested[promoted] = 0
    return Years(*counts)


def live(scenario: Scenario, ledgers: int, chance: np.random.Generator) -> Years:
    """Years in which people's choices promote, one challenger after the other."""
    people, account = scenario.people, Account(scenario.risk)
    sums, counts = Sums.none(ledgers, people), [np.zeros(ledgers) for _ in range(3)]
    alpha, began = np.zeros(ledgers), np.full(ledgers, -1)
    better = np.zeros(ledgers, bool)
    for night in range(1, scenario.nights + 1):
        going = (counts[0] == 0) | scenario.goes_on
        free = going & (began < 0)
        if free.any():
            alpha = np.where(free, account.take(night, CHALLENGER, free), alpha)
            better = np.where(free, chance.random(ledgers) < scenario.better, better)
            began = np.where(free, night, began)
            sums.forget(free)
        vote(sums, scenario, better, chance)
        votes = sums.votes()
        promoted = going & evidence.wins_live(votes, alpha)
        retired = going & ~promoted & evidence.loses_live(votes, night - began + 1)
        counts[0] += promoted & ~better
        counts[1] += promoted & better
        counts[2] += retired & better & (night - began + 1 < evidence.NIGHTS)
        began[promoted | retired] = -1
    return Years(*counts)


def vote(sums: Sums, scenario: Scenario, better: NDArray[np.bool_], chance: np.random.Generator) -> None:
    """One night of choices; a person's of a night are averaged."""
    cast = chance.multinomial(scenario.a_night, scenario.shares(), size=len(better))
    wins = chance.binomial(cast, scenario.rates(better))
    there = cast > 0
    side = np.where(there, wins / np.maximum(cast, 1) - 0.5, 0.0)
    sums.units += there
    sums.total += side
    sums.square += side**2


def met(people: int, conversations: int, rate: float, risk: float, ledgers: int, chance: np.random.Generator) -> float:
    """The share of ledgers in which a better candidate is promoted at its one look."""
    scenario = Scenario(people, conversations)
    units = chance.multinomial(conversations, scenario.shares(), size=ledgers).astype(float)
    wins = chance.binomial(units.astype(int), rate)
    return float(evidence.promotes(of_counts(units, wins), evidence.allowed(risk, 0.0, LOOK)).mean())


def challenged(scenario: Scenario, ledgers: int, chance: np.random.Generator) -> float:
    """The share of better challengers that are promoted within the scenario's nights."""
    sums, promoted = Sums.none(ledgers, scenario.people), np.zeros(ledgers, bool)
    gone = promoted.copy()
    alpha = evidence.allowed(scenario.risk, 0.0, CHALLENGER)
    for night in range(1, scenario.nights + 1):
        vote(sums, scenario, np.ones(ledgers, bool), chance)
        votes = sums.votes()
        promoted |= ~gone & evidence.wins_live(votes, alpha)
        gone |= ~promoted & evidence.loses_live(votes, night)
    return float(promoted.mean())


def taken_back(rate: float, most: int, ledgers: int, chance: np.random.Generator, people: int) -> Numbers:
    """The number of votes after which each ledger takes an adapter back; infinite if it does not."""
    sums, when = Sums.none(ledgers, people), np.full(ledgers, np.inf)
    scenario = Scenario(people, people, better=1.0, rate=rate)
    for night in range(1, most // people + 1):
        vote(sums, scenario, np.ones(ledgers, bool), chance)
        when = np.where(np.isinf(when) & evidence.harms(sums.votes()), night * people, when)
    return when
