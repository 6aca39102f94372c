"""The fast path: many sequences in one forward pass, each with its own adapter, written out over plain tensors.

The tokens of all sequences are concatenated, so nothing is padded: the linear layers see one long batch. Sequences that
grow by one token share an attention call for each group of neighbouring slots in a slab of the KV cache; a sequence
whose prompt is being read has a call of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from assistant.engine.architectures import Family, Layer, Norm, Sizes
from assistant.engine.kv_cache import Cache, CacheSlot, Slab
from assistant.engine.lora import LoraBatch, LoraPool, LoraSlot
from assistant.engine.quant.formats import Linear, Plan
from assistant.models.adapter import Factors


@dataclass
class SequenceChunk:
    """One sequence's part of the batch: its next tokens. `lora_slot` is its adapter's; None: the base."""

    row: CacheSlot
    token_ids: list[int]
    lora_slot: Any = None


@dataclass(frozen=True)
class AttentionSpan:
    """Tokens of the flat batch that belong to one slab, and the masks of what they attend to.

    A growing span decodes one token for each of a few consecutive slots; a reading span prefills the next tokens of one
    slot.
    """

    tokens: slice
    grows: bool
    written: Tensor  # where in `flat` the keys and values of each token's heads go
    flat: Sequence[Tensor]  # the slab by layer: (slots * keys and values * kv heads * room, head width)
    keys: Sequence[Tensor]  # by layer: (slots, kv heads, length, head width)
    values: Sequence[Tensor]
    masks: dict[int | None, Tensor | None]  # by window: 0 or -inf, to be added


@dataclass
class Flat:
    """The flat batch of one step."""

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    lora_slots: list[Any] = field(default_factory=list)
    spans: list[AttentionSpan] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # where each part's last token lies, in the parts' order


class Network:
    """A model that computes a flat batch of sequences."""

    def __init__(
        self, family: Family, plan: Plan, head_plan: Plan, lineup: LoraPool, kept_dtype: torch.dtype, device: str
    ) -> None:
        self.family = family
        self.plan = plan
        self.head_plan = head_plan
        self.lineup = lineup
        self.kept_dtype = kept_dtype
        self.device = device
        self.shapes = lineup.shapes
        self.vocabulary = family.sizes.vocabulary
        self.window = 0  # set by `load.open_network`
        self._windows = {layer.window for layer in family.layers}

    @property
    def formats(self) -> str:
        """The number formats it multiplies in, joined by plus signs."""
        return "+".join(sorted(self.plan.formats | self.head_plan.formats))

    @property
    def few_rows(self) -> int:
        """The most rows that are multiplied in a format for few rows; 0 if all use the same format."""
        return self.plan.few_rows

    def weight_bytes(self, rows: int) -> int:
        """The bytes of weights that a step decoding this many rows reads."""
        few, head = self.plan.format(rows), self.head_plan.format(rows)
        layers = [each for layer in self.family.layers for each in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        return sum(each.nbytes(few) for each in layers) + self.family.head.nbytes(head)

    def new_cache(self, budget: int) -> Cache:
        """Make a KV cache of `budget` bytes."""
        return Cache(self.family.sizes, self.window, budget, self.kept_dtype, self.device)

    def add(self, factors: Factors) -> LoraSlot:
        """Load an adapter's factors; return its LoRA slot."""
        return self.lineup.add(factors)

    def holds(self, lora_slot: LoraSlot) -> bool:
        """Whether an adapter is still in memory."""
        return lora_slot in self.lineup.lora_slots

    def remove(self, lora_slot: LoraSlot) -> None:
        """Drop an adapter."""
        self.lineup.remove(lora_slot)

    @torch.inference_mode()
    def forward(self, parts: Sequence[SequenceChunk]) -> Tensor:
        """Append each part's tokens to its row; return float32 logits (parts, V) after the last token of each."""
        flat = self._flatten(parts)
        positions = torch.tensor(flat.positions, device=self.device)
        rotations = [rope.rotations(positions) for rope in self.family.ropes]
        choice = self.lineup.choose(flat.lora_slots)
        number_format = self.plan.format(len(flat.token_ids))
        sizes = self.family.sizes

        x = self.family.embedding[torch.tensor(flat.token_ids, device=self.device)].float()
        if sizes.embedding_scale != 1:
            x *= sizes.embedding_scale
        for at, layer in enumerate(self.family.layers):
            step = Step(sizes, layer, at, choice, number_format)
            h = step.attend(layer.before_attention(x), flat.spans, rotations[layer.rope])
            x = step.join(x, "out", layer.out, h, layer.after_attention)
            h = step.think(layer.before_mlp(x))
            x = step.join(x, "down", layer.down, h, layer.after_mlp)
        if flat.ends != list(range(len(x))):
            x = x[torch.tensor(flat.ends, device=self.device)]
        logits = self.family.head(self.family.final_norm(x), self.head_plan.format(len(x))).float()
        for part in parts:
            part.row.token_ids += part.token_ids
        if sizes.logit_cap is not None:
            logits = torch.tanh(logits / sizes.logit_cap) * sizes.logit_cap
        return logits

    def _flatten(self, parts: Sequence[SequenceChunk]) -> Flat:
        flat = Flat(ends=[0] * len(parts))
        growing: dict[int, list[int]] = {}  # parts of one token, by slab
        for at, part in enumerate(parts):
            if len(part.token_ids) == 1 and part.row.length:
                growing.setdefault(id(part.row.slab), []).append(at)
        for of_slab in growing.values():
            for group in _neighbours(parts, of_slab):
                self._add_growing(flat, parts, group)
        grown = {at for group in growing.values() for at in group}
        for at, part in enumerate(parts):  # after the growing ones: see `_add_growing`
            if at not in grown:
                self._add_reading(flat, part)
                flat.ends[at] = len(flat.token_ids) - 1
        return flat

    def _add_growing(self, flat: Flat, parts: Sequence[SequenceChunk], group: list[int]) -> None:
        """Add a token for each slot from the first of these parts' to the last.

        A slot in between that does not grow now is computed too, with a dummy token: what it writes lies behind the
        last token of its slot, where the next real one overwrites it.
        """
        slab = parts[group[0]].row.slab
        by_slot = {parts[at].row.slot: at for at in group}
        start, slots = len(flat.token_ids), range(min(by_slot), max(by_slot) + 1)
        lengths = []
        for slot in slots:
            at = by_slot.get(slot)
            row = slab.rows[slot]
            lengths.append(row.length if row is not None else 0)
            if at is not None:
                flat.ends[at] = len(flat.token_ids)
            flat.token_ids.append(parts[at].token_ids[0] if at is not None else 0)
            flat.lora_slots.append(parts[at].lora_slot if at is not None else _any_seat(parts, group))
        flat.positions += lengths
        positions = torch.tensor(lengths, device=self.device)
        seen = max(part.row.length for part in (parts[at] for at in group)) + 1
        masks = {window: self._growing_mask(positions, seen, window) for window in self._windows}
        tokens = slice(start, start + len(slots))
        flat.spans.append(self._span(slab, tokens, slots, True, seen, positions, masks))

    def _growing_mask(self, positions: Tensor, seen: int, window: int | None) -> Tensor | None:
        """The mask (slots, 1, 1, seen); None if nothing is hidden."""
        if len(positions) == 1 and (window is None or seen <= window):
            return None
        keys = torch.arange(seen, device=self.device)
        hidden = keys > positions[:, None]
        if window is not None:
            hidden |= keys <= positions[:, None] - window
        return torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)[:, None, None]

    def _add_reading(self, flat: Flat, part: SequenceChunk) -> None:
        row, start, count = part.row, len(flat.token_ids), len(part.token_ids)
        flat.token_ids += part.token_ids
        positions = range(row.length, row.length + count)
        flat.positions += positions
        flat.lora_slots += [part.lora_slot] * count
        masks = {window: self._reading_mask(row.length, count, window) for window in self._windows}
        tokens = slice(start, start + count)
        slots = range(row.slot, row.slot + 1)
        written = torch.arange(row.length, row.length + count, device=self.device)
        flat.spans.append(self._span(row.slab, tokens, slots, False, row.length + count, written, masks))

    def _reading_mask(self, length: int, count: int, window: int | None) -> Tensor | None:
        """The mask (heads that share keys x count, length + count); None: causal, from the beginning."""
        if length == 0 and (window is None or count <= window):
            return None
        positions = torch.arange(length, length + count, device=self.device)[:, None]
        keys = torch.arange(length + count, device=self.device)
        hidden = keys > positions
        if window is not None:
            hidden |= keys <= positions - window
        times = self.family.sizes.heads // self.family.sizes.kv_heads
        return torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf).repeat(times, 1)

    def _span(
        self,
        slab: Slab,
        tokens: slice,
        slots: range,
        grows: bool,
        length: int,
        positions: Tensor,
        masks: dict[int | None, Tensor | None],
    ) -> AttentionSpan:
        """Tokens at `positions` of these slots, one each or all in one slot, that attend to the first `length` keys."""
        keys, values = slab.data[:, slots.start : slots.stop, ..., :length, :].unbind(2)
        heads = 2 * self.family.sizes.kv_heads
        of_slot = torch.arange(slots.start, slots.stop, device=self.device)[:, None] * heads
        at_head = (of_slot + torch.arange(heads, device=self.device)) * slab.room
        written = (at_head + positions[:, None]).flatten()
        flat = slab.data.flatten(1, 4).unbind(0)
        return AttentionSpan(tokens, grows, written, flat, keys.unbind(0), values.unbind(0), masks)


def _neighbours(parts: Sequence[SequenceChunk], group: Sequence[int]) -> Iterator[list[int]]:
    """The parts of one slab in the order of their slots, in groups separated by more than one slot that does not grow.

    Computing one idle slot is faster than another attention call.
    """
    ordered = sorted(group, key=lambda at: parts[at].row.slot)
    near = [ordered[0]]
    for at in ordered[1:]:
        if parts[at].row.slot > parts[near[-1]].row.slot + 2:
            yield near
            near = []
        near.append(at)
    yield near


def _any_seat(parts: Sequence[SequenceChunk], group: list[int]) -> Any:
    """The LoRA slot of an adapter that is in the batch anyway, for a dummy token."""
    return parts[group[0]].lora_slot


@dataclass(frozen=True)
class Step:
    """One layer in one step."""

    sizes: Sizes
    layer: Layer
    at: int
    choice: LoraBatch | None
    number_format: str

    def attend(self, h: Tensor, spans: Sequence[AttentionSpan], rotations: Tensor) -> Tensor:
        """The attention output (T, heads x head width) of tokens (T, width); writes keys and values to the slabs."""
        sizes, layer = self.sizes, self.layer
        qkv = self._product("qkv", layer.qkv, h).float()
        heads = qkv[:, : sizes.turned_width].unflatten(1, (-1, sizes.head_width))
        if layer.query_norm is not None and layer.key_norm is not None:
            heads[:, : sizes.heads] = layer.query_norm(heads[:, : sizes.heads])
            heads[:, sizes.heads :] = layer.key_norm(heads[:, sizes.heads :])
        torch.view_as_complex(heads.unflatten(2, (-1, 2))).mul_(rotations)
        own = qkv.to(spans[0].flat[0].dtype)
        queries, kept = own[:, : sizes.query_width], own[:, sizes.query_width :]
        out = []
        for span in spans:
            own_kept = kept if len(spans) == 1 else kept[span.tokens]
            span.flat[self.at].index_copy_(0, span.written, own_kept.reshape(-1, sizes.head_width))
            attention = self._grow if span.grows else self._read
            out.append(attention(queries if len(spans) == 1 else queries[span.tokens], span))
        return out[0] if len(out) == 1 else torch.cat(out)

    def think(self, h: Tensor) -> Tensor:
        """The MLP of the flat batch (T, width), up to its last projection."""
        gate, up = self._product("gate_up", self.layer.gate_up, h).chunk(2, dim=1)
        return self.sizes.activation(gate) * up

    def join(self, x: Tensor, group: str, linear: Linear, h: Tensor, norm: Norm | None) -> Tensor:
        """Add the output of a block's last projection to x (T, width), in place, normed where the model does that."""
        if norm is not None:
            return x.add_(norm(self._product(group, linear, h).float()))
        x += linear(h, self.number_format)
        return x if self.choice is None else self.choice.add(self.at, group, h, x)

    def _product(self, group: str, linear: Linear, h: Tensor) -> Tensor:
        y = linear(h, self.number_format)
        return y if self.choice is None else self.choice.add(self.at, group, h, y)

    def _grow(self, queries: Tensor, span: AttentionSpan) -> Tensor:
        """Decode one token for each slot: the heads that share keys are treated as queries of one head."""
        sizes = self.sizes
        grouped = queries.view(len(queries), sizes.kv_heads, -1, sizes.head_width)
        return self._attention(grouped, span.keys[self.at], span.values[self.at], span).flatten(1)

    def _read(self, queries: Tensor, span: AttentionSpan) -> Tensor:
        """Prefill tokens of one sequence: with a mask, the heads that share keys become more queries of one head."""
        sizes, keys, values = self.sizes, span.keys[self.at], span.values[self.at]
        heads = queries.view(1, len(queries), sizes.heads, sizes.head_width).transpose(1, 2)
        if span.masks[self.layer.window] is None:
            times = sizes.heads // sizes.kv_heads
            out = self._attention(heads, keys.repeat_interleave(times, 1), values.repeat_interleave(times, 1), span)
        else:
            out = self._attention(heads.reshape(1, sizes.kv_heads, -1, sizes.head_width), keys, values, span)
        return out.view(heads.shape)[0].transpose(0, 1).flatten(1)

    def _attention(self, queries: Tensor, keys: Tensor, values: Tensor, span: AttentionSpan) -> Tensor:
        mask = span.masks[self.layer.window]
        causal = mask is None and not span.grows
        if self.sizes.attention_cap is None:
            if mask is not None:
                mask = mask.to(queries.dtype)
            return F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=causal, scale=self.sizes.scaling
            )
        cap = self.sizes.attention_cap
        scores = torch.tanh(queries @ keys.transpose(-1, -2) * (self.sizes.scaling / cap)) * cap
        if causal:
            count = scores.shape[-1]
            scores = scores + torch.full((count, count), -torch.inf, device=scores.device).triu_(1)
        elif mask is not None:
            scores = scores + mask
        return torch.softmax(scores, dim=-1) @ values
