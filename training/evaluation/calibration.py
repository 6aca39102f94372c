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
from scipy.stats import binomtest

BINS = 10
FEWEST = 10  # pairs; a temperature fitted to fewer would be noise


@dataclass(frozen=True)
class Bin:
    """Pairs whose confidence is in one of `BINS` equal intervals from 0.5 to 1: count, mean confidence, accuracy."""

    count: int
    sure: float
    right: float


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


def believed(margins: Sequence[float], longer_by: Sequence[int], temperature: float) -> Believed:
    """Accuracy, calibration and length bias from the margins of at least one pair.

    `longer_by` is by how many tokens each preferred reply is longer than the other.
    """
    margin, length = np.asarray(margins, dtype=float), np.asarray(longer_by, dtype=float)
    right = int((margin > 0).sum())
    interval = binomtest(right, len(margin)).proportion_ci(0.95, method="exact")
    bins = _bins(margin, temperature)
    squares = float((length**2).sum())
    # The order of a pair is arbitrary, so each pair counts both ways round, and both means are 0.
    scale = float(np.sqrt((margin**2).sum() * squares))
    return Believed(
        pairs=len(margin),
        accuracy=right / len(margin),
        low=float(interval.low),
        high=float(interval.high),
        calibration_error=sum(each.count * abs(each.sure - each.right) for each in bins) / len(margin),
        length_bias=100 * float((margin * length).sum()) / squares if squares else 0.0,
        length_correlation=float((margin * length).sum()) / scale if scale else 0.0,
        longer_wins=float(((length > 0) + 0.5 * (length == 0)).mean()),
        bins=bins,
    )


def _bins(margin: np.ndarray, temperature: float) -> tuple[Bin, ...]:
    """Pairs binned by the models' confidence in the side they take, from 0.5 to 1."""
    sure = expit(np.abs(margin) / temperature)
    which = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    made = []
    for number in range(BINS):
        inside = which == number
        if inside.any():
            made.append(Bin(int(inside.sum()), float(sure[inside].mean()), float((margin[inside] > 0).mean())))
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
