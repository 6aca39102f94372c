"""Publishing a trained adapter: its proof, and the directory that serving will load.

The proof is computed in fp32, one text at a time, by the model's own forward pass, so that no shortcut of training
(shared rows, chunks, layers of our own) can hide a fault.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from assistant.models import base_model, chat_template
from assistant.models.adapter import PROOF_TEXTS, WEIGHTS, AdapterCard, AdapterRefused, Proof, read_adapter, write_card
from feedback import atomic
from feedback.messages import Message
from training.data.tokenize import Encoder
from training.model.policy import TRAINED, Backbone


def prove(backbone: Backbone, encoder: Encoder) -> list[Proof]:
    """Compute log-probs of the proof texts under adapter and base. The backbone stays in plain fp32 afterwards."""
    backbone.to_plain()
    proofs = []
    for question, answer in PROOF_TEXTS:
        prompt_ids = chat_template.encode_prompt(encoder.tokenizer, [Message("user", question)], encoder.max_length)
        reply_ids = chat_template.encode_reply(encoder.tokenizer, answer, encoder.end_id)
        ours = _plain_log_probs(backbone, prompt_ids, reply_ids)
        with backbone.as_base():
            base = _plain_log_probs(backbone, prompt_ids, reply_ids)
        proofs.append(Proof(prompt_ids, reply_ids, ours, base))
    return proofs


@torch.no_grad()
def _plain_log_probs(backbone: Backbone, prompt_ids: list[int], reply_ids: list[int]) -> list[float]:
    ids = torch.tensor([prompt_ids + reply_ids], device=backbone.device)
    logits = backbone.causal(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
    picked = logits.float().log_softmax(-1).gather(-1, ids[0, len(prompt_ids) :, None])
    return [float(each) for each in picked[:, 0]]


def write_weights(backbone: Backbone, data: Path, adapter: str) -> tuple[Path, str]:
    """Save the adapter by PEFT in a directory of a temporary name; returns it, and the hash of the weights."""
    making = data / "adapters" / f".{adapter}.making"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # save_embedding_layers="auto" would ask the hub whether the vocabulary has grown.
        backbone.peft.save_pretrained(
            str(making), safe_serialization=True, save_embedding_layers=False, selected_adapters=[TRAINED]
        )
    return making, base_model.file_sha256(making / WEIGHTS)


def complete(backbone: Backbone, making: Path, card: AdapterCard) -> None:
    """Write the card into the directory, and read the directory back as serving will.

    Raises `AdapterRefused` if what is read differs from what was trained.
    """
    write_card(making, card)
    _, factors = read_adapter(making, card.base_sha256, backbone.shapes())
    config: Any = backbone.peft.peft_config[TRAINED]
    scale = config.lora_alpha / config.r  # served factors B carry it
    layers = set()
    for name, each in backbone.parameters().items():
        layer, factor = name.removeprefix("base_model.model.").split(".lora_")
        layers.add(layer)
        read = factors[layer][factor.startswith("B.")] if layer in factors else None
        trained = each.detach().float() * (scale if factor.startswith("B.") else 1)
        if read is None or not torch.equal(read.to(trained), trained):
            raise AdapterRefused(f"adapter {card.id} reads back otherwise than it was trained, at {layer}")
    if more := set(factors) - layers:
        raise AdapterRefused(f"adapter {card.id} has a layer that was not trained: {min(more)}")


def hand_over(making: Path, adapter: str) -> None:
    """Rename the finished directory to its final name."""
    atomic.publish(making, making.with_name(adapter))
