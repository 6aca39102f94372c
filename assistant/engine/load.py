"""A base model made ready to compute: by the fast path where it can be, and in which number formats.

On a processor the formats are chosen by measuring, once for a model and a machine, what reads weights fastest for a
few rows and multiplies fastest for many, unless the operator names one.
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
from assistant.models import base_model
from assistant.models.adapter import Factors
from assistant.models.base_model import Base, load_model
from feedback.errors import Refused

# Nats a token (root mean square) by which a server's log-probs of the proof texts may differ from the trainer's
# float32. float32 differs by the order of sums alone; the others round weights or activations: seen were 0.07, 0.14
# and 0.07 (docs/measurements.md).
TOLERANCES = {FLOAT32: 2e-3, BFLOAT16: 0.2, INT8: 0.4, INT4: 0.2}

log = logging.getLogger(__name__)


class AnyNetwork(Protocol):
    """What the engine asks of a way to compute."""

    shapes: Mapping[str, tuple[int, int]]  # (out, in) of the linear layers that an adapter may be on, by name
    vocabulary: int
    window: int
    number_format: str
    tolerance: float
    generation_config: Any

    @property
    def few_rows(self) -> int:
        """How many rows are multiplied in a format for few; 0: all are in the same."""

    def new_cache(self, budget: int) -> Any:
        """For the texts, within so many bytes."""

    def add(self, factors: Factors) -> Any:
        """Take an adapter in; where it is kept."""

    def holds(self, lora_slot: Any) -> bool:
        """Whether an adapter is still here."""

    def remove(self, lora_slot: Any) -> None:
        """Let an adapter go."""

    def forward(self, parts: Sequence[SequenceChunk]) -> Tensor:
        """Append each part's tokens to its row; float32 logits (parts, V) after the last token of each."""


def open_network(base: Base, number_format: str, device: str) -> AnyNetwork:
    """Load a base model; `number_format` is one of `FORMATS`.

    Raises `Refused` where the model cannot be read, or not in that format.
    """
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
    """What keys and values are kept in: bfloat16 where the device multiplies it well."""
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
    model = model.to(device, getattr(torch, number_format))
    return _described(PlainNetwork(model), model, number_format)


def _described(network: Any, model: Any, number_format: str) -> AnyNetwork:
    """With what the engine wants to know beside the computation."""
    network.number_format = number_format if number_format != AUTO else network.formats
    network.window = model.config.get_text_config().max_position_embeddings
    network.generation_config = model.generation_config
    network.tolerance = max(TOLERANCES[each] for each in network.number_format.split("+"))
    return network


def _four_bit(base: Base, config: Any) -> dict[str, FourBit]:
    """The embedded model's own four-bit numbers; nothing for any other."""
    return read_four_bit(base_model.carried_gguf(), config) if base.name == base_model.EMBEDDED else {}
