"""Early stopping: the KL from the base and the gain on the validation set, measured as training goes on."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from training.data.scoring import gain_of, gains_of, groups
from training.data.tokenize import TokenizedExample
from training.loop.config import WatchedConfig
from training.loop.optim import NotFinite
from training.loop.state import TrainState
from training.losses import policy_gradient
from training.model.packing import TOKENS_AT_ONCE, together
from training.model.policy import IN_CACHE, Backbone, positions_at_once
from training.model.reference import References

KL_ROWS = 4  # examples on whose replies the KL from the base is measured


class KlFromBase:
    """Mean KL(policy || base) in nats at the reply positions of a few fixed examples."""

    def __init__(self, backbone: Backbone, examples: Sequence[TokenizedExample]) -> None:
        self._backbone = backbone
        spread = [examples[number * len(examples) // KL_ROWS] for number in range(KL_ROWS)]
        rows = [example.row(0) for example in {id(each): each for each in spread}.values()]
        self._packs = [[rows[at] for at in group] for group in together(rows, TOKENS_AT_ONCE)]
        with torch.no_grad(), backbone.as_reference():
            self._base = [backbone.hidden(each) for each in self._packs]

    @torch.no_grad()
    def measure(self) -> float:
        """The mean KL of the policy as it is now."""
        backbone = self._backbone
        parts: list[Tensor] = []
        most = positions_at_once(backbone.head)
        for rows, base in zip(self._packs, self._base, strict=True):
            policy = backbone.hidden(rows)
            for at in range(0, len(policy), most):
                ours, theirs = (backbone.logits(each[at : at + most]).split(IN_CACHE) for each in (policy, base))
                parts += map(policy_gradient.kl_per_position, ours, theirs)
        return float(torch.cat(parts).mean())


class Watch:
    """Evaluates a policy while it trains: its KL from the base, and its gain on the validation set."""

    def __init__(
        self,
        backbone: Backbone,
        examples: Sequence[TokenizedExample],
        validation: Sequence[TokenizedExample],
        config: WatchedConfig,
        references: References,
    ) -> None:
        self._backbone = backbone
        self._kl = KlFromBase(backbone, examples)
        self._validation = list(validation)
        self._passes = [[(at, self._validation[at].own_row()) for at in group] for group in groups(validation)]
        self._references = [references.each_token_of([row for _, row in each]) for each in self._passes]
        self._kl_budget, self.patience = config.kl_budget, config.patience
        self._every = max(1, math.ceil(len(examples) / config.batch_size / config.evals_per_epoch))  # steps

    def step_done(self, state: TrainState, last: bool) -> dict[str, float]:
        """Evaluate if it is due after this step, and return the latest metrics."""
        looked = state.step % self._every == 0 or last
        if looked:
            self.look(state)
        gain = {"validation_gain": state.validation_gain} if looked and self._validation else {}
        return {"kl": state.kl} | gain

    def look(self, state: TrainState) -> None:
        """Evaluate, and keep the weights if `_gains` is true and the KL is within budget. Raises `NotFinite`."""
        state.kl = self.kl()
        if not math.isfinite(state.kl):
            raise NotFinite(f"the KL from the base is {state.kl} at step {state.step}")
        gains = self._gains(state)
        if gains and state.kl <= self._kl_budget:
            state.keep()
        state.evals_without_gain = 0 if gains else state.evals_without_gain + 1

    def kl(self) -> float:
        """The policy's KL from the base, in nats a token."""
        return self._kl.measure()

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


def mean_and_error(values: Tensor, weights: Tensor) -> tuple[float, float]:
    """The weighted mean of values (N,), and its standard error: with equal weights s / sqrt(N)."""
    share = weights / weights.sum()
    mean = (share * values).sum()
    alike = share.square().sum()  # 1 over the effective number of values (Kish, "Survey Sampling", 1965)
    error = ((share * (values - mean)).square().sum() / (1 - alike)).sqrt()
    return float(mean), float(error)
