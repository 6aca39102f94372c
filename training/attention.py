"""Attention over a pack: every block of the tree sees itself and its own way from the root, and nothing else.

It is lent to transformers' own layers, so that no model is written twice. Without a pack it is their SDPA.
Left out on purpose: which token is where (`rows`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from training.rows import Block

TREE = "nightschool_tree"  # its name among transformers' kinds of attention


def lend(model: Any) -> None:
    """Let a model of transformers attend by trees; plain SDPA where it is given no blocks."""
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
    """Queries (1, H, T, D) over keys and values (1, G, T, D), H a multiple of G; (1, T, H, D) out."""
    if blocks is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
        return out, None
    if query.shape[1] != key.shape[1]:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
    tail = query.shape[2] - blocks[-1].stop
    sizes = [each.stop - each.start for each in blocks] + [tail]
    queries, keys, values = (each.split(sizes, dim=2) for each in (query, key, value))
    parts = []
    for number, block in enumerate(blocks):
        seen = (*block.before, number)
        own_keys = torch.cat([keys[each] for each in seen], dim=2) if block.before else keys[number]
        own_values = torch.cat([values[each] for each in seen], dim=2) if block.before else values[number]
        mask = _mask(block, [blocks[each].depths for each in seen], sliding_window)
        if softcap:
            parts.append(_capped(queries[number], own_keys, own_values, mask, scaling, softcap))
        else:
            parts.append(
                F.scaled_dot_product_attention(
                    queries[number], own_keys, own_values, attn_mask=mask, is_causal=mask is None, scale=scaling
                )
            )
    return torch.cat([*parts, queries[-1]], dim=2).transpose(1, 2), None


def _mask(block: Block, depths: Sequence[Tensor], window: int | None) -> Tensor | None:
    """(n, P + n) bool, true where a token may look; None: at itself and all before it, and there is no P."""
    own, keys = len(block.depths), torch.cat(list(depths))
    near = bool(window) and int(keys.max()) - int(keys.min()) < (window or 0)
    if len(keys) == own and block.sees is None and (near or not window):
        return None
    sees = block.sees
    if sees is None:
        sees = torch.ones(own, own, dtype=torch.bool, device=keys.device).tril()
    sees = F.pad(sees, (len(keys) - own, 0), value=True)
    return sees & (block.depths[:, None] - keys < window) if window and not near else sees


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, cap: float) -> Tensor:
    """Attention whose scores stay within `cap` by a tanh (arXiv 2408.00118, section 2)."""
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    scores = cap * torch.tanh(scores / cap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~mask, -torch.inf).float().softmax(-1).to(value.dtype) @ value
