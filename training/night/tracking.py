"""A night's step metrics: kept with the adapter as data and as a picture and, if asked for, logged as it goes."""

import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from feedback.errors import Refused
from training.loop import distributed

PICTURE, DATA = "curves.png", "metrics.jsonl"
LOGS = ("tensorboard", "trackio")
COLUMNS = 4

Log = Callable[[int, Mapping[str, float]], None]  # takes a step's number and its metrics


def write(steps: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write a night's steps (`nights.night_steps`): one JSON object a line, and a picture with a panel per metric."""
    (folder / DATA).write_text("".join(json.dumps(dict(each)) + "\n" for each in steps))
    names = sorted({name for each in steps for name in each} - {"step"})
    rows = max(1, math.ceil(len(names) / COLUMNS))
    figure = Figure(figsize=(3 * COLUMNS, 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for name, axes in zip(names, panels, strict=False):
        points = [(each["step"], each[name]) for each in steps if name in each]
        axes.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 20 else "")
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.savefig(folder / PICTURE, dpi=110)


def require_log(kind: str) -> None:
    """Raise `Refused` if the package that writes this kind of log is missing."""
    if kind and importlib.util.find_spec(kind) is None:
        raise Refused(f"--log {kind} needs a package that is not here: pip install {kind}")


def open_log(kind: str, folder: Path, name: str) -> Log:
    """Open a log of steps beside the ledger, by accelerate's trackers: in `folder`, or where trackio keeps its own.

    If `kind` is empty, the log does nothing.
    """
    if not kind:
        return lambda step, metrics: None
    from accelerate import tracking

    distributed.state()  # the trackers ask accelerate whether this process is the first of several
    if kind == "tensorboard":
        writer: Any = tracking.TensorBoardTracker(name, folder)
    else:
        writer = tracking.TrackioTracker("nightschool", name=name)
    writer.start()
    return lambda step, metrics: writer.log(dict(metrics), step=step)
