"""What libraries read from the environment when they are imported; to be set before they are.

Every program of ours (server, night, command line) calls `prepare` first. What the operator has set stays.
"""

import os
import sys
from pathlib import Path

# What a model may be served in. `AUTO` is what is measured to be fastest on a processor, and bfloat16 on a GPU.
AUTO = "auto"
FORMATS = (AUTO, "float32", "bfloat16", "int8", "int4")


def prepare(model: str) -> None:
    """Keep libraries from asking the network for anything, and threads from fighting over the processor."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if not is_hub_id(model):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # OpenMP's threads spin while they wait for each other, by default for milliseconds. Where a night or another
    # program wants the same cores, that slows a reply thirtyfold; a short spin costs a reply alone a fifth
    # (docs/measurements.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")


def program(module: str, *arguments: str) -> list[str]:
    """The command line of one of our programs; no file of the folder it is run in is taken for one of ours (-P)."""
    return [sys.executable, "-P", "-m", module, *arguments]


def is_hub_id(name: str) -> bool:
    """Whether a model's name can only be meant for the hub: owner/model, and no such directory here."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and not Path(name).expanduser().exists()
