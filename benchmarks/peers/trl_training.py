"""TRL's trainers, a turn at a time. `python -m benchmarks.peers.trl_training MODEL_DIRECTORY FORMAT`.

They are set up as anyone would: a PEFT LoRA on every linear layer, TRL's own collator and order. Only `train` is timed:
loading, tokenising and making the trainer are not.
"""

import itertools
import sys
import tempfile
import time
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.peers.exchange import Ready, answer
from benchmarks.peers.schooling import (
    ALPHA,
    BETA,
    LEARNING_RATE,
    RANK,
    REPLIES,
    REPLY_TOKENS,
    Asked,
    Learned,
    pairs,
    peak_bytes,
)

MOST_PAIRS = 400


def main() -> None:
    """Answer turns with the model directory and the number format named on the command line."""
    answer(lambda: load(sys.argv[1], getattr(torch, sys.argv[2])), Asked)


def load(path: str, dtype: torch.dtype) -> Ready:
    """Load the tokenizer and the pairs; a model is loaded for every turn, as a trainer takes it over."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = list(itertools.islice(pairs(tokenizer), MOST_PAIRS))
    return Ready(lambda asked: take(asked, path, dtype, tokenizer, rows), {"version": trl.__version__})


def take(asked: Asked, path: str, dtype: torch.dtype, tokenizer: Any, rows: list[dict[str, Any]]) -> Learned:
    """Take one turn: one epoch over its pairs."""
    some = rows[asked.first : asked.first + asked.count]
    with tempfile.TemporaryDirectory() as scratch:
        common = {
            "output_dir": scratch,
            "per_device_train_batch_size": asked.batch,
            "num_train_epochs": 1,
            "learning_rate": LEARNING_RATE,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": dtype == torch.bfloat16,
        }
        trainer = {"dpo": dpo, "reward": reward, "rloo": rloo}[asked.task](path, dtype, tokenizer, some, common)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return Learned(seconds, len(some) * (REPLIES if asked.task == "rloo" else 1), peak_bytes=peak_bytes())


def lora(task: str) -> LoraConfig:
    """The same LoRA as ours."""
    return LoraConfig(task_type=task, r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear")


def as_chats(rows: list[dict[str, Any]]) -> Dataset:
    """The pairs in TRL's format for conversations."""
    return Dataset.from_list(
        [
            {"prompt": row["prompt"]}
            | {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
            for row in rows
        ]
    )


def dpo(path: str, dtype: torch.dtype, tokenizer: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """DPO, with the base (the adapter off) as the reference model."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    config = trl.DPOConfig(**common, beta=BETA, max_length=1024)
    return trl.DPOTrainer(
        model, args=config, train_dataset=as_chats(rows), processing_class=tokenizer, peft_config=lora("CAUSAL_LM")
    )


def reward(path: str, dtype: torch.dtype, tokenizer: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """A reward model."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    config = trl.RewardConfig(**common, max_length=1024)
    return trl.RewardTrainer(
        model, args=config, train_dataset=as_chats(rows), processing_class=tokenizer, peft_config=lora("SEQ_CLS")
    )


def rloo(path: str, dtype: torch.dtype, tokenizer: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """RLOO on as many rollouts as ours, with a rule as the reward."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    common = common | {"per_device_train_batch_size": len(rows) * REPLIES}
    config = trl.RLOOConfig(
        **common, num_generations=REPLIES, max_completion_length=REPLY_TOKENS, beta=0.05, temperature=0.7
    )
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    return trl.RLOOTrainer(
        model,
        reward_funcs=words,
        args=config,
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=lora("CAUSAL_LM"),
    )


def words(completions: list[Any], **rest: Any) -> list[float | None]:
    """The same rule as ours: the number of words in a reply."""
    return [float(len(each[0]["content"].split())) for each in completions]


if __name__ == "__main__":
    main()
