"""Loading a base model for the engine: on the fast path if possible, and in which number formats.

On a CPU the formats are chosen by measuring, once per model and machine, what reads weights fastest for a few rows and
multiplies fastest for many, unless the operator names one.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from assistant.engine.architectures import Family, can_read, read
from assistant.engine.hf_runner import PlainNetwork
from assistant.engine.lora import LoraPool
from assistant.engine.model_runner import Network, SequenceChunk
from assistant.engine.quant import autotune
from assistant.engine.quant.formats import BFLOAT16, FLOAT32, INT4, INT8, FourBit, Plan
from assistant.engine.quant.gguf import read_four_bit
from assistant.environment import AUTO, FORMATS
from assistant.memory import give_back
from assistant.models import base_model
from assistant.models.adapter import Factors
from assistant.models.base_model import Base, load_model
from feedback.errors import Refused

# Nats per token (root mean square) by which a server's log-probs of the proof texts may differ from the trainer's
# float32. float32 differs by the order of sums alone; the others round weights or activations: 0.07, 0.14 and 0.07 were
# measured (docs/measurements.md).
TOLERANCES = {FLOAT32: 2e-3, BFLOAT16: 0.2, INT8: 0.4, INT4: 0.2}

log = logging.getLogger(__name__)


class AnyNetwork(Protocol):
    """What the engine requires of a network, on the fast path or not."""

    shapes: Mapping[str, tuple[int, int]]  # (out, in) of the linear layers that an adapter may be on, by name
    vocabulary: int
    window: int
    number_format: str
    tolerance: float
    generation_config: Any

    @property
    def few_rows(self) -> int:
        """The most rows that are multiplied in a format for few rows; 0 if all use the same format."""

    def new_cache(self, budget: int) -> Any:
        """Make a KV cache of `budget` bytes."""

    def add(self, factors: Factors) -> Any:
        """Load an adapter's factors; return its LoRA slot."""

    def holds(self, lora_slot: Any) -> bool:
        """Whether an adapter is still in memory."""

    def remove(self, lora_slot: Any) -> None:
        """Drop an adapter."""

    def forward(self, parts: Sequence[SequenceChunk]) -> Tensor:
        """Append each part's tokens to its row; return float32 logits (parts, V) after the last token of each."""


def open_network(base: Base, number_format: str, device: str) -> AnyNetwork:
    """Load a base model; `number_format` is one of `FORMATS`.

    Raises `Refused` if the model cannot be read, or not in that format.
    """
    try:
        return _open(base, number_format, device)
    finally:
        give_back()


def _open(base: Base, number_format: str, device: str) -> AnyNetwork:
    if number_format not in FORMATS:
        raise Refused(f"the number format is one of {', '.join(FORMATS)}, not {number_format!r}")
    if number_format in (INT8, INT4) and device != "cpu":
        raise Refused(f"{number_format} is for processors; on a GPU choose bfloat16")
    if number_format == AUTO and device != "cpu":
        number_format = BFLOAT16
    model: Any = load_model(base, torch.float32 if number_format == FLOAT32 else torch.bfloat16, "cpu")
    if not can_read(model.config):
        return _plain(model, number_format, device)
    four_bit = _four_bit(base, model.config) if number_format in (AUTO, INT4) else {}
    if number_format == INT4 and not four_bit:
        raise Refused("int4 is for models whose weights are four-bit already; choose int8")
    plan, head_plan = autotune.plans(base, model, number_format, four_bit)
    shapes = {name: tuple(each.weight.shape) for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    family = read(model, plan, head_plan, device, four_bit)
    network = Network(family, plan, head_plan, _lineup(family, shapes, device), kept_dtype(plan), device)
    return _described(network, model, number_format)


def kept_dtype(plan: Plan) -> torch.dtype:
    """The number format of the KV cache: bfloat16 if the device multiplies it well, else float32."""
    return torch.bfloat16 if plan.format(1 << 30) == BFLOAT16 else torch.float32


def _lineup(family: Family, shapes: Mapping[str, Any], device: str) -> LoraPool:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return LoraPool(family.targets, {name: shapes[name] for name in family.targets}, dtype, device)


def _plain(model: Any, number_format: str, device: str) -> AnyNetwork:
    if number_format in (INT8, INT4):
        raise Refused(f"models of type {model.config.model_type} are served in float32 or bfloat16 only")
    if number_format == AUTO:
        number_format = BFLOAT16 if base_model.fastest_dtype(device, rows=1) == torch.bfloat16 else FLOAT32
    log.warning("models of type %s are answered by their own forward, which is slower", model.config.model_type)
    model = (model.float() if number_format == FLOAT32 else model).to(device)
    return _described(PlainNetwork(model), model, number_format)


def _described(network: Any, model: Any, number_format: str) -> AnyNetwork:
    """Set what the engine needs to know of a network besides its computation."""
    network.number_format = number_format if number_format != AUTO else network.formats
    network.window = model.config.get_text_config().max_position_embeddings
    network.generation_config = model.generation_config
    network.tolerance = max(TOLERANCES[each] for each in network.number_format.split("+"))
    return network


def _four_bit(base: Base, config: Any) -> dict[str, FourBit]:
    """The embedded model's own four-bit weights; empty for any other model."""
    return read_four_bit(base_model.carried_gguf(), config) if base.name == base_model.EMBEDDED else {}
