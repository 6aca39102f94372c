"""Work done beside the engine without disturbing those who are being answered."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def run_in_background(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns, done in a thread that ends, and torch's helpers with it.

    While more of them live than there are processors, those of the engine's thread sleep between two products. What
    it does gives way to those who are being answered.
    """
    with ThreadPoolExecutor(1, initializer=give_way) as passing:
        return passing.submit(work, *arguments).result()


def give_way() -> None:
    """Rank this thread, and those that it starts, behind all others. (Only Linux knows threads of different rank.)"""
    if sys.platform == "linux":
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, min(19, os.getpriority(os.PRIO_PROCESS, own) + 10))
