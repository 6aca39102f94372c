"""How fast this machine trains, as its last nights did it; before the first, by its speed in products of matrices."""

import math
import time
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from statistics import harmonic_mean

import torch
from safetensors import safe_open

from assistant.models import base_model
from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.records import nights
from feedback.records.nights import Night
from training.algorithms import registry

LATEST = 50  # nights that are looked at
FLOPS = 4  # of a trained token for each weight: forward, and backward through what is not trained itself
REACHED = 0.5  # of the speed of one product of matrices
MEASURED_S = 0.2
REST_S = 60.0  # of a night besides training, where no night has told


@dataclass(frozen=True)
class Pace:
    """The speed of training on examples, and the rest of a night: reading, proving, judging."""

    tokens_per_s: float
    rest_s: float


def of_training(store: Database, base: Base) -> Pace:
    """The speed of the last training on examples on this base, or an estimate."""
    for night in done(store, base):
        method = registry.every().get(night.method)
        steps = nights.night_steps(store, night.id)
        speeds = [each["tokens_per_s"] for each in steps if each.get("tokens_per_s")]
        if method is None or method.on_policy or not method.makes_adapter or not speeds:
            continue
        return Pace(harmonic_mean(speeds), max(0.0, _seconds(night) - trained_s(store, night)))
    return Pace(REACHED * flops() / FLOPS / weights_of(base), REST_S)


def of_last(store: Database, base: Base, method: str) -> float | None:
    """The minutes that the last night of a method took on this base; None if there was none."""
    newest = {night.method: night for night in reversed(done(store, base))}
    return _seconds(newest[method]) / 60 if method in newest else None


def done(store: Database, base: Base) -> list[Night]:
    """The newest nights on this base that were done, newest first."""
    newest = [each for each in nights.nights(store, LATEST) if each.state == "done"]
    return [each for each in newest if each.settings.get("base_sha256") == base.sha256]


def trained_s(store: Database, night: Night) -> float:
    """The seconds from a night's first step to its last, and as much as one of them more."""
    row = store.rows(
        "SELECT min(at) AS first, max(at) AS last, count(*) AS n FROM night_steps WHERE night = ?", night.id
    )
    first, last, count = row[0]["first"], row[0]["last"], row[0]["n"]
    return _between(first, last) * count / (count - 1) if count > 1 else 0.0


def _seconds(night: Night) -> float:
    return _between(night.started_at, night.ended_at or night.started_at)


def _between(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()


@cache
def flops() -> float:
    """The floating-point operations a second of this machine in a product of matrices, in the faster number format."""
    device = base_model.pick_device()
    one = torch.randn(512, 1024, device=device, dtype=base_model.fastest_dtype(device))
    other = torch.randn(1024, 1024, device=device, dtype=one.dtype)
    float((one @ other).sum())
    began, count = time.monotonic(), 0
    while time.monotonic() - began < MEASURED_S:
        float((one @ other).sum())
        count += 1
    return count * 2 * 512 * 1024 * 1024 / (time.monotonic() - began)


def weights_of(base: Base) -> float:
    """The number of a base's weights."""
    total = 0
    for path in sorted(base.path.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (a file is no dict)
                total += math.prod(file.get_slice(name).get_shape())
    return float(max(total, 1))
