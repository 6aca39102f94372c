"""Work done beside the engine without disturbing the replies being written."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def run_in_background(work: Callable[..., T], *arguments: Any) -> T:
    """Do `work` in a low-priority thread and return its result; the thread then ends, and torch's helpers with it.

    While more helpers live than there are processors, those of the engine's thread sleep between two products.
    """
    with ThreadPoolExecutor(1, initializer=give_way) as passing:
        return passing.submit(work, *arguments).result()


def give_way() -> None:
    """Lower the priority of this thread and of those it starts. (Only Linux has priorities per thread.)"""
    if sys.platform == "linux":
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, min(19, os.getpriority(os.PRIO_PROCESS, own) + 10))
