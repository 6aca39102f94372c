"""Frozen linear layers in several number formats, and the plan of which format multiplies how many rows.

No one format is best: a few rows are bound by memory bandwidth, so fewer bits win; many rows are bound by the
processor, and processors differ by a factor of twenty in bfloat16. So every layer keeps the formats that a plan names,
and the plan is made by measuring (`autotune`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FLOAT32, BFLOAT16, INT8, INT4 = "float32", "bfloat16", "int8", "int4"
BLOCK = 32  # weights that share a scale and a minimum in a four-bit file

Multiply = Callable[[Tensor], Tensor]  # x (T, in) -> y (T, out)


@dataclass(frozen=True)
class FourBit:
    """A weight as a four-bit file holds it: w = scale * q + minimum, for each block of 32 along `in`."""

    q: Tensor  # (out, in), int32 from 0 to 15
    scale: Tensor  # (out, in / 32), float32
    minimum: Tensor  # (out, in / 32), float32

    def rows(self, order: Tensor) -> "FourBit":
        """The same weight with its output rows in another order."""
        return FourBit(self.q[order], self.scale[order], self.minimum[order])


@dataclass(frozen=True)
class Weight:
    """A frozen weight (out, in) as it was loaded, its bias, and the four-bit numbers it came from, if any."""

    full: Tensor
    bias: Tensor | None = None
    four_bit: FourBit | None = None

    @classmethod
    def joined(cls, weights: Sequence["Weight"]) -> "Weight":
        """Join several weights that multiply the same input. If some have a bias, the others' is zero."""
        full = torch.cat([each.full for each in weights])
        biases = [each.bias if each.bias is not None else each.full.new_zeros(len(each.full)) for each in weights]
        bias = torch.cat(biases) if any(each.bias is not None for each in weights) else None
        parts = [each.four_bit for each in weights if each.four_bit is not None]
        if len(parts) < len(weights):
            return cls(full, bias)
        together = FourBit(*(torch.cat([getattr(each, name) for each in parts]) for name in ("q", "scale", "minimum")))
        return cls(full, bias, together)


@dataclass(frozen=True)
class Plan:
    """Steps of (most rows, format): the first whose limit is not exceeded multiplies. The last takes any number."""

    steps: tuple[tuple[int, str], ...]

    @classmethod
    def only(cls, number_format: str) -> "Plan":
        """One format for everything."""
        return cls(((0, number_format),))

    def format(self, rows: int) -> str:
        """The format for this many rows."""
        return next((name for most, name in self.steps if rows <= most), self.steps[-1][1])

    @property
    def few_rows(self) -> int:
        """The most rows that have a format of their own; 0 if all have the same."""
        return self.steps[0][0] if len(self.steps) > 1 else 0

    @property
    def formats(self) -> set[str]:
        """All formats that are used."""
        return {name for _, name in self.steps}


# Of one weight in memory, including its share of the scales.
BYTES = {FLOAT32: 4.0, BFLOAT16: 2.0, INT8: 1.0, INT4: 0.5 + 4 / BLOCK}


class Linear:
    """y = x w' + bias, in the formats of a plan. The weight as loaded is not kept."""

    def __init__(self, weight: Weight, formats: Iterable[str], device: str) -> None:
        self.out_features, self.in_features = weight.full.shape
        self._by_format = {name: MAKERS[name](weight, device) for name in sorted(formats)}

    def nbytes(self, number_format: str) -> int:
        """The bytes of weights that a product reads."""
        return int(self.out_features * self.in_features * BYTES[number_format])

    def __call__(self, x: Tensor, number_format: str) -> Tensor:
        return self._by_format[number_format](x)


def float32(weight: Weight, device: str) -> Multiply:
    """The plain product, in float32."""
    w = weight.full.to(device, torch.float32)
    bias = None if weight.bias is None else weight.bias.to(device, torch.float32)
    return lambda x: F.linear(x.float(), w, bias)


def bfloat16(weight: Weight, device: str) -> Multiply:
    """Products of bfloat16, summed in float32. On a CPU the weight is laid out once as the kernels need it."""
    w = weight.full.to(device, torch.bfloat16)
    bias = None if weight.bias is None else weight.bias.to(device, torch.bfloat16)
    if device == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        packed = torch.ops.mkldnn._reorder_linear_weight(w)
        multiply = torch.ops.mkldnn._linear_pointwise
        return lambda x: multiply(x.to(torch.bfloat16), packed, bias, "none", [], "")
    return lambda x: F.linear(x.to(torch.bfloat16), w, bias)


def eight_bits(full: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (out, in) in int8, and the scale (out,) of each row in bfloat16."""
    full = full.float()
    scale = (full.abs().amax(1).clamp_min(1e-12) / 127).to(torch.bfloat16)
    return (full / scale.float()[:, None]).round().clamp(-128, 127).to(torch.int8), scale


def int8(weight: Weight, device: str) -> Multiply:
    """Eight-bit weights, one scale per output; activations stay bfloat16."""
    q, scale = eight_bits(weight.full.to(device))
    multiply = _with_bias(weight, device)
    return lambda x: multiply(torch._weight_int8pack_mm(x.to(torch.bfloat16), q, scale))


def int4(weight: Weight, device: str) -> Multiply:
    """The file's own four-bit numbers, packed for torch's kernel: only scales and minima are rounded, to bfloat16."""
    four_bit = weight.four_bit
    assert four_bit is not None, "int4 is for weights that were four-bit already"
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(four_bit.q.contiguous(), 1)
    # The kernel computes scale * (q - 8) + zero.
    zero = four_bit.minimum + 8 * four_bit.scale
    scales_and_zeros = torch.stack([four_bit.scale.T, zero.T], -1).to(torch.bfloat16).contiguous()
    kernel = torch.ops.aten._weight_int4pack_mm_for_cpu
    multiply = _with_bias(weight, device)
    return lambda x: multiply(kernel(x.to(torch.bfloat16), packed, BLOCK, scales_and_zeros))


def _with_bias(weight: Weight, device: str) -> Callable[[Tensor], Tensor]:
    if weight.bias is None:
        return lambda y: y
    bias = weight.bias.to(device, torch.bfloat16)
    return lambda y: y + bias


MAKERS: dict[str, Callable[[Weight, str], Multiply]] = {FLOAT32: float32, BFLOAT16: bfloat16, INT8: int8, INT4: int4}
