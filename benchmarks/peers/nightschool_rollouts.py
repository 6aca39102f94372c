"""Our policies that learn from what they write, a turn at a time: RLOO by a rule, PPO with everything on one base."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from benchmarks.peers.schooling import LEARNING_RATE, REPLIES, REPLY_TOKENS, Asked, Learned, peak_bytes
from training.algorithms import ppo, reinforce, reward
from training.data.batches import Lesson
from training.model.backbone import Backbone
from training.model.reward_models import RewardModels
from training.night.policy_night import by_reward_models
from training.rollouts.rollout import Rollout, Sampler, Score

MEMBERS = 3


@cache
def sampler_for(backbone: Backbone) -> Sampler:
    """The serving engine in the trainer's number format; it stays for all turns."""
    from assistant.models import models

    number_format = str(backbone.head.dtype).removeprefix("torch.")
    return Sampler(backbone.base, number_format, backbone.device, models.load_tokenizer(backbone.base))


def take(backbone: Backbone, lessons: Sequence[Lesson], asked: Asked) -> Learned:
    """One step over the lessons' prompts: rollouts, scores, learning."""
    sampler = sampler_for(backbone)
    prompts = [lesson.prompt_ids for lesson in lessons]
    common: dict[str, Any] = {"steps": 1, "prompts": len(prompts), "replies": REPLIES, "reply_tokens": REPLY_TOKENS}
    common |= {"learning_rate": LEARNING_RATE, "kl_budget": 1e9}
    if asked.task == "rloo":
        settings = reinforce.Settings(**common)
        run = reinforce.begin(backbone, settings)
        run.step = 0
        started = time.perf_counter()
        for _ in reinforce.train(backbone, sampler, prompts, words_of(sampler), settings, run):
            pass
        return Learned(time.perf_counter() - started, len(prompts) * REPLIES, peak_bytes=peak_bytes())
    own = reward.Settings(members=MEMBERS)
    heads = {reward.name_of(member): reward.begin(backbone, own, member)[0] for member in range(MEMBERS)}
    settings_of_ppo = ppo.Settings(**common)
    head, run = ppo.begin(backbone, settings_of_ppo)
    score = by_reward_models(RewardModels(backbone, heads), pessimism=1.0)
    started = time.perf_counter()
    for _ in ppo.train(backbone, head, sampler, prompts, score, settings_of_ppo, run):
        pass
    return Learned(time.perf_counter() - started, len(prompts) * REPLIES, peak_bytes=peak_bytes())


def words_of(sampler: Sampler) -> Score:
    """How many words a reply has."""
    from assistant.models import models, prompt

    tokenizer = models.load_tokenizer(sampler.engine.base)

    def score(rollouts: Sequence[Rollout]) -> list[torch.Tensor]:
        texts = [[prompt.decode(tokenizer, reply) for reply in each.row.replies] for each in rollouts]
        return [torch.tensor([float(len(text.split())) for text in some]) for some in texts]

    return score
