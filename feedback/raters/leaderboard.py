"""The leaderboard: each adapter's strength from people's choices, by Bradley-Terry with ties, with intervals.

The model is Davidson's (1970) extension of Bradley-Terry: with strengths a and b in nats and half of their sum m, a is
chosen with weight exp(a), b with exp(b), a tie with nu exp(m). The side of the screen and the length of a reply may
sway a choice, so both are covariates: strengths are for replies on the same side and of the same length. Imported
replies were on no side: their order is a file's, where the preferred one often comes first. A weak normal prior keeps
the strength of an adapter that never lost finite. There are two intervals: an analytic one from the curvature, and a
bootstrap over conversations, because choices within one are not independent. Answers to questions are reweighted to
those of evenly drawn ones (`propensity`), and together weigh no more than as many evenly drawn answers would tell.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from feedback.database.database import Database

PRIOR = 0.01  # precision of the normal prior, as much as a hundredth of a choice
WIDE = 1.959964  # standard deviations on either side of a 95 % interval
LENGTH = 100.0  # characters added to both lengths before their ratio is taken
NEWEST = 50_000  # rows of comparisons that are considered


@dataclass(frozen=True)
class Choice:
    """One comparison; `result` is 1 where `left` was chosen, 0 where `right` was, 0.5 for a tie."""

    left: str
    right: str
    result: float
    longer: float = 0.0  # log of the ratio of the left reply's length to the right's
    cluster: str = ""  # the unit of the bootstrap: a conversation
    weight: float = 1.0
    shown: bool = True  # False: the order is a file's, and neither was on a side of a screen


@dataclass(frozen=True)
class Rank:
    """One adapter: `strength` in nats above the mean of all, (low, high) 95 % intervals, `rank` as (best, worst)."""

    name: str
    choices: int
    strength: float
    analytic: tuple[float, float]
    bootstrap: tuple[float, float] | None
    rank: tuple[int, int]


@dataclass(frozen=True)
class Board:
    """Every adapter, strongest first, and the covariates' effects in nats with 95 % intervals."""

    standings: tuple[Rank, ...]
    left_side: tuple[float, float, float]  # estimate, low, high
    length: tuple[float, float, float]  # for a reply e times as long


def choices(store: Database) -> list[Choice]:
    """The current choices and ties between different adapters that may be used."""
    from feedback.kinds import current
    from feedback.kinds.comparison import COMPARISON
    from feedback.raters import propensity
    from feedback.raters.reliability import IMPORTED, weights

    weight = weights(store)
    here = {COMPARISON.table: max(current.position(store)[COMPARISON.table] - NEWEST, 0)}
    rows = [
        row
        for row in current.rows(store, COMPARISON, here)
        if row["choice"] in ("left", "right", "tie") and row["usable"]
    ]
    told = current.briefs(store, [row[side] for row in rows for side in ("left_reply", "right_reply")])
    asked = propensity.of_rows(store, rows)
    found, drawn = [], []
    for row in rows:
        left, right = told[row["left_reply"]], told[row["right_reply"]]
        if left.model and right.model and left.model != right.model:
            result = {"left": 1.0, "right": 0.0, "tie": 0.5}[row["choice"]]
            longer = _log_ratio(left.length, right.length)
            own, shown = weight.get(row["user"], 1.0), row["by"] != IMPORTED
            found.append(Choice(left.model, right.model, result, longer, left.conversation, own, shown))
            drawn.append(asked.get(row["question"]))
    of_questions = [each for each in drawn if each is not None]
    scale = propensity.effective(of_questions) / sum(of_questions) if of_questions else 1.0
    return [
        each if factor is None else replace(each, weight=each.weight * factor * scale)
        for each, factor in zip(found, drawn, strict=True)
    ]


def _log_ratio(left: int, right: int) -> float:
    from math import log

    return log((left + LENGTH) / (right + LENGTH))


def board(choices: Sequence[Choice], draws: int = 200, seed: int = 0, covariates: bool = True) -> Board:
    """The leaderboard from some choices, empty if there are none; `draws` of the bootstrap, 0 for no bootstrap."""
    import numpy as np

    names = sorted({name for each in choices for name in (each.left, each.right)})
    if not names:
        return Board((), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    table = _table(choices, names, covariates)
    fitted, covariance = _fit(table, len(names), covariates)
    strengths, variance = _centred(fitted, covariance, len(names))
    drawn = _bootstrap(table, choices, len(names), covariates, draws, seed) if draws else None
    spread = WIDE * np.sqrt(variance)
    analytic = list(zip((strengths - spread).tolist(), (strengths + spread).tolist(), strict=True))
    quantiles = np.quantile(drawn, [0.025, 0.975], axis=0).T.tolist() if drawn is not None else [None] * len(names)
    counted = {name: sum(name in (each.left, each.right) for each in choices) for name in names}
    made = [
        Rank(name, counted[name], float(strengths[n]), analytic[n], _interval(quantiles[n]), (0, 0))
        for n, name in enumerate(names)
    ]
    sway = [_swayed(fitted, covariance, len(names) + 1 + n) if covariates else (0.0, 0.0, 0.0) for n in range(2)]
    return Board(tuple(_ranked(made)), sway[0], sway[1])


def _interval(quantiles: list[float] | None) -> tuple[float, float] | None:
    return (quantiles[0], quantiles[1]) if quantiles else None


def _table(choices: Iterable[Choice], names: list[str], covariates: bool) -> Any:
    """A (choices, 6) array: left, right, result, side, length, weight."""
    import numpy as np

    number = {name: n for n, name in enumerate(names)}
    rows = [
        (number[c.left], number[c.right], c.result, float(c.shown and covariates), c.longer * covariates, c.weight)
        for c in choices
    ]
    return np.array(rows)


def _fit(table: Any, people: int, covariates: bool) -> tuple[Any, Any]:
    """The maximum a posteriori estimate (strengths, log nu, side, length), and the inverse of the curvature there."""
    import numpy as np
    from scipy.optimize import minimize

    alike, which = np.unique(table[:, :5], axis=0, return_inverse=True)  # identical choices become one row
    table = np.column_stack([alike, np.bincount(which.ravel(), table[:, 5])])
    left, right = table[:, 0].astype(int), table[:, 1].astype(int)
    result, weight = table[:, 2], table[:, 5]
    outcomes = np.stack([result == 1, result == 0, result == 0.5], 1).astype(float)
    ties = bool(outcomes[:, 2].any())
    width = people + 3
    rows = np.arange(len(table))
    design = np.zeros((len(table), width))
    design[rows, left] += 1
    design[rows, right] -= 1
    design[:, people + 1], design[:, people + 2] = table[:, 3], table[:, 4]
    tie_design = np.zeros(width)
    tie_design[people] = 1.0
    prior = np.full(width, PRIOR)

    def value(at: Any) -> tuple[float, Any, Any]:
        margin = design @ at
        logits = np.stack([margin / 2, -margin / 2, np.full(len(table), at[people] if ties else -50.0)], 1)
        logits -= logits.max(1, keepdims=True)
        share = np.exp(logits)
        share /= share.sum(1, keepdims=True)
        loss = -(weight * np.log((share * outcomes).sum(1))).sum() + 0.5 * (prior * at**2).sum()
        along = (share[:, 0] - share[:, 1]) / 2 - (outcomes[:, 0] - outcomes[:, 1]) / 2
        gradient = design.T @ (weight * along) + prior * at
        gradient[people] += (weight * (share[:, 2] - outcomes[:, 2])).sum() if ties else 0.0
        spread = (share[:, 0] + share[:, 1]) / 4 - ((share[:, 0] - share[:, 1]) / 2) ** 2
        curve = design.T @ (design * (weight * spread)[:, None]) + np.diag(prior)
        if ties:
            across = -(share[:, 0] - share[:, 1]) / 2 * share[:, 2]
            mixed = design.T @ (weight * across)
            curve[people] += mixed
            curve[:, people] += mixed
            curve[people, people] += (weight * share[:, 2] * (1 - share[:, 2])).sum()
        return float(loss), gradient, curve

    done = minimize(
        lambda at: value(at)[:2], np.zeros(width), jac=True, hess=lambda at: value(at)[2], method="trust-exact"
    )
    return done.x, np.linalg.inv(value(done.x)[2])


def _centred(fitted: Any, covariance: Any, people: int) -> tuple[Any, Any]:
    """The strengths relative to their mean, and their variances."""
    import numpy as np

    centre = np.eye(people) - 1 / people
    return centre @ fitted[:people], np.diag(centre @ covariance[:people, :people] @ centre.T)


def _bootstrap(table: Any, choices: Sequence[Choice], people: int, covariates: bool, draws: int, seed: int) -> Any:
    """Strengths of shape (draws, adapters), with whole conversations drawn with replacement."""
    import numpy as np

    chance = np.random.default_rng(seed)
    _, cluster = np.unique([each.cluster or str(n) for n, each in enumerate(choices)], return_inverse=True)
    clusters = cluster.max() + 1
    drawn = []
    for _ in range(draws):
        times = np.bincount(chance.integers(clusters, size=clusters), minlength=clusters)[cluster]
        again = table.copy()
        again[:, 5] *= times
        drawn.append(_centred(*_fit(again[times > 0], people, covariates), people)[0])
    return np.array(drawn)


def _swayed(fitted: Any, covariance: Any, at: int) -> tuple[float, float, float]:
    estimate, spread = float(fitted[at]), WIDE * float(covariance[at, at]) ** 0.5
    return estimate, estimate - spread, estimate + spread


def _ranked(made: list[Rank]) -> list[Rank]:
    """Order by strength; the best rank counts adapters that are surely stronger, the worst those that may be."""
    ordered = sorted(made, key=lambda each: -each.strength)
    ranked = []
    for one in ordered:
        others = [each for each in ordered if each is not one]
        surely = sum(each.analytic[0] > one.analytic[1] for each in others)
        maybe = sum(each.analytic[1] > one.analytic[0] for each in others)
        ranked.append(replace(one, rank=(1 + surely, 1 + maybe)))
    return ranked
