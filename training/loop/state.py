"""The state of a training: all that changes while it runs, that a checkpoint keeps and a resumed run starts from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training.model.packing import TOKENS_AT_ONCE


@dataclass
class TrainState:
    """The weights by name, their optimiser, the position, and what was measured on the way."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    step: int = 0  # steps done
    kl: float = 0.0  # KL from the base in nats a token, as last measured
    kept: dict[str, Tensor] | None = None  # the weights to roll back to, within the KL budget; None: none yet
    kept_kl: float = math.nan
    validation_gain: float = math.nan  # mean over the validation set at the last evaluation
    best_gains: Tensor | None = None  # (A,) of the validation examples, at the evaluation with the highest mean
    evals_without_gain: int = 0
    numbers: dict[str, float] = field(default_factory=dict)  # what a method remembers from step to step
    tokens_at_once: int = TOKENS_AT_ONCE
    ended: str = ""  # why training ended early, in words
    took_s: list[float] = field(default_factory=list)  # seconds of each step in this process; not in checkpoints

    @staticmethod
    def over(parameters: Mapping[str, nn.Parameter], learning_rate: float, eps: float = 1e-8) -> "TrainState":
        """The state before the first step."""
        optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate, eps=eps, weight_decay=0.0, foreach=False)
        return TrainState(dict(parameters), optimizer)

    def keep(self) -> None:
        """Keep a copy of the current weights, and their KL from the base."""
        self.kept = {name: each.detach().clone() for name, each in self.parameters.items()}
        self.kept_kl = self.kl

    def go_back(self) -> None:
        """Roll back to the kept weights, if there are any."""
        with torch.no_grad():
            for name, each in (self.kept or {}).items():
                self.parameters[name].copy_(each)
