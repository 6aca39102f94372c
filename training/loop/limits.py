"""What a base model and this machine allow of a night's settings, checked before the night begins and loads weights."""

from collections.abc import Collection
from typing import Any

import psutil
import torch

from assistant.models import base_model, chat_template
from assistant.models.base_model import Base
from feedback.errors import Refused
from feedback.messages import Message
from training.loop.config import Config

MOST_STEPS = 1_000_000  # at a second each, twelve days
SHORTEST_REPLY = 2  # tokens: one of text, and the end of turn
BYTES_EACH = 16  # of a trained number: itself, its gradient, and Adam's two means, in fp32
GIB = 2**30


def require_possible(base: Base, config: Config, asked: Collection[str]) -> None:
    """Raise `Refused` on settings that this base or this machine has no room for.

    `asked` names the settings that somebody chose: the default `max_length` adapts to the base's window instead.
    """
    about = config_of(base)
    if about is None:
        return
    window, width = getattr(about, "max_position_embeddings", None), getattr(about, "hidden_size", None)
    if "max_length" in asked:
        require_length(base, config.max_length, window)
    if width and config.rank > width:
        raise Refused(f"rank is at most {width:,}, the width of the model {base.name!r}, not {config.rank:,}")
    need, there = adapter_bytes(about, config), memory_bytes()
    if need > there:
        raise Refused(
            f"adapters of rank {config.rank:,} take about {need / GIB:,.1f} GiB to train on the model {base.name!r}, "
            f"and this machine has {there / GIB:,.1f}; lower rank or ensemble_size"
        )


def require_steps(config: Config, examples: int) -> None:
    """Raise `Refused` if the epochs over so many examples would take more than `MOST_STEPS` steps."""
    steps = config.count_steps(max(1, examples)) * getattr(config, "ensemble_size", 1)
    if steps > MOST_STEPS:
        raise Refused(
            f"these settings make {steps:,} steps of {examples:,} examples, and a night takes at most {MOST_STEPS:,}; "
            "lower epochs, or raise batch_size"
        )


def require_length(base: Base, length: int, window: int | None) -> None:
    """Raise `Refused` on a `max_length` beyond the base's window, or below its shortest prompt and reply."""
    if window and length > window:
        raise Refused(f"max_length is at most {window:,}, the window of the model {base.name!r}, not {length:,}")
    tokenizer = base_model.load_tokenizer(base)
    prompt = chat_template.encode_prompt(tokenizer, [Message("user", "?")], window or length + 1_000_000)
    least = len(prompt) + SHORTEST_REPLY
    if length < least:
        raise Refused(
            f"max_length is at least {least:,}, which the shortest prompt and reply of the model {base.name!r} take, "
            f"not {length:,}"
        )


def config_of(base: Base) -> Any:
    """The base's configuration as transformers reads it; None if it cannot, which loading the base says in words."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=False).get_text_config()
    except Exception:  # a damaged or foreign file fails in many ways
        return None


def adapter_bytes(about: Any, config: Config) -> int:
    """About how much memory training takes for the adapters alone, in bytes: the policy and any reward models."""
    width, layers = getattr(about, "hidden_size", 0) or 0, getattr(about, "num_hidden_layers", 0) or 0
    inner = getattr(about, "intermediate_size", None) or 4 * width
    # A layer's numbers for each rank: inputs and outputs of attention's four matrices and of the MLP's three.
    of_layer = 4 * 2 * width + 3 * (width + inner)
    models = 1 + getattr(config, "ensemble_size", 0)
    return int(models * layers * config.rank * of_layer * BYTES_EACH)


def memory_bytes() -> int:
    """The memory that training has on this machine, in bytes: the GPU's if there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return int(psutil.virtual_memory().total)
