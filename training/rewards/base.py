"""The interface of a source of reward: a file, here or elsewhere, that declares a `Source` and registers it.

Sources see sampled replies as tokens and as text. A source may have nothing to say of a reply: NaN.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from feedback.messages import Message
from training.model.packing import Row
from training.model.reward_heads import RewardModels


@dataclass(frozen=True)
class Sampled:
    """K sampled replies to one prompt."""

    messages: tuple[Message, ...]
    row: Row
    texts: tuple[str, ...]
    ended: tuple[bool, ...]  # whether each of them ended by itself


Reward = Callable[[Sequence[Sampled]], list[Tensor]]  # (K,) for each prompt's replies


@dataclass(frozen=True)
class RewardContext:
    """What a night gives to a source."""

    models: Callable[[], RewardModels]  # trains this night's reward models, or loads them if they are made
    models_of: Callable[[int], RewardModels]  # loads those of an earlier night; raises `Refused`
    folder: Path  # where a source's files are: functions, schemas
    uncertainty_penalty: float = 1.0
    least_accuracy: float = 0.0  # that reward models must surely have


@dataclass(frozen=True)
class Source:
    """A source of reward; `argument` says what may follow its name and a colon, empty if nothing may."""

    name: str
    help: str
    build: Callable[[str, RewardContext], Reward]
    argument: str = ""
    is_optional: bool = False  # the argument
    check: Callable[[str], object] = len  # raises `Refused` on an argument that cannot be
    needs_models: bool = False  # whether it scores by reward models, which only a night's process has
    trains_models: bool = False  # whether there must be comparisons to learn by it


@dataclass(frozen=True)
class Asked:
    """A source that a night is to use, with its argument and its weight among others."""

    source: Source
    argument: str
    weight: float
