"""Several processes of one night: each computes its share of every batch, and the gradients are added up.

`accelerate launch --multi_gpu --num_processes N -m training.night` starts them and tells each which it is. All run the
same loop over the same examples, so their weights are the same without being sent; the first alone reads the ledger,
writes, and tells the others what to learn. Without several processes nothing here does anything.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

T = TypeVar("T")

_said: list[bool] = []


@cache
def state() -> PartialState:
    """What accelerate knows of this process and the others."""
    return PartialState(cpu=not torch.cuda.is_available())


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the one that reads and writes."""
    return count() == 1 or bool(state().is_main_process)


def own(items: Sequence[T]) -> Sequence[T]:
    """The share of this process."""
    return items if count() == 1 else items[state().process_index :: count()]


def add_up(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the sum of all gradients."""
    if count() == 1:
        return
    for each in parameters:
        if each.grad is None:
            each.grad = torch.zeros_like(each)
        torch.distributed.all_reduce(each.grad)


def every(value: T) -> list[T]:
    """What each process has, in their order."""
    if count() == 1:
        return [value]
    found: list[T] = gather_object([value])
    return found


def total(value: float) -> float:
    """The sum over all processes."""
    return sum(every(value))


def tell(what: Any) -> None:
    """Say to the others what to learn."""
    if count() > 1:
        _said.append(True)
        broadcast_object_list([what])


def hear() -> Any:
    """What the first process tells; None: there is nothing to learn."""
    told: list[Any] = [None]
    broadcast_object_list(told)
    return told[0]


@contextmanager
def leading() -> Iterator[None]:
    """Inside, the first process does a night; where it told the others nothing to learn, they are let go."""
    try:
        yield
    finally:
        if not _said:
            tell(None)
