"""Memory that is freed, and is given back to the system.

The C library keeps what large tensors leave behind for the next ones. After a model has been converted to the formats
it is served in, or a training is over, that is hundreds of megabytes, which nobody here needs again.
"""

import ctypes
import gc
from contextlib import suppress


def give_back() -> None:
    """Give freed memory back to the system; where the C library is not glibc, nothing happens."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
