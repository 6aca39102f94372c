"""The parts of a step: example order, learning rate schedule, optimiser step, and recovery when memory runs out."""

import heapq
import math
import resource
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from training.loop import distributed
from training.loop.state import TrainState

LEAST_TOKENS = 64  # per pass; if memory does not suffice for these, training fails
T = TypeVar("T")


class NotFinite(Exception):
    """Training broke down numerically, for example with a loss that is not finite. Its result cannot be used."""


def memory_gib() -> float:
    """The peak memory of this process so far, in GiB; on a GPU, the peak that torch has allocated there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def batch(examples: int, size: int, step: int, seed: int) -> list[int]:
    """The indices of a step's examples: each once an epoch, in an order that the seed alone decides."""
    per_epoch = math.ceil(examples / size)
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return order[position * size : (position + 1) * size].tolist()


def stratified_batch(marked: Sequence[bool], size: int, step: int, seed: int, least: int) -> list[int]:
    """As `batch`, with `least` or more marked examples in each batch that has any, as far as there are so many.

    The batches of an epoch are as many as `batch`'s, and nearly equal in size.
    """
    count = math.ceil(len(marked) / size)
    epoch, position = divmod(step, count)
    chance = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(len(marked), generator=chance).tolist()
    some, others = ([at for at in order if marked[at] is which] for which in (True, False))

    # 1. the marked ones in equal parts to as many batches as they suffice for
    with_some = min(count, max(math.ceil(len(some) / size), len(some) // least))
    batches: list[list[int]] = [some[at::with_some] if at < with_some else [] for at in range(count)]

    # 2. the others to the emptiest batches
    emptiest = [(len(each), at) for at, each in enumerate(batches)]
    heapq.heapify(emptiest)
    for each in others:
        length, at = emptiest[0]
        batches[at].append(each)
        heapq.heapreplace(emptiest, (length + 1, at))
    return batches[int(torch.randperm(count, generator=chance)[position])]


def schedule(step: int, steps: int) -> float:
    """The factor on the learning rate at a step counted from 0: linear warm-up over 10 % of steps, then linear to 0.

    The warm-up takes at least six steps, or all if there are fewer: a night of few examples would otherwise have spent
    its KL budget before the second evaluation.
    """
    warm_up = max(min(6, steps), round(0.1 * steps))
    return (step + 1) / warm_up if step < warm_up else (steps - step) / (steps - warm_up)


def apply_gradients(state: TrainState, loss: float, learning_rate: float, most: float = 1.0) -> float:
    """Apply the accumulated gradients, clipped to norm `most`, and return their norm before. Raises `NotFinite`."""
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
    """Return what `compute` returns, given the number of tokens for one pass through the model.

    If memory runs out, the gradients so far are dropped, and it is called again with half the tokens, which stays so.
    """
    while True:
        try:
            return compute(state.tokens_at_once)
        except (MemoryError, RuntimeError) as error:
            alone = distributed.count() == 1  # with others, a retry would leave them waiting for this one's share
            if not (alone and out_of_memory(error)) or state.tokens_at_once // 2 < LEAST_TOKENS:
                raise
        state.optimizer.zero_grad()
        state.tokens_at_once //= 2
        print(f"memory ran out; going on with {state.tokens_at_once} tokens at once", flush=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out; on a CPU, torch has no exception class for that."""
    known = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(each in str(error) for each in known)
