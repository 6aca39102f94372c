"""All that changes while something trains: what a checkpoint keeps, and what a resumed run goes on from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training.model.packing import TOKENS_AT_ONCE


@dataclass
class TrainState:
    """The weights by name, their optimiser, how far it is, and what was seen on the way."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    step: int = 0  # steps done
    kl: float = 0.0  # nats a token from the base, where it was measured last
    kept: dict[str, Tensor] | None = None  # the best weights so far within the KL budget; None: none are kept
    kept_kl: float = math.nan
    validation_gain: float = math.nan  # of what is kept aside, on average, at the last look
    best_gains: Tensor | None = None  # (examples kept aside,) at the look where their mean was highest
    evals_without_gain: int = 0
    numbers: dict[str, float] = field(default_factory=dict)  # what a method remembers from step to step
    tokens_at_once: int = TOKENS_AT_ONCE
    ended: str = ""  # why there is no further step, in words
    took_s: list[float] = field(default_factory=list)  # of each step of this process; no checkpoint keeps it

    @staticmethod
    def over(parameters: Mapping[str, nn.Parameter], learning_rate: float, eps: float = 1e-8) -> "TrainState":
        """The state before the first step."""
        optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate, eps=eps, weight_decay=0.0, foreach=False)
        return TrainState(dict(parameters), optimizer)

    def keep(self) -> None:
        """Remember the weights as they are, and how far from the base they are."""
        self.kept = {name: each.detach().clone() for name, each in self.parameters.items()}
        self.kept_kl = self.kl

    def go_back(self) -> None:
        """Take the weights that were kept, if any were."""
        with torch.no_grad():
            for name, each in (self.kept or {}).items():
                self.parameters[name].copy_(each)
