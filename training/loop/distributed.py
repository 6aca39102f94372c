"""Several processes of one night: each computes its share of every batch, and the gradients are added up.

`accelerate launch --multi_gpu --num_processes N -m training.night` starts them and tells each which it is. All run the
same loop over the same examples, so their weights stay the same without being sent. Only the first process reads the
ledger, writes, and tells the others what to learn. With a single process, nothing here has an effect.
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
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that reads and writes."""
    return count() == 1 or bool(state().is_main_process)


def own(items: Sequence[T]) -> Sequence[T]:
    """This process's share of the items."""
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
    """The values of all processes, in the order of the processes."""
    if count() == 1:
        return [value]
    found: list[T] = gather_object([value])
    return found


def total(value: float) -> float:
    """The sum over all processes."""
    return sum(every(value))


def tell(what: Any) -> None:
    """Tell the other processes what to learn."""
    if count() > 1:
        _said.append(True)
        broadcast_object_list([what])


def hear() -> Any:
    """Receive what the first process tells; None: there is nothing to learn."""
    told: list[Any] = [None]
    broadcast_object_list(told)
    return told[0]


@contextmanager
def leading() -> Iterator[None]:
    """The context of the first process's night; if it told the others nothing to learn, it releases them at the end."""
    try:
        yield
    finally:
        if not _said:
            tell(None)
