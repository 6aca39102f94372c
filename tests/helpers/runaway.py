"""A plug-in method whose learning rate has no bounds: numbers that leave the range of floats, on demand."""

from feedback.records.methods import MethodFacts
from training.algorithms import dpo_kto
from training.algorithms.base import Method
from training.algorithms.registry import register

NAME = "runaway"


class RunawayConfig(dpo_kto.PreferenceConfig):
    """The settings of preference learning, with a default that no adapter survives."""

    learning_rate: float = 1e30


FACTS = MethodFacts(NAME, "Runaway", "pairs, at any rate")
register(Method(FACTS, ("pairs", "thumbs"), RunawayConfig, dpo_kto.build, distributed=True))
