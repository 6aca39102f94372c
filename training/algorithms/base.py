"""What a training method is: a file, here or elsewhere, that declares a `Method` and registers it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from feedback.records.methods import MethodFacts
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
    """What a night gives to a method: a base with a fresh adapter on it, and what to learn from."""

    backbone: Backbone
    examples: Sequence[TokenizedExample]  # of what the method learns from
    validation: Sequence[TokenizedExample]  # kept aside, to see when it is enough; empty where there are too few
    references: References


@dataclass(frozen=True)
class PolicyContext(TrainingContext):
    """What a method gets besides that is `on_policy`."""

    sampler: Sampler
    reward_models: Callable[[PolicyConfig], RewardModels]  # trains them, or finds those that this night has made


@dataclass(frozen=True)
class Method:
    """A method, declared once: the command's help, the page's menu and the night all read it from here."""

    facts: MethodFacts
    learns_from: tuple[str, ...]  # fields of `feedback.examples.build.Examples`
    config: type[Config]
    build: Callable[[Any, Any], Trainer]  # of a `TrainingContext` (on policy: a `PolicyContext`) and a `config`
    on_policy: bool = False  # it learns from what it writes, by reward models
    distributed: bool = False  # several processes may share its batches
    makes_adapter: bool = True  # False: its trainer is a `reward_model.EnsembleTrainer`, and what it trains is kept

    @property
    def name(self) -> str:
        return self.facts.name
