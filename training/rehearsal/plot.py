"""The plots of a rehearsal: the new adapter's win rate and the night's curves, or the best of n."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # needs no display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from training.rehearsal.best_of import BestOf
from training.rehearsal.figures import Figures

BLUE, GREY = "#2b6cb0", "#718096"


def draw(figures: Figures, steps: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture as a PNG; `steps` are the night's (`feedback.records.nights.night_steps`)."""
    picture, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 3.4), layout="constrained")
    picture.suptitle(f"Taste: {figures.taste}", fontsize=11)
    _win_rate(left, figures)
    _curve(middle, steps, "validation_gain", "gain of what was kept aside")
    _curve(right, steps, "kl", "KL from the base (nats a token, exact, T=1)")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=110)
    plt.close(picture)


def draw_best(found: BestOf, path: Path) -> None:
    """Write the picture of what the best of n replies were promised to be, and were."""
    picture, axes = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    across = [each.kl**0.5 for each in found.points]
    for name, colour, label in (("promised", GREY, "by the reward models"), ("true", BLUE, "by the taste")):
        mean, low, high = (
            100 * np.array(each) for each in zip(*(getattr(at, name) for at in found.points), strict=True)
        )
        axes.errorbar(across, mean, yerr=[mean - low, high - mean], color=colour, marker="o", capsize=3, label=label)
    axes.set_xticks(across, [str(each.n) for each in found.points])
    axes.set(xlabel="best of n, at the square root of its KL from the base", ylabel="% better than a sample")
    axes.set_title(f"{found.comparisons} comparisons, {found.wrong:.0%} of them turned round", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=110)
    plt.close(picture)


def _win_rate(axes: Axes, figures: Figures) -> None:
    rate, low, high = (100 * each for each in (figures.win_rate, figures.win_rate_low, figures.win_rate_high))
    axes.bar([0], [rate], width=0.35, color=BLUE, yerr=[[rate - low], [high - rate]], capsize=8, ecolor="black")
    axes.axhline(50, color=GREY, linestyle="--", linewidth=1)
    axes.text(0.44, 51, "as often as\nthe base", color=GREY, ha="right", fontsize=8)
    axes.set(xlim=(-0.45, 0.45), ylim=(0, 100), xticks=[], ylabel="% of replies preferred to the base's")
    axes.set_title(
        f"{rate:.0f} % ({low:.0f} to {high:.0f}) on {figures.prompts} unseen prompts,\n"
        f"after {figures.comparisons} comparisons, {figures.minutes:.0f} min",
        fontsize=9,
    )


def _curve(axes: Axes, steps: Sequence[dict[str, Any]], name: str, label: str) -> None:
    points = [(each["step"], each[name]) for each in steps if name in each]
    if points:
        axes.plot(*zip(*points, strict=True), color=BLUE, marker="." if len(points) < 20 else "")
    axes.set(xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
