"""A transformers network taught to compute many chats at once: rows of one flat batch, each with its own adapter.

The tokens of all rows lie behind one another in one sequence, so nothing is padded: the linear layers see one long
batch, attention goes row by row over the row's own keys and values, and each adapter is applied to its own slice.
Left out on purpose: who is in the batch and what becomes of the logits (`engine`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from feedback.store import Refused

ATTENTION = "nightschool_rows"
Factors = Mapping[str, tuple[Tensor, Tensor]]


class Row:
    """The keys and values of one text, layer by layer, with room for `room` tokens. `length` of them are written."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.length = 0
        self.cache: list[Tensor] = []  # a layer: (2, kv heads, room, head width)

    def fork(self) -> "Row":
        """A copy that can go on differently."""
        copy = Row(self.room)
        copy.length = self.length
        for layer in self.cache:
            copied = torch.empty_like(layer)
            copied[:, :, : self.length] = layer[:, :, : self.length]
            copy.cache.append(copied)
        return copy

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values (kv heads, n, width) behind the others; all of them so far."""
        if layer == len(self.cache):
            heads, _, width = key.shape
            self.cache.append(key.new_empty(2, heads, self.room, width))
        end = self.length + key.shape[1]
        kept = self.cache[layer]
        kept[0, :, self.length : end] = key
        kept[1, :, self.length : end] = value
        return kept[0, :, :end], kept[1, :, :end]


@dataclass
class Part:
    """What one row adds to the batch: its next tokens."""

    row: Row
    token_ids: list[int]
    factors: Factors | None  # of its adapter; None: the base
    adapter: str = ""  # rows of one adapter lie together


@dataclass
class Routing:
    """Which slices of the flat batch each adapter is applied to, in the step being computed."""

    groups: list[tuple[slice, Factors]] = field(default_factory=list)


class AdapterLinear(nn.Module):
    """A linear layer that adds, to each slice of the batch, what that slice's adapter adds."""

    def __init__(self, base: nn.Linear, name: str, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.routing = routing

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        for rows, factors in self.routing.groups:
            pair = factors.get(self.name)
            if pair is not None:
                a, b = pair
                y[:, rows] += (x[:, rows] @ a.T) @ b.T
        return y


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **more: Any
) -> tuple[Tensor, None]:
    """Attention of the flat batch, row by row: (1, heads, T, width) in, (1, T, heads, width) out."""
    out = torch.empty_like(query)
    start = 0
    for part in more["parts"]:
        end = start + len(part.token_ids)
        keys, values = part.row.extend(module.layer_idx, key[0, :, start:end], value[0, :, start:end])
        out[0, :, start:end] = _attend_row(query[0, :, start:end], keys, values, scaling, more.get("sliding_window"))
        start = end
    return out.transpose(1, 2), None


def _attend_row(query: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int | None) -> Tensor:
    """One row's new queries (heads, n, width) over all of its keys (kv heads, m, width); causal."""
    heads, new, width = query.shape
    length = keys.shape[1]
    if new == 1:
        if window is not None and length > window:
            keys, values = keys[:, -window:], values[:, -window:]
        # The query heads that share a kv head stand in as queries of it: nothing is repeated, no mask is needed.
        grouped = query.view(1, keys.shape[0], heads // keys.shape[0], width)
        return F.scaled_dot_product_attention(grouped, keys[None], values[None], scale=scaling).view(heads, 1, width)
    at = torch.arange(length - new, length, device=query.device)[:, None]
    keys_at = torch.arange(length, device=query.device)[None, :]
    seen = keys_at <= at
    if window is not None:
        seen &= keys_at > at - window
    repeats = heads // keys.shape[0]
    keys, values = keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0)
    return F.scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=seen, scale=scaling)[0]


class Network:
    """A base model that computes a flat batch of rows. `layers` are its linear layers by name, for adapters."""

    def __init__(self, model: Any) -> None:
        """Take over a model loaded with `ATTENTION`. Raises `Refused` on one that cannot be computed so."""
        if not model._supports_attention_backend:
            raise Refused(f"models of type {model.config.model_type} are not served yet")
        if getattr(model.config, "attn_logit_softcapping", None):
            raise Refused("models with attention soft-capping are not served yet")
        self.model = model
        self.routing = Routing()
        head = model.get_output_embeddings()
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
        for name, layer in self.layers.items():
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, AdapterLinear(layer, name, self.routing))

    @torch.inference_mode()
    def forward(self, parts: list[Part]) -> Tensor:
        """Append each part's tokens to its row; float32 logits (parts, V) after the last token of each.

        Parts of one adapter must lie next to each other.
        """
        device = self.model.device
        ids = [token for part in parts for token in part.token_ids]
        positions = [part.row.length + at for part in parts for at in range(len(part.token_ids))]
        ends = torch.tensor([len(part.token_ids) for part in parts], device=device).cumsum(0)
        self.routing.groups = list(_groups(parts))
        logits = self.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            logits_to_keep=ends - 1,
            use_cache=False,
            parts=parts,
        ).logits
        for part in parts:
            part.row.length += len(part.token_ids)
        return logits[0].float()


def _groups(parts: list[Part]) -> Iterator[tuple[slice, Factors]]:
    """The slice of the flat batch that each run of one adapter takes."""
    start = end = 0
    for at, part in enumerate(parts):
        end += len(part.token_ids)
        last = at + 1 == len(parts) or parts[at + 1].factors is not part.factors
        if last:
            if part.factors is not None:
                yield slice(start, end), part.factors
            start = end


def register_attention() -> None:
    """Tell transformers about `attend`; telling it twice is no harm."""
    AttentionInterface.register(ATTENTION, attend)
