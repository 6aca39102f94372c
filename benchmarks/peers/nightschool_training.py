"""Our own training, a turn at a time. `python -m benchmarks.peers.nightschool_training MODEL FORMAT`.

The loops are those of a night; only the files that a night writes are left out.
"""

import itertools
import sys
import time

import torch

from assistant.environment import prepare
from benchmarks.peers.exchange import Ready, answer
from benchmarks.peers.schooling import ALPHA, BETA, LEARNING_RATE, RANK, Asked, Learned, pairs, peak_bytes

MATRIX = (1024, 1536, 576)  # about the sizes of the embedded model's
MOST_PAIRS = 400


def main() -> None:
    """Answer turns with the model and the number format named on the command line."""
    prepare(sys.argv[1])
    answer(lambda: load(sys.argv[1], sys.argv[2]), Asked)


def load(name: str, number_format: str) -> Ready:
    """Load one backbone for all turns."""
    from assistant.models import base_model
    from feedback.example_types import Answer, Examples, PreferencePair
    from feedback.messages import Message
    from training.algorithms.dpo_kto import PreferenceConfig
    from training.data.tokenize import tokenize
    from training.model.policy import Backbone
    from training.night.learning import make_encoder

    base = base_model.find_base(name)
    backbone = Backbone(base, getattr(torch, number_format), "cpu", RANK, ALPHA, seed=0)
    encoder = make_encoder(base, backbone, PreferenceConfig())
    rows = itertools.islice(pairs(encoder.tokenizer), MOST_PAIRS)
    examples = Examples(
        tuple(
            PreferencePair(
                tuple(Message(**each) for each in row["prompt"]), Answer(row["chosen"]), Answer(row["rejected"])
            )
            for row in rows
        )
    )
    return Ready(School(backbone, tokenize(examples, encoder)[0]).take, {"torch": torch.__version__})


class School:
    """The backbone, and what is kept between two turns."""

    def __init__(self, backbone, examples) -> None:
        from training.model.reference import References

        self.backbone, self.examples = backbone, examples
        self.references = References(backbone)

    def take(self, asked: Asked) -> Learned:
        """Take one turn."""
        if asked.task == "ceiling":
            return ceiling(self.backbone.head.dtype)
        examples = self.examples[asked.first : asked.first + asked.count]
        if asked.task == "reward":
            return self.reward(examples, asked.batch)
        if asked.task in ("rloo", "ppo"):
            from benchmarks.peers.nightschool_rollouts import take

            return take(self.backbone, examples, asked)
        return self.dpo(examples, asked.batch, again=asked.task == "dpo again")

    def dpo(self, examples, size: int, again: bool) -> Learned:
        """Train by DPO for one epoch; with `again`, the reference model's log-probs are known already."""
        from training.algorithms import dpo_kto
        from training.loop.loop import train
        from training.model.packing import pack
        from training.model.reference import References

        config = dpo_kto.PreferenceConfig(
            epochs=1,
            min_steps=1,
            batch_size=size,
            beta=BETA,
            learning_rate=LEARNING_RATE,
            evals_per_epoch=1,
            kl_budget=1e9,
        )
        if not again:
            self.references = References(self.backbone)
        started = time.perf_counter()
        trainer = dpo_kto.PreferenceTrainer(self.backbone, examples, config, (), self.references)
        for _ in train(trainer, trainer.begin()):
            pass
        seconds = time.perf_counter() - started
        rows = [each.row() for each in examples]
        tokens, read = sum(len(pack([row]).ids) for row in rows), sum(row.reply_tokens for row in rows)
        passes = 2 + (0 if again else 1)  # forward, backward, once for the reference; frozen weights have no gradient
        flops = passes * 2.0 * (tokens * inner_weights(self.backbone) + read * self.backbone.head.numel())
        return Learned(seconds, len(examples), tokens, flops, peak_bytes())

    def reward(self, examples, size: int) -> Learned:
        """Train one reward model for one epoch."""
        from training.algorithms import reward_model

        config = reward_model.RewardConfig(
            ensemble_size=1, epochs=1, min_steps=1, batch_size=size, learning_rate=LEARNING_RATE
        )
        own = reward_model.group_by_prompt(examples)
        trainer = reward_model.EnsembleTrainer(self.backbone, own, config)
        state = trainer.begin()
        started = time.perf_counter()
        while state.step < trainer.steps:  # the steps alone: TRL has no fit before them
            trainer.step(state)
            state.step += 1
        seconds = time.perf_counter() - started
        self.backbone.drop(reward_model.name_of(0))
        return Learned(seconds, len(examples), sum(each.row().tokens for each in own), 0.0, peak_bytes())


def inner_weights(backbone) -> int:
    """The weights that every token is multiplied by, LoRA included."""
    return sum(rows * columns for rows, columns in backbone.shapes().values()) - (
        0 if backbone.causal.config.tie_word_embeddings else backbone.head.numel()
    )


def ceiling(dtype: torch.dtype) -> Learned:
    """Measure how fast this machine multiplies matrices of about these sizes: the best of ten tries."""
    rows, outward, inward = MATRIX
    left, right = torch.ones(rows, inward, dtype=dtype), torch.ones(outward, inward, dtype=dtype)
    best = min(_multiply(left, right) for _ in range(10))
    return Learned(best, 1, rows, 2.0 * rows * outward * inward * 20, peak_bytes())


def _multiply(left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    for _ in range(20):
        left @ right.T
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
