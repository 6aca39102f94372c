"""Attention over a pack: every token of the tree attends to itself and its ancestors, and to nothing else.

It plugs into transformers' own layers, so no model is reimplemented. Without a pack it is their SDPA attention.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from training.model.packing import Block

TREE = "nightschool_tree"  # its name in transformers' attention registry
FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
KEYS = 8  # key counts are padded to multiples: any other takes twice as long in the bf16 forward pass
SHORT = 192  # blocks of fewer queries run their backward pass in fp32, as bf16 takes twice as long


def lend(model: Any) -> None:
    """Make a transformers model use tree attention; without blocks it uses plain SDPA."""
    AttentionInterface.register(TREE, tree_attention)
    model.set_attn_implementation(TREE)


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    blocks: Sequence[Block] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attend with queries (1, H, T, D) to keys and values (1, G, T, D), H a multiple of G; returns (1, T, H, D)."""
    if blocks is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
        return out, None
    if query.device.type == "cpu" and not softcap:
        return _OnProcessor.apply(query, key, value, blocks, sliding_window, scaling).transpose(1, 2), None
    return by_blocks(query, key, value, blocks, sliding_window, scaling, softcap).transpose(1, 2), None


def by_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Sequence[Block],
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Tree attention block by block, from torch's differentiable operations, on any device: (1, H, T, D)."""
    times = query.shape[1] // key.shape[1]
    parts = []
    for number, block in enumerate(blocks):
        own_keys, own_values = (_seen(each, number, blocks, times) for each in (key, value))
        own_query, mask = query[:, :, block.start : block.stop], _mask(number, blocks, window)
        if softcap:
            parts.append(_capped(own_query, own_keys, own_values, mask, scale, softcap))
        else:
            parts.append(
                F.scaled_dot_product_attention(
                    own_query, own_keys, own_values, attn_mask=mask, is_causal=mask is None, scale=scale
                )
            )
    return torch.cat([*parts, query[:, :, blocks[-1].stop :]], dim=2)


class _OnProcessor(torch.autograd.Function):
    """`by_blocks` by torch's CPU kernels, each called in its fastest form; saves no copies of keys for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: Sequence[Block],
        window: int | None,
        scale: float | None,
    ) -> Tensor:
        times = query.shape[1] // key.shape[1]
        out = torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        sums = []
        for number, block in enumerate(blocks):
            here = slice(block.start, block.stop)
            own_keys, own_values = (_seen(each, number, blocks, times, KEYS) for each in (key, value))
            mask = _added(number, blocks, window, query.dtype)
            out[:, :, here], log_sum = FORWARD(
                query[:, :, here], own_keys, own_values, 0.0, mask is None, attn_mask=mask, scale=scale
            )
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.blocks, ctx.window, ctx.scale = blocks, window, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *sums = ctx.saved_tensors
        blocks, times = ctx.blocks, query.shape[1] // key.shape[1]
        to_query = torch.zeros_like(query)
        to_key, to_value = (torch.zeros_like(each, dtype=_at_least_fp32(each.dtype)) for each in (key, value))
        for number, block in enumerate(blocks):
            here = slice(block.start, block.stop)
            own_keys, own_values = (_seen(each, number, blocks, times, KEYS) for each in (key, value))
            dtype = _at_least_fp32(query.dtype) if block.stop - block.start < SHORT else query.dtype
            mask = _added(number, blocks, ctx.window, dtype)
            given = (grads[0][:, :, here], query[:, :, here], own_keys, own_values, out[:, :, here])
            to_query[:, :, here], slope_keys, slope_values = BACKWARD(
                *(each.to(dtype) for each in given),
                sums[number],
                0.0,
                mask is None,
                attn_mask=mask,
                scale=ctx.scale,
            )
            for to, slope in ((to_key, slope_keys), (to_value, slope_values)):
                of_groups = slope.unflatten(1, (-1, times)).sum(2, dtype=to.dtype)
                at = 0
                for each in (*block.before, number):
                    start, stop = blocks[each].start, blocks[each].stop
                    to[:, :, start:stop] += of_groups[:, :, at : at + stop - start]
                    at += stop - start
        return to_query, to_key.to(key.dtype), to_value.to(value.dtype), None, None, None


def _seen(of: Tensor, number: int, blocks: Sequence[Block], times: int, multiple: int = 1) -> Tensor:
    """The keys or values (1, G, T, D) that a block attends to, its own last: (1, H, K, D).

    Repeated for each head of a group, and zero-padded at the end to a multiple of `multiple`.
    """
    parts = [of[:, :, blocks[each].start : blocks[each].stop] for each in (*blocks[number].before, number)]
    missing = -sum(each.shape[2] for each in parts) % multiple
    if missing:
        parts.append(of.new_zeros(*of.shape[:2], missing, of.shape[3]))
    together = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
    return together.repeat_interleave(times, dim=1) if times > 1 else together


def _added(number: int, blocks: Sequence[Block], window: int | None, dtype: torch.dtype) -> Tensor | None:
    """`_mask` in additive form, padded as the keys are, and cached in the block: (n, K); None where `_mask` is None."""
    kept = blocks[number].masks
    if (window, dtype) not in kept:
        mask = _mask(number, blocks, window)
        if mask is not None:
            mask = F.pad(mask, (0, -mask.shape[1] % KEYS))
            mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
        kept[window, dtype] = mask
    added: Tensor | None = kept[window, dtype]
    return added


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _mask(number: int, blocks: Sequence[Block], window: int | None) -> Tensor | None:
    """Boolean mask (n, P + n), true where a token may attend, P ancestors' keys first; None: plain causal, P = 0."""
    block = blocks[number]
    own, keys = len(block.depths), torch.cat([blocks[each].depths for each in (*block.before, number)])
    near = bool(window) and int(keys.max()) - int(keys.min()) < (window or 0)
    if len(keys) == own and block.sees is None and (near or not window):
        return None
    sees = block.sees
    if sees is None:
        sees = torch.ones(own, own, dtype=torch.bool, device=keys.device).tril()
    sees = F.pad(sees, (len(keys) - own, 0), value=True)
    return sees & (block.depths[:, None] - keys < window) if window and not near else sees


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, cap: float) -> Tensor:
    """Attention with scores soft-capped at `cap` by a tanh (arXiv 2408.00118, section 2)."""
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    scores = cap * torch.tanh(scores / cap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~mask, -torch.inf).float().softmax(-1).to(value.dtype) @ value
