"""The watch over a training: how far from the base it is, whether what is kept aside still gains, when it is enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from training.data.scoring import gains_of, groups
from training.data.tokenize import TokenizedExample
from training.loop.optim import NotFinite
from training.losses import policy_gradient
from training.model.packing import TOKENS_AT_ONCE, together
from training.model.policy import IN_CACHE, Backbone, positions_at_once
from training.model.reference import References

KL_ROWS = 4  # examples on whose replies the distance from the base is measured


class Limits(Protocol):
    """What a method's settings say of when it is enough."""

    @property
    def kl_budget(self) -> float:
        """Nats a reply token away from the base."""

    @property
    def patience(self) -> int:
        """Looks without a gain."""


@dataclass
class Progress:
    """All that changes while a night trains, beside the adapter's weights."""

    optimizer: torch.optim.Optimizer
    step: int = 0  # optimiser steps done
    kl: float = 0.0  # at the last look
    validation_gain: float = math.nan  # of what is kept aside, on average, at the last look
    best_gains: Tensor | None = None  # (examples kept aside,) at the look where their mean was highest
    kept: dict[str, Tensor] | None = None  # the weights that the night would hand over now
    kept_kl: float = math.nan
    evals_without_gain: int = 0
    tokens_at_once: int = TOKENS_AT_ONCE
    ended: str = ""  # why there is no further step, in words


class Watch:
    """What is looked at while a night trains: how far from the base it is, and whether what is kept aside gains."""

    def __init__(
        self,
        backbone: Backbone,
        examples: Sequence[TokenizedExample],
        validation: Sequence[TokenizedExample],
        settings: Limits,
        references: References,
    ) -> None:
        spread = [examples[number * len(examples) // KL_ROWS] for number in range(KL_ROWS)]
        rows = [example.row(0) for example in {id(each): each for each in spread}.values()]
        self._packs = [[rows[at] for at in group] for group in together(rows, TOKENS_AT_ONCE)]
        with torch.no_grad(), backbone.as_reference():
            self._base = [backbone.hidden(each) for each in self._packs]
        self._validation = list(validation)
        self._passes = [[(at, self._validation[at].own_row()) for at in group] for group in groups(validation)]
        self._references = [references.each_token_of([row for _, row in each]) for each in self._passes]
        self._settings = settings

    def look(self, backbone: Backbone, progress: Progress, last: bool) -> None:
        """Measure, keep the weights if they are the best so far, and end the training or not."""
        settings = self._settings
        progress.kl = self.kl(backbone)
        if not math.isfinite(progress.kl):
            raise NotFinite(f"the KL from the base is {progress.kl} at step {progress.step}")
        over = progress.kl > settings.kl_budget
        gains = self._gains(backbone, progress)
        if not over and gains:
            progress.kept = {name: each.detach().clone() for name, each in backbone.parameters().items()}
            progress.kept_kl = progress.kl
        progress.evals_without_gain = 0 if gains else progress.evals_without_gain + 1
        if over:
            spent = f"{progress.kl:.3f} nats per token from the base, where {settings.kl_budget:g} may be"
            progress.ended = f"ended at step {progress.step}, being {spent}"
        elif progress.evals_without_gain >= settings.patience:
            progress.ended = f"ended at step {progress.step}, as what was kept aside gained no more"
        if (progress.ended or last) and progress.kept is not None:
            with torch.no_grad():
                for name, each in backbone.parameters().items():
                    each.copy_(progress.kept[name])

    def _gains(self, backbone: Backbone, progress: Progress) -> bool:
        """Whether what is kept aside has gained more than ever, or is within one standard error of that.

        The one-standard-error rule (Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3): few
        examples say little, so they end a training only when they clearly speak against it.
        """
        if not self._validation:
            return True
        gains = self.gains(backbone)
        weights = torch.tensor([example.weight for example in self._validation])
        progress.validation_gain, _ = mean_and_error(gains, weights)
        best = progress.best_gains
        if best is None or progress.validation_gain > mean_and_error(best, weights)[0]:
            progress.best_gains = gains
            return True
        lost, error = mean_and_error(best - gains, weights)
        return lost <= error

    @torch.no_grad()
    def gains(self, backbone: Backbone) -> Tensor:
        """By how much each example kept aside is on the right side: (A,), in probability of a token (`gains_of`)."""
        gains = torch.zeros(len(self._validation))
        for group, references in zip(self._passes, self._references, strict=True):
            policies = backbone.each_token_of([row for _, row in group])
            for (at, row), ours, theirs in zip(group, policies, references, strict=True):
                of_each = gains_of(row, ours, theirs.to(ours.device))
                wanted = 1 if self._validation[at].wanted else -1
                gains[at] = of_each[0] - of_each[1] if len(of_each) == 2 else wanted * of_each[0]
        return gains

    @torch.no_grad()
    def kl(self, backbone: Backbone) -> float:
        """Mean KL(policy || base) in nats at the reply positions of a few examples, fixed for the night."""
        parts: list[Tensor] = []
        most = positions_at_once(backbone.head)
        for rows, base in zip(self._packs, self._base, strict=True):
            policy = backbone.hidden(rows)
            for at in range(0, len(policy), most):
                ours, theirs = (backbone.logits(each[at : at + most]).split(IN_CACHE) for each in (policy, base))
                parts += map(policy_gradient.kl_per_position, ours, theirs)
        return float(torch.cat(parts).mean())


def mean_and_error(values: Tensor, weights: Tensor) -> tuple[float, float]:
    """The weighted mean of values (N,), and its standard error: with equal weights s / sqrt(N)."""
    share = weights / weights.sum()
    mean = (share * values).sum()
    alike = share.square().sum()  # 1 over the effective number of values (Kish, "Survey Sampling", 1965)
    error = ((share * (values - mean)).square().sum() / (1 - alike)).sqrt()
    return float(mean), float(error)
