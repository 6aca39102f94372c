"""The material of the serving benchmark: prompts of real text, adapters that change every layer, real conversations.

Prompts differ from their first token on, so that no program can share a prefix between two of them.
"""

import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from assistant.models import adapter, base_model, chat_template
from assistant.models.adapter import AdapterCard
from assistant.models.base_model import Base
from feedback.errors import Refused
from feedback.messages import Message

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
SPARE = ROOT / "training" / "rehearsal" / "prompts.txt"
RANK, ALPHA = 16, 16
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LONGEST_PROMPT, LONGEST_REPLY = 512, 128  # tokens of a conversation


@dataclass(frozen=True)
class Conversation:
    """A real conversation, as the model reads it."""

    prompt_ids: list[int]
    reply_ids: list[int]


def texts() -> Iterator[str]:
    """Real text: the shared instructions and prompts, if any, then the questions that this project carries itself."""
    for file in [*sorted(DATA.glob("prompts_*.jsonl")), DATA / "instructions.jsonl"]:
        for line in file.read_text().splitlines() if file.is_file() else []:
            row = json.loads(line)
            yield "\n".join(row["turns"] if "turns" in row else [each["content"] for each in row["messages"]])
    yield from SPARE.read_text().splitlines()


def prompts(tokenizer: Any, length: int) -> Iterator[list[int]]:
    """Prompts of `length` token ids, no two with the same first token. Raises `Refused` once the text is used up."""
    ids = [each for text in texts() for each in tokenizer(text + "\n")["input_ids"]]
    begun = set(tokenizer.all_special_ids)
    yielded = True
    while yielded:  # another pass through the text, from other places
        yielded, at = False, 0
        while at + length <= len(ids):
            if ids[at] in begun:
                at += 1
                continue
            begun.add(ids[at])
            yield ids[at : at + length]
            yielded, at = True, at + length
    raise Refused(f"there is not enough text for more prompts: looked in {DATA} and {SPARE}")


def make_adapters(base: Base, folder: Path, count: int) -> list[Path]:
    """Write adapters as a night does, of rank 16 on every linear layer, with random weights that change every reply."""
    from safetensors.torch import save_file

    shapes = {name: each.shape for name, each in linear_layers(base)}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "target_modules": list(LAYERS),
        "bias": "none",
    }
    made = []
    for seed in range(count):
        directory = folder / f"adapter-{seed}"
        directory.mkdir()
        save_file(random_factors(shapes, seed), directory / adapter.WEIGHTS)
        (directory / adapter.CONFIG).write_text(json.dumps(config))
        sha256 = base_model.file_sha256(directory / adapter.WEIGHTS)
        card = AdapterCard(directory.name, base.name, base.sha256, None, "dpo", sha256, "", {}, {}, seed, {})
        adapter.write_card(directory, card)
        made.append(directory)
    return made


def linear_layers(base: Base) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that an adapter changes, (out, in) each, by layer name."""
    model = base_model.load_model(base, torch.bfloat16, "cpu")
    for name, each in model.named_parameters():
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] in LAYERS:
            yield layer, each


def random_factors(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """LoRA factors under PEFT's names: a as at the start of training, b as if trained for a while."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for layer, (out_width, in_width) in shapes.items():
        a = (torch.rand(RANK, in_width, generator=generator) * 2 - 1) / math.sqrt(in_width)  # Kaiming, a = sqrt(5)
        factors[f"base_model.model.{layer}.lora_A.weight"] = a
        factors[f"base_model.model.{layer}.lora_B.weight"] = 0.01 * torch.randn(out_width, RANK, generator=generator)
    return factors


def conversations(tokenizer: Any, count: int) -> list[Conversation]:
    """Held-out conversations with the reply that people chose. Raises `Refused` if their file is missing."""
    file = DATA / "pairs_helpful_test.jsonl"
    if not file.is_file():
        raise Refused(f"there is no {file}")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    random.Random(0).shuffle(rows)
    return list(itertools.islice((each for row in rows if (each := conversation(tokenizer, row))), count))


def conversation(tokenizer: Any, row: dict[str, Any]) -> Conversation | None:
    """The conversation of one row of pairs; None if its prompt is too long or its reply empty."""
    messages: Sequence[Message] = [Message(each["role"], each["content"]) for each in row["prompt"]]
    prompt_ids = chat_template.encode_prompt(tokenizer, messages, 10**6)
    reply_ids = tokenizer(row["chosen"], add_special_tokens=False)["input_ids"][:LONGEST_REPLY]
    return Conversation(prompt_ids, reply_ids) if reply_ids and len(prompt_ids) <= LONGEST_PROMPT else None
