"""The interface of a training method: a file, here or elsewhere, that declares a `Method` and registers it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from feedback.records.methods import MethodFacts
from training.data.kl import KlFromBase
from training.data.tokenize import NothingFits, TokenizedExample
from training.loop.config import Config
from training.loop.loop import Metrics, Trainer
from training.model.policy import Backbone
from training.model.reference import References
from training.model.reward_heads import RewardModels
from training.rollouts.on_policy import PolicyConfig
from training.rollouts.sampler import Sampler

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
    reward_models: Callable[[PolicyConfig], RewardModels]  # trains them, or loads those that this night has made


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
    needs: tuple[str, ...] = ()  # those of `learns_from` without any of which there is nothing to do; empty: all

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def needed(self) -> tuple[str, ...]:
        """The kinds of examples of which it needs one or more."""
        return self.needs or self.learns_from
