"""Training settings, each with its range, default and description.

A method's own settings are a subclass of `Config`; what several methods share is defined here once.
"""

from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from feedback.errors import Refused

LearningRate = Annotated[float, Field(gt=0, description="peak learning rate")]
CheckpointEvery = Annotated[int, Field(gt=0, description="steps between checkpoints")]
KlBudget = Annotated[float, Field(gt=0, description="training stops at this KL from the base, in nats per token")]
Epochs = Annotated[int, Field(gt=0, description="most passes over the examples")]
Switch = Annotated[int, Field(ge=0)]  # 0: no, 1: yes
ABOUT = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge")}
ABOUT |= {"less_than": ("below", "lt"), "less_than_equal": ("at most", "le")}


class Config(BaseModel):
    """The settings that every method has. Raises `Refused` on invalid values and on unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    learning_rate: LearningRate = 2e-4
    rank: int = Field(16, gt=0, description="rank of the LoRA")
    alpha: int = Field(32, gt=0, description="LoRA alpha: the update is scaled by alpha / rank")
    max_length: int = Field(1024, gt=0, description="most tokens of a prompt and one reply")
    checkpoint_every: CheckpointEvery = 10
    seed: int = Field(0, ge=0, description="seed of everything random")

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
    min_steps: int = Field(12, gt=0, description="fewest steps; a few examples are repeated to reach it")
    batch_size: int = Field(8, gt=0, description="examples per step")


class WatchedConfig(EpochsConfig):
    """The settings of methods with early stopping and a KL budget."""

    patience: int = Field(4, gt=0, description="evaluations without a gain on the validation set before training stops")
    evals_per_epoch: int = Field(
        4, gt=0, description="evaluations per epoch, of the KL from the base and the validation set"
    )
    kl_budget: KlBudget = 0.3


def in_words(config: type[Config], error: ValidationError) -> str:
    """A sentence that says what is wrong with the first wrong setting."""
    wrong = error.errors()[0]
    name, value, kind = str(wrong["loc"][0]), wrong["input"], wrong["type"]
    if kind in ABOUT:
        word, bound = ABOUT[kind]
        return f"{name} must be {word} {wrong['ctx'][bound]:g}, not {value}"
    if kind == "finite_number":
        return f"{name} must be a finite number, not {value}"
    if kind == "extra_forbidden":
        return f"there is no setting {name!r}; settings are {', '.join(config.model_fields)}"
    if kind == "literal_error":
        return f"{name} is one of {', '.join(get_args(config.model_fields[name].annotation))}, not {value!r}"
    wanted = {"int": "a whole number", "flo": "a number", "str": "a word"}.get(kind[:3])
    return f"{name} is {wanted}, not {value!r}" if wanted else f"{name}: {wrong['msg']}"


def in_lines(config: type[Config]) -> list[str]:
    """One line per setting, with its default, description and range."""
    schema = config.model_json_schema()["properties"]
    lines = []
    for name, each in schema.items():
        bounds = [f"{word} {each[key]:g}" for key, word in BOUNDS.items() if key in each]
        bounds += [f"one of {', '.join(each['enum'])}"] if "enum" in each else []
        told = f" ({', '.join(bounds)})" if bounds else ""
        lines.append(f"{name}={each['default']}  {each.get('description', '')}{told}".rstrip())
    return lines


BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
