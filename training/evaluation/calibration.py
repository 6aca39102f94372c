"""How far reward models can be believed: how often they are right, how sure they are of it, what length buys.

Margins are differences of scores, the preferred reply's less the other's; a margin over the temperature is the
log-odds that people prefer it (Bradley and Terry, 1952).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import binomtest

BINS = 10
FEWEST = 10  # pairs: with fewer a temperature would be that of chance


@dataclass(frozen=True)
class Bin:
    """Pairs whose more likely side had a probability within one tenth: how many, how sure, how often right."""

    count: int
    sure: float
    right: float


@dataclass(frozen=True)
class Believed:
    """What was found on `pairs` pairs."""

    pairs: int
    accuracy: float
    low: float  # of the exact 95 % interval (Clopper and Pearson, 1934)
    high: float
    calibration_error: float  # expected: the mean distance of sureness from accuracy (arXiv 1706.04599, eq. 3)
    length_bias: float  # how much score 100 tokens more are worth, by least squares through 0
    length_correlation: float  # of margin and difference in length
    longer_wins: float  # accuracy of the rule that the longer reply is better; equal lengths count half
    bins: tuple[Bin, ...] = ()


def temperature_of(margins: Sequence[float]) -> float:
    """The temperature under which these margins are likeliest (arXiv 1706.04599, section 4.2); 1 where they are few."""
    if len(margins) < FEWEST:
        return 1.0
    found = np.asarray(margins)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -found / np.exp(log_temperature)).mean())

    best = minimize_scalar(loss, bounds=(-5, 5), method="bounded")
    return float(np.exp(best.x))


def believed(margins: Sequence[float], longer_by: Sequence[int], temperature: float) -> Believed:
    """What margins say; `longer_by` is by how many tokens the preferred reply is longer. At least one pair."""
    margin, length = np.asarray(margins, dtype=float), np.asarray(longer_by, dtype=float)
    right = int((margin > 0).sum())
    interval = binomtest(right, len(margin)).proportion_ci(0.95, method="exact")
    bins = _bins(margin, temperature)
    squares = float((length**2).sum())
    # Both ways round, as which reply stands first is arbitrary: then both means are 0.
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
    """Pairs by how sure the models are of the side they take, from a half to certain."""
    sure = expit(np.abs(margin) / temperature)
    which = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    made = []
    for number in range(BINS):
        inside = which == number
        if inside.any():
            made.append(Bin(int(inside.sum()), float(sure[inside].mean()), float((margin[inside] > 0).mean())))
    return tuple(made)


def draw(found: Believed, path: Path) -> None:
    """The reliability plot: how often right, over how sure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0.5, 1], [0.5, 1], color="0.7", linewidth=1)
    sizes = [20 + 300 * each.count / found.pairs for each in found.bins]
    axes.scatter([each.sure for each in found.bins], [each.right for each in found.bins], s=sizes)
    axes.set(xlim=(0.48, 1.02), ylim=(-0.02, 1.02), xlabel="how sure", ylabel="how often right")
    axes.set_title(f"{found.pairs} pairs, expected calibration error {found.calibration_error:.3f}", fontsize=10)
    figure.savefig(path)
