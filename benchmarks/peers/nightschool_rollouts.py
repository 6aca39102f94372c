"""Our on-policy training, a turn at a time: RLOO with a rule as reward, PPO with all of its models on one base."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.schooling import LEARNING_RATE, REPLIES, REPLY_TOKENS, Asked, Learned, peak_bytes
from training.algorithms import ppo, reward_model, rloo
from training.data.tokenize import TokenizedExample
from training.loop.loop import train
from training.model.policy import Backbone
from training.rollouts.on_policy import PolicyTrainer
from training.rollouts.sampler import Rollout, Sampler, Score

MEMBERS = 3


@cache
def sampler_for(backbone: Backbone) -> Sampler:
    """The serving engine in the trainer's number format, kept for all turns."""
    from assistant.models import base_model

    number_format = str(backbone.head.dtype).removeprefix("torch.")
    return Sampler(backbone.base, number_format, backbone.device, base_model.load_tokenizer(backbone.base))


def take(backbone: Backbone, examples: Sequence[TokenizedExample], asked: Asked) -> Learned:
    """Take one step over the examples' prompts: rollouts, scores, learning."""
    sampler = sampler_for(backbone)
    prompts = [example.prompt_ids for example in examples]
    common: dict[str, Any] = {
        "steps": 1,
        "prompts": len(prompts),
        "replies": REPLIES,
        "max_completion_length": REPLY_TOKENS,
    }
    common |= {"learning_rate": LEARNING_RATE, "kl_budget": 1e9}
    if asked.task == "rloo":
        config = rloo.RlooConfig(**common)
        trainer: PolicyTrainer = rloo.RlooTrainer(backbone, sampler, prompts, words_of(sampler), config)
        state = trainer.begin()
        started = time.perf_counter()
        for _ in train(trainer, state):
            pass
        return Learned(time.perf_counter() - started, len(prompts) * REPLIES, peak_bytes=peak_bytes())
    own = reward_model.RewardConfig(ensemble_size=MEMBERS)
    ensemble = reward_model.EnsembleTrainer(backbone, reward_model.group_by_prompt(examples), own).models

    def score(rollouts: Sequence[Rollout]) -> list[Tensor]:
        return ensemble.pessimistic([each.row for each in rollouts])

    trainer = ppo.PpoTrainer(backbone, sampler, prompts, score, ppo.PpoConfig(**common))
    state = trainer.begin()
    started = time.perf_counter()
    for _ in train(trainer, state):
        pass
    return Learned(time.perf_counter() - started, len(prompts) * REPLIES, peak_bytes=peak_bytes())


def words_of(sampler: Sampler) -> Score:
    """The reward by a rule: the number of words in a reply."""
    from assistant.models import base_model, chat_template

    tokenizer = base_model.load_tokenizer(sampler.engine.base)

    def score(rollouts: Sequence[Rollout]) -> list[torch.Tensor]:
        texts = [[chat_template.decode(tokenizer, reply) for reply in each.row.replies] for each in rollouts]
        return [torch.tensor([float(len(text.split())) for text in some]) for some in texts]

    return score
