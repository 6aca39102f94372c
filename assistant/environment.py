"""The environment variables that libraries read when they are imported.

Every program of ours (server, night, command line) calls `prepare` before it imports them. A variable that the operator
has set is left as it is.
"""

import os
import sys
from pathlib import Path

# The number formats of a served model. `AUTO` is the fastest by measurement on a CPU, and bfloat16 on a GPU.
AUTO = "auto"
FORMATS = (AUTO, "float32", "bfloat16", "int8", "int4")


def prepare(model: str) -> None:
    """Turn off telemetry, access to the hub (unless `model` is a hub id), and most of OpenMP's spinning."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if not is_hub_id(model):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # OpenMP's threads spin while they wait for each other, by default for milliseconds. When a night or another program
    # needs the same cores, that slows a reply thirtyfold; a short spin costs a reply that has the machine to itself a
    # fifth (docs/measurements.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")


def program(module: str, *arguments: str) -> list[str]:
    """The command line of one of our programs; `-P` keeps files in the current folder from shadowing our modules."""
    return [sys.executable, "-P", "-m", module, *arguments]


def is_hub_id(name: str) -> bool:
    """Whether a model's name can only be a hub id: owner/model, and no such path exists here."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and not Path(name).expanduser().exists()
