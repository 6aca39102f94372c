"""The requests to a measured trainer, and the pairs that all trainers learn from."""

import json
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAIRS = Path(__file__).parents[3] / "shared" / "data" / "pairs_helpful_train.jsonl"
LONGEST = 512  # tokens of a prompt with its longer reply
RANK, ALPHA = 16, 32
BETA, LEARNING_RATE = 0.1, 1e-5
REPLIES, REPLY_TOKENS = 4, 48  # of rollouts


@dataclass(frozen=True)
class Asked:
    """Learn from `count` pairs (`rloo`: roll out from `count` prompts), from `first` on, in the file's order."""

    task: str  # "dpo", "dpo again" (on the same pairs, as on a second night), "reward", "rloo", "ppo" or "ceiling"
    first: int
    count: int
    batch: int


@dataclass(frozen=True)
class Learned:
    """The measurements of a turn. `peak_bytes` is the most memory that the process has ever held."""

    seconds: float
    examples: int  # pairs, or sampled replies
    tokens: int = 0  # that went through the model, each once
    flops: float = 0.0
    peak_bytes: int = 0


def pairs(tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Usable conversations with two replies, as in the file: prompt (messages), chosen, rejected."""
    for line in PAIRS.read_text().splitlines():
        row = json.loads(line)
        if row["prompt"][-1]["role"] != "user" or not row["chosen"] or not row["rejected"]:
            continue
        history = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        longer = max(len(tokenizer(row[name])["input_ids"]) for name in ("chosen", "rejected"))
        if row["chosen"] != row["rejected"] and len(history) + longer < LONGEST:
            yield row


def peak_bytes() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
