"""Our policies that learn from what they write, a turn at a time: RLOO by a rule, PPO with everything on one base."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from benchmarks.peers.schooling import LEARNING_RATE, REPLIES, REPLY_TOKENS, Asked, Learned, peak_bytes
from training.algorithms import ppo, reward_model, rloo
from training.data.tokenize import TokenizedExample
from training.model.policy import Backbone
from training.model.reward_heads import RewardModels
from training.night.policy_night import by_reward_models
from training.rollouts.sampler import Rollout, Sampler, Score

MEMBERS = 3


@cache
def sampler_for(backbone: Backbone) -> Sampler:
    """The serving engine in the trainer's number format; it stays for all turns."""
    from assistant.models import base_model

    number_format = str(backbone.head.dtype).removeprefix("torch.")
    return Sampler(backbone.base, number_format, backbone.device, base_model.load_tokenizer(backbone.base))


def take(backbone: Backbone, examples: Sequence[TokenizedExample], asked: Asked) -> Learned:
    """One step over the examples' prompts: rollouts, scores, learning."""
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
        settings = rloo.Settings(**common)
        run = rloo.begin(backbone, settings)
        run.step = 0
        started = time.perf_counter()
        for _ in rloo.train(backbone, sampler, prompts, words_of(sampler), settings, run):
            pass
        return Learned(time.perf_counter() - started, len(prompts) * REPLIES, peak_bytes=peak_bytes())
    own = reward_model.Settings(ensemble_size=MEMBERS)
    heads = {reward_model.name_of(member): reward_model.begin(backbone, own, member)[0] for member in range(MEMBERS)}
    settings_of_ppo = ppo.Settings(**common)
    head, run = ppo.begin(backbone, settings_of_ppo)
    score = by_reward_models(RewardModels(backbone, heads), uncertainty_penalty=1.0)
    started = time.perf_counter()
    for _ in ppo.train(backbone, head, sampler, prompts, score, settings_of_ppo, run):
        pass
    return Learned(time.perf_counter() - started, len(prompts) * REPLIES, peak_bytes=peak_bytes())


def words_of(sampler: Sampler) -> Score:
    """How many words a reply has."""
    from assistant.models import base_model, chat_template

    tokenizer = base_model.load_tokenizer(sampler.engine.base)

    def score(rollouts: Sequence[Rollout]) -> list[torch.Tensor]:
        texts = [[chat_template.decode(tokenizer, reply) for reply in each.row.replies] for each in rollouts]
        return [torch.tensor([float(len(text.split())) for text in some]) for some in texts]

    return score
