"""A year of nights that nobody watches: how often a loop promotes what is no better, and how soon what is.

    python -m benchmarks.year [--ledgers N] [--only NAME,...]

Ledgers of simulated people, decided by the functions that a night and a server decide by
(`feedback.raters.evidence`). The last line is one JSON object with every figure and the parameters of its scenario.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.contest import say
from benchmarks.loop import processor
from feedback.raters import evidence
from feedback.raters.account import ACCOUNTS, ALONE
from feedback.raters.evidence import CHALLENGER, LOOK, Numbers, Votes
from feedback.records import decisions

YEAR = decisions.YEAR.days


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

    def add(self, units: Numbers, side: Numbers) -> None:
        """Add a unit of each person who said something: x - 1/2."""
        self.units += units
        self.total += side
        self.square += side**2

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
    refused: Numbers  # better candidates that were refused

    def figures(self) -> dict[str, float]:
        """As shares of years, and a year."""
        return {
            "false": float((self.false > 0).mean()),
            "false_a_year": float(self.false.mean()),
            "better_refused": float((self.refused > 0).mean()),
        }


def offline(scenario: Scenario, ledgers: int, chance: np.random.Generator) -> Years:
    """Years in which held-out conversations promote."""
    people, account = scenario.people, Account(scenario.risk)
    units: Numbers = np.zeros((ledgers, people))
    wins: Numbers = np.zeros((ledgers, people))
    tested = np.zeros(ledgers)
    false, refused = np.zeros(ledgers), np.zeros(ledgers)
    for night in range(1, scenario.nights + 1):
        going = (false == 0) | scenario.goes_on
        better = chance.random(ledgers) < scenario.better
        new = chance.multinomial(scenario.a_night, scenario.shares(), size=ledgers)
        if scenario.kept is not None:  # a sign is kept, or drawn anew
            stay = (1 + scenario.kept) / 2
            wins = chance.binomial(wins.astype(int), stay) + chance.binomial((units - wins).astype(int), 1 - stay)
            wins = wins + chance.binomial(new, 0.5)
        units += new
        due = going & (units.sum(1) >= evidence.next_look(tested, account.would(night, LOOK)))
        if not due.any():
            continue
        alpha = account.take(night, LOOK, due)
        tested[due] = units.sum(1)[due]
        found = chance.binomial(units.astype(int), scenario.rates(better))
        if scenario.kept is not None:
            found = np.where(better[:, None], found, wins)
        votes = of_counts(units, found)
        promoted = due & evidence.promotes(votes, alpha)
        false += promoted & ~better
        refused += due & better & evidence.refuses(votes, alpha)
        for each in (units, wins):
            each[promoted] = 0
        tested[promoted] = 0
    return Years(false, refused)


def live(scenario: Scenario, ledgers: int, chance: np.random.Generator) -> Years:
    """Years in which people's choices promote, one challenger after the other."""
    people, account = scenario.people, Account(scenario.risk)
    sums, false, refused = Sums.none(ledgers, people), np.zeros(ledgers), np.zeros(ledgers)
    alpha, began = np.zeros(ledgers), np.full(ledgers, -1)
    better = np.zeros(ledgers, bool)
    for night in range(1, scenario.nights + 1):
        going = (false == 0) | scenario.goes_on
        free = going & (began < 0)
        if free.any():
            alpha = np.where(free, account.take(night, CHALLENGER, free), alpha)
            better = np.where(free, chance.random(ledgers) < scenario.better, better)
            began = np.where(free, night, began)
            sums.forget(free)
        vote(sums, scenario, better, chance)
        found = evidence.preference(sums.votes())
        promoted = going & evidence.wins(found, alpha)
        retired = going & ~promoted & evidence.loses(found, night - began + 1)
        false += promoted & ~better
        refused += retired & better & (night - began + 1 < evidence.NIGHTS)
        began[promoted | retired] = -1
    return Years(false, refused)


def vote(sums: Sums, scenario: Scenario, better: NDArray[np.bool_], chance: np.random.Generator) -> None:
    """One night of choices; a person's of a night are averaged."""
    cast = chance.multinomial(scenario.a_night, scenario.shares(), size=len(better))
    wins = chance.binomial(cast, scenario.rates(better))
    there = cast > 0
    side = np.where(there, wins / np.maximum(cast, 1) - 0.5, 0.0)
    sums.add(there.astype(float), side)


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
        found = evidence.preference(sums.votes())
        promoted |= ~gone & evidence.wins(found, alpha)
        gone |= ~promoted & evidence.loses(found, night)
    return float(promoted.mean())


def taken_back(rate: float, most: int, ledgers: int, chance: np.random.Generator, people: int) -> Numbers:
    """The number of votes after which each ledger takes an adapter back, each person voting once a night; or inf."""
    sums, when = Sums.none(ledgers, people), np.full(ledgers, np.inf)
    for night in range(1, most // people + 1):
        side = chance.binomial(1, rate, size=(ledgers, people)) - 0.5
        sums.add(np.ones_like(side), side)
        when = np.where(np.isinf(when) & evidence.harms(sums.votes()), night * people, when)
    return when


def peeked(scenario: Scenario, ledgers: int, chance: np.random.Generator, exact: bool) -> float:
    """The share of years with a false promotion by a test of conversations, whoever said them, each night anew.

    `exact`: the 95 % interval of Clopper and Pearson; else a one-sided z-test at 5 %.
    """
    units, promoted = np.zeros((ledgers, scenario.people)), np.zeros(ledgers, bool)
    for _ in range(scenario.nights):
        units += chance.multinomial(scenario.a_night, scenario.shares(), size=ledgers)
        wins = chance.binomial(units.astype(int), scenario.rates(np.zeros(ledgers, bool))).sum(1)
        count = units.sum(1)
        if exact:
            promoted |= stats.binom.sf(wins - 1, count, 0.5) <= 0.025
        else:
            promoted |= (wins - count / 2) / np.sqrt(count / 4) > 1.645
    return float(promoted.mean())


Figure = Callable[[int], dict[str, Any]]  # from a number of ledgers


Door = Callable[[Scenario, int, np.random.Generator], Years]


def worst(scenarios: Sequence[tuple[Door, Scenario]], ledgers: int, of: str = "false") -> dict[str, Any]:
    """The worst figure of some scenarios, and which it is of."""
    found = [
        (door(scenario, ledgers, np.random.default_rng(number)).figures()[of], door.__name__, scenario)
        for number, (door, scenario) in enumerate(scenarios)
    ]
    value, name, scenario = max(found, key=lambda each: each[0])
    return {"value": value, "door": name, "of": asdict(scenario), "scenarios": len(found)}


def false_year(ledgers: int) -> dict[str, Any]:
    """Years with a false promotion, at the risk of accounts: the worst of both doors."""
    every: list[tuple[Door, Scenario]] = [
        (door, Scenario(people, a_night, better=better, kept=kept))
        for door in (offline, live)
        for people in (1, 4, 10, 50)
        for a_night in (5, 15, 50)
        for better in (0.0, 0.1)
        for kept in ((None, 0.9) if door is offline else (None,))
    ]
    return worst(every, ledgers)


def half_and_half(ledgers: int) -> dict[str, Any]:
    """Exactly half of the people for each taste, one person holding a third, or two thirds, of all."""
    every: list[tuple[Door, Scenario]] = [
        (door, Scenario(people, a_night, tastes=True, heavy=heavy))
        for door in (offline, live)
        for people in (4, 10, 20)
        for a_night in (5, 15, 50)
        for heavy in (1 / 3, 2 / 3)
    ]
    return worst(every, ledgers)


def saboteurs(ledgers: int) -> dict[str, Any]:
    """A tenth of accounts that always like the newest; above 50 people only the live door promotes."""
    doors: list[tuple[Door, int]] = [(offline, 20), (offline, 50), (live, 20), (live, 50), (live, 200)]
    every: list[tuple[Door, Scenario]] = [
        (door, Scenario(people, a_night, bought=0.1)) for door, people in doors for a_night in (people // 4, people)
    ]
    return worst(every, ledgers)


def power(conversations: int, rate: float) -> Figure:
    """A better candidate met at so many held-out conversations: promoted at its look, the worst up to 20 people."""

    def figure(ledgers: int) -> dict[str, Any]:
        of = {
            people: met(people, conversations, rate, ACCOUNTS, ledgers, np.random.default_rng(people))
            for people in (1, 4, 10, 20, 50)
        }
        return {"value": min(of[people] for people in (1, 4, 10, 20)), "by_people": of}

    return figure


def power_alone(conversations: int) -> Figure:
    """The same of one person at their risk, who sides with it in 80 %."""
    return lambda ledgers: {"value": met(1, conversations, 0.8, ALONE, ledgers, np.random.default_rng(1))}


def false_a_year(ledgers: int) -> dict[str, Any]:
    """False promotions a year of one person at their risk, three held-out conversations, or choices, a night."""
    every: list[tuple[Door, Scenario]] = [(door, Scenario(1, 3, risk=ALONE, goes_on=True)) for door in (offline, live)]
    return worst(every, ledgers, "false_a_year")


def live_power_55(ledgers: int) -> dict[str, Any]:
    """A 55 % challenger within 3,000 votes of 100 people, 50 or 100 votes a night."""
    every = [Scenario(100, a_night, rate=0.55, nights=3000 // a_night) for a_night in (50, 100)]
    of = {each.a_night: challenged(each, ledgers, np.random.default_rng(each.a_night)) for each in every}
    return {"value": min(of.values()), "by_votes_a_night": of}


def live_power_alone(ledgers: int) -> dict[str, Any]:
    """A 75 % challenger within 80 votes of one person, 1 to 8 votes a night."""
    every = [Scenario(1, a_night, risk=ALONE, rate=0.75, nights=80 // a_night) for a_night in (1, 2, 4, 8)]
    of = {each.a_night: challenged(each, ledgers, np.random.default_rng(each.a_night)) for each in every}
    return {"value": min(of.values()), "by_votes_a_night": of}


def harm(rate: float) -> Figure:
    """Votes until an adapter that people like less is taken back, each person voting once a night; the worst case."""

    def figure(ledgers: int) -> dict[str, Any]:
        of = {}
        for people in (1, 5, 10):
            when = taken_back(rate, 1000, ledgers, np.random.default_rng(people), people)
            of[people] = {"median": float(np.median(when)), "p95": float(np.quantile(when, 0.95))}
        return {which: max(each[which] for each in of.values()) for which in ("median", "p95")} | {"by_people": of}

    return figure


def false_rollback(rate: float) -> Figure:
    """The share of adapters as good as, or better than, what they replaced that are taken back within 2,000 votes."""

    def figure(ledgers: int) -> dict[str, Any]:
        of = {
            people: float(np.isfinite(taken_back(rate, 2000, ledgers, np.random.default_rng(9), people)).mean())
            for people in (1, 10, 50)
        }
        return {"value": max(of.values()), "by_people": of}

    return figure


def better_refused(ledgers: int) -> dict[str, Any]:
    """Years in which a 55 % candidate is refused offline, all candidates being such."""
    better = [Scenario(people, 15, better=1.0, rate=0.55) for people in (1, 4, 10, 50)]
    return worst([(offline, each) for each in better], ledgers, "better_refused")


def contrast(ledgers: int) -> dict[str, Any]:
    """A test of conversations by their exact interval, and a z-test, looked at every night: years with a false one."""
    plain, uneven = Scenario(10, 5), Scenario(10, 5, tastes=True, heavy=2 / 3)
    return {
        f"{name}_{which}": peeked(scenario, ledgers, np.random.default_rng(3), exact)
        for name, scenario in (("false_year", plain), ("half_and_half", uneven))
        for which, exact in (("exact_peeked", True), ("z_peeked", False))
    }


FIGURES: dict[str, Figure] = {
    "false_year": false_year,
    "power_60_450": power(450, 0.6),
    "power_60_300": power(300, 0.6),
    "power_65_225": power(225, 0.65),
    "false_a_year": false_a_year,
    "power_80_40": power_alone(40),
    "power_80_13": power_alone(13),
    "live_power_55": live_power_55,
    "live_power_75_one_person": live_power_alone,
    "half_and_half": half_and_half,
    "saboteurs_10pct": saboteurs,
    "harm_40": harm(0.4),
    "harm_30": harm(0.3),
    "false_rollback_50": false_rollback(0.5),
    "false_rollback_55": false_rollback(0.55),
    "better_refused": better_refused,
    "contrast": contrast,
}


def main() -> None:
    """Compute every figure and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledgers", type=int, default=1000)
    parser.add_argument("--only", default=",".join(FIGURES), help="names of figures")
    options = parser.parse_args()
    began, found = time.monotonic(), dict[str, Any]()
    for name in options.only.split(","):
        found[name] = FIGURES[name](options.ledgers)
        say(f"{name}: {json.dumps(found[name])}")
    minutes = round((time.monotonic() - began) / 60, 1)
    print(json.dumps({"ledgers": options.ledgers, "minutes": minutes, "processor": processor()} | found))


if __name__ == "__main__":
    main()
