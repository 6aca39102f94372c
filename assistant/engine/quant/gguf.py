"""The embedded model's own four-bit weights, read from its file unchanged.

Its weights were rounded to four bits once. Repacking those numbers loses almost nothing; rounding the dequantised
weights a second time would lose more. (Q4_1, as ggml defines it: for each 32 weights a float16 scale, a float16 minimum
and 16 bytes of two weights each.)
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assistant.engine.quant.formats import BLOCK, FourBit

BLOCK_BYTES = 4 + BLOCK // 2
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def read_four_bit(gguf_file: Path, config: Any) -> dict[str, FourBit]:
    """Read the four-bit weights of a Llama-shaped model in a gguf file, by transformers' names for its layers."""
    import gguf

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_file).tensors}
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    found = {}
    for layer in range(config.num_hidden_layers):
        for name, own in NAMES.items():
            tensor = tensors[f"blk.{layer}.{own}.weight"]
            if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1:
                weight = _unpacked(tensor)
                if name in heads:
                    weight = weight.rows(_halves_together(len(weight.q), heads[name]))
                found[f"model.layers.{layer}.{name}"] = weight
    return found


def _unpacked(tensor: Any) -> FourBit:
    inputs, outputs = (int(size) for size in tensor.shape)
    blocks = np.asarray(tensor.data).reshape(outputs, inputs // BLOCK, BLOCK_BYTES)
    halves = np.ascontiguousarray(blocks[..., :4]).view(np.float16).astype(np.float32)
    packed = blocks[..., 4:]
    q = np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int32).reshape(outputs, inputs)
    return FourBit(torch.from_numpy(q), torch.from_numpy(halves[..., 0]), torch.from_numpy(halves[..., 1]))


def _halves_together(rows: int, heads: int) -> Tensor:
    """The order that turns the file's alternating halves of a head into transformers' consecutive ones."""
    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).flatten()
