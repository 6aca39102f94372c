"""The interface of a training method: a file, here or elsewhere, that declares a `Method` and registers it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from feedback.records.methods import MethodFacts
from training.data.judged import has_contrast
from training.data.kl import KlFromBase
from training.data.tokenize import NothingFits, TokenizedExample
from training.loop.config import Config
from training.loop.loop import Metrics, Trainer
from training.model.policy import Backbone
from training.model.reference import References
from training.rewards import mixing, registry
from training.rewards.base import RewardContext, Sampled
from training.rollouts.on_policy import PolicyConfig, SomePolicy, settled, with_ends
from training.rollouts.sampler import Rollout, Sampler, Score

__all__ = ["Config", "Method", "Metrics", "NothingFits", "PolicyContext", "Trainer", "TrainingContext"]


@dataclass(frozen=True)
class TrainingContext:
    """What a night gives to a method: a base with a fresh adapter on it, and examples."""

    backbone: Backbone
    examples: Sequence[TokenizedExample]  # of the kinds that the method learns from
    validation: Sequence[TokenizedExample]  # for early stopping; empty if there are too few
    references: References
    kl: KlFromBase | None = field(default=None, kw_only=True)  # measures the policy's distance for the budget


@dataclass(frozen=True)
class PolicyContext(TrainingContext):
    """What an `on_policy` method gets in addition."""

    sampler: Sampler
    rewards: Callable[[PolicyConfig], RewardContext]
    reference_ends: Callable[[PolicyConfig], float]  # the share of its replies that the reference ends by itself
    decode: Callable[[Sequence[int]], str]  # the text of a reply's tokens

    def scored_by(self, config: SomePolicy) -> tuple[Score, SomePolicy]:
        """The score of sampled replies by the sources that a config names, and the config with all of it decided.

        Raises `NothingFits` if there is nothing to train reward models on, `Refused` if a source cannot be used.
        """
        config = settled(config, self.examples)
        reward = mixing.built(registry.asked(config.rewards), self.rewards(config))
        if config.truncated == "auto":
            config = with_ends(config, self.reference_ends(config))
        messages = {tuple(each.prompt_ids): each.messages for each in self.examples}

        def score(rollouts: Sequence[Rollout]) -> list[Tensor]:
            return reward(
                [
                    Sampled(messages[tuple(row.prompt_ids)], row, tuple(map(self.decode, row.replies)), each.ended)
                    for each in rollouts
                    for row in (each.row,)
                ]
            )

        return score, config


@dataclass(frozen=True)
class Method:
    """A method, declared once: the command's help and the page's menu show its `facts`, the night reads the rest."""

    facts: MethodFacts
    learns_from: tuple[str, ...]  # fields of `feedback.example_types.Examples`
    config: type[Config]
    build: Callable[[Any, Any], Trainer]  # from a `TrainingContext` (on policy: a `PolicyContext`) and a `config`
    on_policy: bool = False  # it learns from its own replies, by reward models
    distributed: bool = False  # several processes may share its batches
    makes_adapter: bool = True  # False: its trainer is a `reward_model.EnsembleTrainer`, whose models are kept
    needs_contrast: bool = False  # without pairs it needs thumbs of both kinds
    # Those of `learns_from` without any of which there is nothing to do, unless the config does without; empty: all.
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.facts.name

    def needed(self, config: Config) -> tuple[str, ...]:
        """The kinds of examples of which it needs one or more."""
        return self.needs if self.needs and config.trains_models else self.learns_from

    def can_learn(self, examples: Sequence[TokenizedExample], config: Config) -> bool:
        """Whether these hold an example of a kind that it cannot do without, and contrast if it needs it."""
        kinds = self.needed(config)
        needed = [each for each in examples if each.field in kinds]
        return bool(needed) and (not self.needs_contrast_with(config) or has_contrast(needed))

    def needs_contrast_with(self, config: Config) -> bool:
        """Whether it needs thumbs of both kinds, if it has no pairs."""
        return self.needs_contrast and config.trains_models
