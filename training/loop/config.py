"""Training settings, each with its range, default and description.

A method's own settings are a subclass of `Config`; what several methods share is defined here once.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from feedback.errors import Refused

LearningRate = Annotated[float, Field(gt=0, le=1, description="peak learning rate")]
CheckpointEvery = Annotated[int, Field(ge=1, le=100_000, description="steps between checkpoints")]
KlBudget = Annotated[
    float, Field(gt=0, le=1000, description="training stops at this KL from the base, in nats per token")
]
Epochs = Annotated[int, Field(ge=1, le=1000, description="most passes over the examples")]
Switch = Annotated[int, Field(ge=0, le=1)]  # 0: no, 1: yes
Weight = Annotated[float, Field(ge=0, le=1000)]  # of a part of the objective
StrengthMargin = Annotated[
    float,
    Field(
        ge=0, le=100, description="margin that a choice of strength 5 asks for, in log-odds; 1 asks for none; 0: off"
    ),
]
STRENGTH_MARGIN = 1.0  # its default
MOST_RANK = 1024
SERVES = "serving"  # as an adapter's name: the one that serves when the night is planned
MOST_MODELS = 64  # in an ensemble
Precision = Literal["auto", "bfloat16", "float32"]
ABOUT = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge")}
ABOUT |= {"less_than": ("below", "lt"), "less_than_equal": ("at most", "le")}
SHOWN = 40  # characters of a wrong value in a sentence


class Config(BaseModel):
    """The settings that every method has. Raises `Refused` on invalid values and on unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    learning_rate: LearningRate = 2e-4
    rank: int = Field(16, ge=1, le=MOST_RANK, description="rank of the LoRA")
    alpha: int = Field(32, ge=1, le=4096, description="LoRA alpha: the update is scaled by alpha / rank")
    max_length: int = Field(1024, ge=1, le=1_048_576, description="most tokens of a prompt and one reply")
    checkpoint_every: CheckpointEvery = 10
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    start_from: str = Field(
        "",
        max_length=200,
        description="adapter that training begins from; serving: what serves, if its KL leaves room; empty: none",
    )
    reference: str = Field(
        "", max_length=200, description="adapter that margins and KL penalties refer to; empty: the base"
    )
    precision: Precision = Field("auto", description="number format to compute in; auto: the faster one here")

    @property
    def trains_models(self) -> bool:
        """Whether a method that is said to need comparisons does need them with these settings."""
        return True

    def require_usable(self, folder: Path) -> None:
        """Raise `Refused` if what the settings name, in a folder of the operator's files, cannot be used."""

    def count_steps(self, examples: int) -> int:
        """The number of steps that so many examples make at most; 0 where examples do not decide it."""
        return 0

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_words(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise Refused(in_words(cls, error)) from error


class EpochsConfig(Config):
    """The settings of methods that go over examples several times."""

    epochs: Epochs = 3
    min_steps: int = Field(12, ge=1, le=100_000, description="fewest steps; a few examples are repeated to reach it")
    batch_size: int = Field(8, ge=1, le=100_000, description="examples per step")

    def count_steps(self, examples: int) -> int:
        """The maximum number of steps: whole epochs, and more of them if the examples are very few."""
        per_epoch = math.ceil(examples / self.batch_size)
        return per_epoch * max(self.epochs, math.ceil(self.min_steps / per_epoch))


class WatchedConfig(EpochsConfig):
    """The settings of methods with early stopping and a KL budget."""

    patience: int = Field(
        4, ge=1, le=100_000, description="evaluations without a gain on the validation set before training stops"
    )
    evals_per_epoch: int = Field(
        4, ge=1, le=100_000, description="evaluations per epoch, of the KL from the base and the validation set"
    )
    kl_budget: KlBudget = 0.3


def in_words(config: type[Config], error: ValidationError) -> str:
    """A sentence that says what is wrong with the first wrong setting."""
    wrong = error.errors()[0]
    name, value, kind = str(wrong["loc"][0]), wrong["input"], wrong["type"]
    if kind in ABOUT:
        word, bound = ABOUT[kind]
        return f"{name} must be {word} {number(wrong['ctx'][bound])}, not {shown(value)}"
    if kind == "finite_number":
        return f"{name} must be a finite number, not {shown(value)}"
    if kind == "extra_forbidden":
        return f"there is no setting {shown(name)!r}; settings are {', '.join(config.model_fields)}"
    if kind == "literal_error":
        words = ", ".join(get_args(config.model_fields[name].annotation))
        return f"{name} is one of {words}, not {shown(value)!r}"
    wanted = {"int": "a whole number", "flo": "a number", "str": "a word"}.get(kind[:3])
    return f"{name} is {wanted}, not {shown(value)!r}" if wanted else f"{name}: {wrong['msg']}"


def shown(value: Any) -> str:
    """A value as a sentence shows it, in `SHOWN` characters or a few more."""
    if isinstance(value, int) and value.bit_length() > 1000:  # Python writes no number of over 4,300 digits
        return f"a number of {value.bit_length():,} bits"
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def number(bound: float) -> str:
    """A bound of a range: a whole number in full, any other in few digits."""
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"


def in_lines(config: type[Config]) -> list[str]:
    """One line per setting, with its default, description and range."""
    schema = config.model_json_schema()["properties"]
    lines = []
    for name, each in schema.items():
        bounds = [f"{word} {number(each[key])}" for key, word in BOUNDS.items() if key in each]
        bounds += [f"one of {', '.join(each['enum'])}"] if "enum" in each else []
        told = f" ({', '.join(bounds)})" if bounds else ""
        lines.append(f"{name}={each['default']}  {each.get('description', '')}{told}".rstrip())
    return lines


BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
