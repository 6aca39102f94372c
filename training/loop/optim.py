"""What a step is made of: the order of examples, the learning rate, the optimiser, and going on with less memory."""

import math
import resource
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from training.loop import distributed
from training.loop.config import EpochsConfig
from training.loop.state import TrainState

LEAST_TOKENS = 64  # at once; where memory does not suffice for these, it does not for anything
T = TypeVar("T")


class NotFinite(Exception):
    """Training left the numbers: a loss or gradient is not finite. Nothing of it can be used."""


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


def count_steps(examples: int, config: EpochsConfig) -> int:
    """Optimiser steps at most: whole epochs, and more of them where the examples are very few."""
    per_epoch = math.ceil(examples / config.batch_size)
    return per_epoch * max(config.epochs, math.ceil(config.min_steps / per_epoch))


def apply_gradients(state: TrainState, loss: float, learning_rate: float, most: float = 1.0) -> float:
    """The gradients as they have added up, at this learning rate; their norm. Raises `NotFinite`."""
    if not math.isfinite(loss):
        raise NotFinite(f"the loss is {loss} at step {state.step + 1}; try a lower learning_rate")
    parameters = [each for group in state.optimizer.param_groups for each in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, most)
    if not norm.isfinite():
        raise NotFinite(f"the gradient is {norm.item()} at step {state.step + 1}; try a lower learning_rate")
    for parts in state.optimizer.param_groups:
        parts["lr"] = learning_rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    return float(norm)


def within_memory(state: TrainState, compute: Callable[[int], T]) -> T:
    """What `compute` returns, given how many tokens may go through the model in one pass.

    Where memory runs out, what gradients there are by then are dropped, and it is done again, and from then on, with
    half the tokens.
    """
    while True:
        try:
            return compute(state.tokens_at_once)
        except (MemoryError, RuntimeError) as error:
            alone = distributed.count() == 1  # or the others would wait for this one's share
            if not (alone and out_of_memory(error)) or state.tokens_at_once // 2 < LEAST_TOKENS:
                raise
        state.optimizer.zero_grad()
        state.tokens_at_once //= 2
        print(f"memory ran out; going on with {state.tokens_at_once} tokens at once", flush=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left; on a processor torch has no class for it."""
    known = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(each in str(error) for each in known)
