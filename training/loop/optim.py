"""What every loop of training shares: the state that a checkpoint keeps, the order of examples, one optimiser step, and
going on with less where memory does not suffice.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from training.loop import distributed
from training.model.packing import TOKENS_AT_ONCE

LEAST_TOKENS = 64  # at once; where memory does not suffice for these, it does not for anything
T = TypeVar("T")


class NotFinite(Exception):
    """Training left the numbers: a loss or gradient is not finite. Nothing of it can be used."""


@dataclass(frozen=True)
class Report:
    """One step that was taken, of `steps` at most."""

    step: int
    steps: int
    metrics: dict[str, float]
    eta_s: float


@dataclass
class Run:
    """All that changes while something trains: its weights by name, the optimiser, how far it is."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    step: int = 0  # steps done
    numbers: dict[str, float] = field(default_factory=dict)  # what a method remembers from step to step
    ended: str = ""  # why there is no further step, in words
    kept: dict[str, Tensor] | None = None  # the weights that would be handed over now; None: the present ones
    tokens_at_once: int = TOKENS_AT_ONCE
    took_s: list[float] = field(default_factory=list)

    @staticmethod
    def over(parameters: Mapping[str, nn.Parameter], learning_rate: float, eps: float = 1e-8) -> "Run":
        """A run before its first step."""
        optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate, eps=eps, weight_decay=0.0, foreach=False)
        return Run(dict(parameters), optimizer)

    def report(self, steps: int, metrics: dict[str, float], began: float) -> Report:
        """The step just taken, that began at this `time.monotonic()`."""
        self.took_s.append(time.monotonic() - began)
        return Report(self.step, steps, metrics, sum(self.took_s) / len(self.took_s) * (steps - self.step))

    def keep(self) -> None:
        """Remember the weights as they are."""
        self.kept = {name: each.detach().clone() for name, each in self.parameters.items()}

    def go_back(self) -> None:
        """Take the weights that were kept, if any were."""
        with torch.no_grad():
            for name, each in (self.kept or {}).items():
                self.parameters[name].copy_(each)


def memory_gib() -> float:
    """The most that this process has held so far; on a GPU, the most that torch has held there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def batch(examples: int, size: int, step: int, seed: int) -> list[int]:
    """The numbers of a step's examples: every one once an epoch, in an order that the seed alone decides."""
    per_epoch = math.ceil(examples / size)
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return order[position * size : (position + 1) * size].tolist()


def schedule(step: int, steps: int) -> float:
    """The share of the learning rate at a step counted from 0: linear warm-up over 10 %, then linear to 0.

    Over six steps at least: a night of few examples would else have spent its KL budget before the second look.
    """
    warm_up = max(min(6, steps), round(0.1 * steps))
    return (step + 1) / warm_up if step < warm_up else (steps - step) / (steps - warm_up)


class Epochs(Protocol):
    """What a method's settings say of how long it lasts."""

    @property
    def batch_size(self) -> int:
        """Lessons a step."""

    @property
    def epochs(self) -> int:
        """At most."""

    @property
    def min_steps(self) -> int:
        """However few the examples are."""


def count_steps(examples: int, settings: Epochs) -> int:
    """Optimiser steps at most: whole epochs, and more of them where the examples are very few."""
    per_epoch = math.ceil(examples / settings.batch_size)
    return per_epoch * max(settings.epochs, math.ceil(settings.min_steps / per_epoch))


class Trains(Protocol):
    """What has gradients, and passes of some size: a `Run`, or a night's `Progress`."""

    optimizer: torch.optim.Optimizer
    step: int
    tokens_at_once: int


def take_step(run: Trains, loss: float, learning_rate: float, steps: int, most: float = 1.0) -> float:
    """One optimiser step by `schedule`, the gradient's norm clipped to `most`; the norm. Raises `NotFinite`."""
    norm = apply_gradients(run, loss, learning_rate * schedule(run.step, steps), most)
    run.step += 1
    return norm


def apply_gradients(run: Trains, loss: float, learning_rate: float, most: float = 1.0) -> float:
    """The gradients as they have added up, at this learning rate; their norm. Raises `NotFinite`."""
    if not math.isfinite(loss):
        raise NotFinite(f"the loss is {loss} at step {run.step + 1}; try a lower learning_rate")
    parameters = [each for group in run.optimizer.param_groups for each in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, most)
    if not norm.isfinite():
        raise NotFinite(f"the gradient is {norm.item()} at step {run.step + 1}; try a lower learning_rate")
    for parts in run.optimizer.param_groups:
        parts["lr"] = learning_rate
    run.optimizer.step()
    run.optimizer.zero_grad()
    return float(norm)


def within_memory(run: Trains, compute: Callable[[int], T]) -> T:
    """What `compute` returns, given how many tokens may go through the model in one pass.

    Where memory runs out, what gradients there are by then are dropped, and it is done again, and from then on, with
    half the tokens.
    """
    while True:
        try:
            return compute(run.tokens_at_once)
        except (MemoryError, RuntimeError) as error:
            alone = distributed.count() == 1  # or the others would wait for this one's share
            if not (alone and out_of_memory(error)) or run.tokens_at_once // 2 < LEAST_TOKENS:
                raise
        run.optimizer.zero_grad()
        run.tokens_at_once //= 2
        print(f"memory ran out; going on with {run.tokens_at_once} tokens at once", flush=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left; on a processor torch has no class for it."""
    known = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(each in str(error) for each in known)
