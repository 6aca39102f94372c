"""The error of eight-bit weights in a model, measured before any reply is written with them.

Models differ: a few large weights in a row make the scale too coarse for all others of the row.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.engine.quant.formats import eight_bits
from assistant.models import chat_template
from assistant.models.adapter import PROOF_TEXTS
from assistant.models.base_model import Base, load_tokenizer
from feedback.messages import Message

MOST_NATS = 0.01  # per token: the most that a format may cost if nobody asked for it by name


@torch.inference_mode()
def cost_of_eight_bits(base: Base, model: Any) -> float:
    """Mean KL(p || q) over the tokens of some replies, in nats.

    p are the model's next-token distributions, q those with every linear layer's weight rounded.
    """
    tokenizer = load_tokenizer(base)
    texts = []
    for question, answer in PROOF_TEXTS:
        start = chat_template.encode_prompt(
            tokenizer, [Message("user", question)], model.config.max_position_embeddings
        )
        reply = tokenizer(answer, add_special_tokens=False)["input_ids"]
        start, reply = ([each for each in ids if each < model.config.vocab_size] for ids in (start, reply))
        texts.append((torch.tensor([start + reply]), len(start)))
    exact = [_log_probs(model, *each) for each in texts]
    hooks = [each.register_forward_hook(_rounded) for each in model.modules() if isinstance(each, nn.Linear)]
    rounded = [_log_probs(model, *each) for each in texts]
    for each in hooks:
        each.remove()
    p, q = torch.cat(exact), torch.cat(rounded)
    return float((p.exp() * (p - q)).sum(-1).mean())


def _log_probs(model: Any, ids: Tensor, first: int) -> Tensor:
    """The log-probs (T - first, V) that the tokens from `first` on are drawn from, of ids (1, T)."""
    return torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, first - 1 : -1].float(), dim=-1)


def _rounded(layer: nn.Linear, inputs: tuple[Tensor], _: Tensor) -> Tensor:
    """A forward hook: the layer's output with eight-bit weights."""
    q, scale = eight_bits(layer.weight)
    return F.linear(inputs[0], (q * scale.float()[:, None]).to(layer.weight), layer.bias)
