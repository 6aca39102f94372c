"""The number format that a base's weights are rounded to, wherever they are read: serving, training and proofs.

Weights stored in more bits are rounded to bfloat16 once, and computing in float32 is then arithmetic on the rounded
numbers. So what is served and what is trained are the same numbers, whichever format a machine computes in.
"""

from functools import lru_cache

import torch
from safetensors import safe_open

from assistant.models.base_model import Base
from feedback.errors import Refused

WEIGHTS = torch.bfloat16
NATS = 0.003  # that it cost real text under the embedded model, at most (docs/measurements.md)
WIDER = {"F16": "float16", "F32": "float32", "F64": "float64"}  # than bfloat16, in safetensors' words


@lru_cache(maxsize=8)
def rounded_from(base: Base) -> str:
    """The number format in which a base's weights are stored, if rounding changes any of them; else empty.

    Many files hold bfloat16's numbers in float32. Raises `Refused` if a file cannot be read.
    """
    try:
        for path in sorted(base.path.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    stored = WIDER.get(file.get_slice(name).get_dtype())
                    if stored and _changes(file.get_tensor(name)):
                        return stored
    except Exception as error:  # safetensors raises its own class, not importable by a stable name
        raise Refused(f"cannot load the model {base.name!r}: {error}") from error
    return ""


def _changes(weight: torch.Tensor) -> bool:
    return not torch.equal(weight.to(WEIGHTS).to(weight.dtype), weight)
