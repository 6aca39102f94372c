"""Calibration of reward models: their accuracy, confidence and length bias on people's preferences.

A margin is the preferred reply's score minus the other's; a margin divided by the temperature is the log-odds that
people prefer that reply (Bradley and Terry, 1952).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import beta

BINS = 10
FEWEST = 10  # pairs; a temperature fitted to fewer would be noise


@dataclass(frozen=True)
class Bin:
    """Pairs whose confidence is in one of `BINS` equal intervals from 0.5 to 1: count, mean confidence, accuracy."""

    count: int
    sure: float
    right: float
    share: float = 1.0  # of the weight of all pairs


@dataclass(frozen=True)
class Believed:
    """Accuracy, calibration and length bias on `pairs` pairs."""

    pairs: int
    accuracy: float
    low: float  # of the exact 95 % interval (Clopper and Pearson, 1934)
    high: float
    calibration_error: float  # expected: the mean distance of confidence from accuracy (arXiv 1706.04599, eq. 3)
    length_bias: float  # score gained per 100 more tokens, by least squares through 0
    length_correlation: float  # of margin and difference in length
    longer_wins: float  # accuracy of the rule that the longer reply is better; equal lengths count half
    bins: tuple[Bin, ...] = ()


def temperature_of(margins: Sequence[float]) -> float:
    """The maximum-likelihood temperature of margins (arXiv 1706.04599, section 4.2); 1 for fewer than `FEWEST`."""
    if len(margins) < FEWEST:
        return 1.0
    found = np.asarray(margins)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -found / np.exp(log_temperature)).mean())

    best = minimize_scalar(loss, bounds=(-5, 5), method="bounded")
    return float(np.exp(best.x))


def believed(
    margins: Sequence[float], longer_by: Sequence[int], temperature: float, drawn: Sequence[float] | None = None
) -> Believed:
    """Accuracy, calibration and length bias from the margins of at least one pair.

    `longer_by` is by how many tokens each preferred reply is longer than the other. `drawn` weighs pairs that were not
    drawn evenly (`feedback.raters.propensity`); the interval is then that of as many evenly drawn pairs as tell as much
    (Korn and Graubard, 1998).
    """
    margin, length = np.asarray(margins, dtype=float), np.asarray(longer_by, dtype=float)
    weight = np.ones_like(margin) if drawn is None else np.asarray(drawn, dtype=float)
    share = weight / weight.sum()
    accuracy = float((share * (margin > 0)).sum())
    low, high = exact_interval(accuracy, float(1 / (share**2).sum()))
    bins = _bins(margin, temperature, share)
    squares = float((share * length**2).sum())
    together = float((share * margin * length).sum())
    # The order of a pair is arbitrary, so each pair counts both ways round, and both means are 0.
    scale = float(np.sqrt((share * margin**2).sum() * squares))
    return Believed(
        pairs=len(margin),
        accuracy=accuracy,
        low=low,
        high=high,
        calibration_error=sum(each.share * abs(each.sure - each.right) for each in bins),
        length_bias=100 * together / squares if squares else 0.0,
        length_correlation=together / scale if scale else 0.0,
        longer_wins=float((share * ((length > 0) + 0.5 * (length == 0))).sum()),
        bins=bins,
    )


def exact_interval(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of Clopper and Pearson (1934) for a share of `count` trials, which need not be whole."""
    right = share * count
    low = float(beta.ppf(0.025, right, count - right + 1)) if right > 1e-9 else 0.0
    high = float(beta.ppf(0.975, right + 1, count - right)) if count - right > 1e-9 else 1.0
    return low, high


def _bins(margin: np.ndarray, temperature: float, share: np.ndarray) -> tuple[Bin, ...]:
    """Pairs binned by the models' confidence in the side they take, from 0.5 to 1."""
    sure = expit(np.abs(margin) / temperature)
    which = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    made = []
    for number in range(BINS):
        inside = which == number
        if inside.any():
            own = share[inside] / share[inside].sum()
            right = float((own * (margin[inside] > 0)).sum())
            made.append(Bin(int(inside.sum()), float((own * sure[inside]).sum()), right, float(share[inside].sum())))
    return tuple(made)


def draw(found: Believed, path: Path) -> None:
    """Draw the reliability plot: accuracy over confidence."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0.5, 1], [0.5, 1], color="0.7", linewidth=1)
    sizes = [20 + 300 * each.count / found.pairs for each in found.bins]
    axes.scatter([each.sure for each in found.bins], [each.right for each in found.bins], s=sizes)
    axes.set(xlim=(0.48, 1.02), ylim=(-0.02, 1.02), xlabel="how sure", ylabel="how often right")
    axes.set_title(f"{found.pairs} pairs, expected calibration error {found.calibration_error:.3f}", fontsize=10)
    figure.savefig(path)
