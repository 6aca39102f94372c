"""Early stopping: the KL from the base and the gain on the validation set, measured as training goes on."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from training.data.kl import Kl, KlFromBase, mean_and_error
from training.data.scoring import gain_of, gains_of, groups
from training.data.tokenize import TokenizedExample
from training.loop.config import WatchedConfig
from training.loop.optim import NotFinite
from training.loop.state import TrainState
from training.model.policy import Backbone
from training.model.reference import References


class Watch:
    """Evaluates a policy while it trains: its KL from the base, and its gain on the validation set, if there is one."""

    def __init__(
        self,
        backbone: Backbone,
        kl: KlFromBase,
        kl_budget: float,
        every: int,
        patience: int = 1,
        validation: Sequence[TokenizedExample] = (),
        references: References | None = None,
    ) -> None:
        self._backbone, self._kl, self._kl_budget = backbone, kl, kl_budget
        self._every, self.patience = every, patience  # steps between evaluations, and evaluations without a gain
        self._validation = list(validation)
        self._passes = [[(at, self._validation[at].own_row()) for at in group] for group in groups(validation)]
        known = references or References(backbone)
        self._references = [known.each_token_of([row for _, row in each]) for each in self._passes]

    def step_done(self, state: TrainState, last: bool) -> dict[str, float]:
        """Evaluate if it is due after this step, and return the latest metrics."""
        if state.step % self._every and not last:
            return {"kl": state.kl}
        found = self.look(state)
        return found.metrics() | ({"validation_gain": state.validation_gain} if self._validation else {})

    def look(self, state: TrainState) -> Kl:
        """Evaluate, and keep the weights if `_gains` is true and the KL is within budget. Raises `NotFinite`."""
        found = self.kl()
        state.kl = found.mean
        if not math.isfinite(state.kl):
            raise NotFinite(f"the KL from the base is {state.kl} at step {state.step}")
        gains = self._gains(state)
        if gains and state.kl <= self._kl_budget:
            state.keep()
        state.evals_without_gain = 0 if gains else state.evals_without_gain + 1
        return found

    def kl(self) -> Kl:
        """The policy's KL from the base, as exactly as the budget asks."""
        return self._kl.look(self._kl_budget)

    def _gains(self, state: TrainState) -> bool:
        """Whether the validation gain is within one standard error of the best so far; true without a validation set.

        The one-standard-error rule (Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3): few
        examples say little, so they end a training only when they clearly speak against it.
        """
        if not self._validation:
            return True
        gains = self.gains()
        weights = torch.tensor([example.weight for example in self._validation])
        state.validation_gain, _ = mean_and_error(gains, weights)
        best = state.best_gains
        if best is None or len(best) != len(gains) or state.validation_gain > mean_and_error(best, weights)[0]:
            state.best_gains = gains
            return True
        lost, error = mean_and_error(best - gains, weights)
        return lost <= error

    @torch.no_grad()
    def gains(self) -> Tensor:
        """Each validation example's gain towards the preferred side: (A,), in token probability (`gains_of`)."""
        gains = torch.zeros(len(self._validation))
        for group, references in zip(self._passes, self._references, strict=True):
            policies = self._backbone.each_token_of([row for _, row in group])
            for (at, row), ours, theirs in zip(group, policies, references, strict=True):
                gains[at] = gain_of(self._validation[at], gains_of(row, ours, theirs.to(ours.device)))
        return gains


def steps_between(examples: int, config: WatchedConfig) -> int:
    """The steps from one evaluation to the next."""
    return max(1, math.ceil(examples / config.batch_size / config.evals_per_epoch))
