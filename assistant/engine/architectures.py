"""The architectures of the fast path: a model's sizes, switches and layers, read from a transformers model.

Supported are Llama (SmolLM too), Mistral, Qwen2, Qwen2.5, Qwen3, Gemma 2 and Gemma 3 (text). They are one computation
with switches: grouped-query attention, biases, norms of queries and keys, norms after attention and MLP, soft caps,
sliding windows, tied or untied heads.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from assistant.engine.quant.formats import FourBit, Linear, Plan, Weight

LLAMAS = {"llama", "mistral", "qwen2", "qwen3"}
GEMMAS = {"gemma2", "gemma3_text"}
STEADY_ROPES = {"default", "linear", "llama3", "yarn"}  # their frequencies do not depend on the length of the text


@dataclass(frozen=True)
class Sizes:
    """A model's dimensions, and the settings that all of its layers share."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    scaling: float  # of a query's product with a key
    attention_cap: float | None
    logit_cap: float | None
    embedding_scale: float
    activation: Callable[[Tensor], Tensor]

    @cached_property
    def turned_width(self) -> int:
        """The width of a token's queries and keys, which the rotary positions turn."""
        return (self.heads + self.kv_heads) * self.head_width

    @cached_property
    def query_width(self) -> int:
        """The width of a token's queries."""
        return self.heads * self.head_width

    @cached_property
    def kept_width(self) -> int:
        """The width of a token's keys and values in one layer."""
        return 2 * self.kv_heads * self.head_width


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the frequencies (head width / 2,), and a factor for the rotated vectors."""

    frequencies: Tensor
    scale: float

    def rotations(self, positions: Tensor) -> Tensor:
        """Complex numbers (T, 1, head width / 2) that rotate the pairs of a head at positions (T,)."""
        angles = positions[:, None].float() * self.frequencies
        return torch.polar(torch.full_like(angles, self.scale), angles)[:, None]


class Norm:
    """RMSNorm over the last dimension (arXiv 1910.07467, eq. 4), in float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        width = weight.shape[-1]
        # x / sqrt(mean(x^2) + eps) = x sqrt(width) / hypot(|x|, sqrt(width eps)): four kernels instead of nine.
        self._weight = weight * width**0.5
        self._floor = torch.tensor((width * eps) ** 0.5, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.div(x, length.hypot_(self._floor)).mul_(self._weight)


@dataclass(frozen=True)
class Layer:
    """One layer: its projections, its norms, and its own window and rotary positions."""

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    before_attention: Norm
    after_attention: Norm | None
    before_mlp: Norm
    after_mlp: Norm | None
    query_norm: Norm | None
    key_norm: Norm | None
    window: int | None
    rope: int  # index into the model's ropes


@dataclass(frozen=True)
class Target:
    """Where an adapter's factors for a linear layer go: the fused group of layers, and the part of it."""

    layer: int
    group: str  # "qkv", "out", "gate_up" or "down"
    part: int
    outputs: slice  # of the group's outputs
    order: Tensor | None  # of the output rows on the fast path; None: unchanged


@dataclass(frozen=True)
class Family:
    """A model as the fast path has read it."""

    sizes: Sizes
    layers: tuple[Layer, ...]
    ropes: tuple[Rope, ...]
    embedding: Tensor
    final_norm: Norm
    head: Linear
    targets: Mapping[str, Target]  # by the name of the linear layer


def can_read(config: Any) -> bool:
    """Whether the fast path can compute models of this config."""
    if config.model_type not in LLAMAS | GEMMAS or getattr(config, "use_bidirectional_attention", False):
        return False
    return all(each.get("rope_type", "default") in STEADY_ROPES for each in _rope_parameters(config))


def read(model: Any, plan: Plan, head_plan: Plan, device: str, four_bit: Mapping[str, FourBit]) -> Family:
    """Read a causal model of transformers; `four_bit` are the weights that were four-bit, by layer name."""
    config = model.config
    body = model.model
    sizes = sizes_of(config)
    order = _in_pairs(sizes.head_width)
    targets: dict[str, Target] = {}
    ropes, rope_of = _ropes(config, body.rotary_emb, device)
    gemma = config.model_type in GEMMAS

    def norm(module: Any, order: Tensor | None = None) -> Norm:
        weight = module.weight.to(device, torch.float32)
        weight = 1 + weight if gemma else weight  # Gemma stores the difference from one
        return Norm(weight if order is None else weight[order], config.rms_norm_eps)

    layers = []
    for at, block in enumerate(body.layers):
        attention, mlp, prefix = block.self_attn, block.mlp, f"model.layers.{at}"
        named = {
            "qkv": {f"{prefix}.self_attn.{name}_proj": getattr(attention, f"{name}_proj") for name in "qkv"},
            "out": {f"{prefix}.self_attn.o_proj": attention.o_proj},
            "gate_up": {f"{prefix}.mlp.{name}_proj": getattr(mlp, f"{name}_proj") for name in ("gate", "up")},
            "down": {f"{prefix}.mlp.down_proj": mlp.down_proj},
        }
        orders = {f"{prefix}.self_attn.{name}_proj": order for name in "qk"}
        groups = {}
        for group, modules in named.items():
            weights = [_weight(module, four_bit.get(name), orders.get(name)) for name, module in modules.items()]
            groups[group] = Linear(Weight.joined(weights), plan.formats, device)
            targets |= _targets(at, group, modules, orders)
        query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        layers.append(
            Layer(
                **groups,
                before_attention=norm(block.input_layernorm),
                after_attention=norm(block.post_attention_layernorm) if gemma else None,
                before_mlp=norm(block.pre_feedforward_layernorm if gemma else block.post_attention_layernorm),
                after_mlp=norm(block.post_feedforward_layernorm) if gemma else None,
                query_norm=None if query_norm is None else norm(query_norm, order),
                key_norm=None if key_norm is None else norm(key_norm, order),
                window=_window(config, attention),
                rope=rope_of(at),
            )
        )
    head = Linear(Weight(model.get_output_embeddings().weight), head_plan.formats, device)
    embedding = body.embed_tokens.weight.to(device)
    return Family(sizes, tuple(layers), ropes, embedding, norm(body.norm), head, targets)


def sizes_of(config: Any) -> Sizes:
    """Read a model's dimensions from its config."""
    gemma = config.model_type in GEMMAS
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    return Sizes(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_width=head_width,
        vocabulary=config.vocab_size,
        scaling=(config.query_pre_attn_scalar if gemma else head_width) ** -0.5,
        attention_cap=getattr(config, "attn_logit_softcapping", None),
        logit_cap=getattr(config, "final_logit_softcapping", None),
        embedding_scale=config.hidden_size**0.5 if gemma else 1.0,
        activation=F.silu if name == "silu" else _gelu,
    )


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _in_pairs(head_width: int) -> Tensor:
    """The order that interleaves the two halves of a head, so that a rotation is one complex product.

    Queries and keys are both put in this order, so their products are unchanged.
    """
    return torch.arange(head_width).view(2, -1).T.flatten()


def _in_pairs_by_head(rows: int, order: Tensor) -> Tensor:
    """The same order for every head of (heads x head width) output rows."""
    return (torch.arange(0, rows, len(order))[:, None] + order).flatten()


def _weight(module: Any, four_bit: FourBit | None, order: Tensor | None) -> Weight:
    full, bias = module.weight, module.bias
    if order is not None:
        rows = _in_pairs_by_head(len(full), order)
        full = full[rows]
        bias = None if bias is None else bias[rows]
        four_bit = four_bit and four_bit.rows(rows)
    return Weight(full, bias, four_bit)


def _targets(layer: int, group: str, modules: Mapping[str, Any], orders: Mapping[str, Tensor]) -> dict[str, Target]:
    targets, start = {}, 0
    for part, (name, module) in enumerate(modules.items()):
        rows = module.out_features
        order = _in_pairs_by_head(rows, orders[name]) if name in orders else None
        targets[name] = Target(layer, group, part, slice(start, start + rows), order)
        start += rows
    return targets


def _window(config: Any, attention: Any) -> int | None:
    """The number of tokens that a layer looks back; None: to the beginning."""
    if config.model_type == "mistral":
        return config.sliding_window
    return getattr(attention, "sliding_window", None)


def _rope_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """The parameters of a config's rotary positions: once, or once for each kind of layer."""
    parameters = config.rope_parameters or {}
    kinds = [each for each in parameters.values() if isinstance(each, Mapping)]
    yield from kinds or [parameters]


def _ropes(config: Any, rotary: Any, device: str) -> tuple[tuple[Rope, ...], Callable[[int], int]]:
    """The model's rotary positions, and a function from a layer to the index of its own."""
    if hasattr(rotary, "inv_freq"):
        return (Rope(rotary.inv_freq.to(device, torch.float32), rotary.attention_scaling),), lambda layer: 0
    kinds = list(rotary.layer_types)
    ropes = tuple(
        Rope(
            getattr(rotary, f"{kind}_inv_freq").to(device, torch.float32), getattr(rotary, f"{kind}_attention_scaling")
        )
        for kind in kinds
    )
    return ropes, lambda layer: kinds.index(config.layer_types[layer])
