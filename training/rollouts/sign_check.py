"""The sign canary: before a policy learns from real scores, it must move towards a rewarded toy reply.

With the signs of reward and KL both flipped, a policy writes fluent text that is as bad as possible, while every curve
looks well (arXiv 1909.08593, section 4.4). So a method's own step is first tried on two replies of known worth.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from training.loop.state import TrainState
from training.model.packing import Row
from training.model.policy import Backbone
from training.rollouts.sampler import Rollout

STEPS = 3
RATE = 5e-4  # the learning rate: smaller steps drown in rounding, larger ones go astray whatever the sign

Learn = Callable[
    [TrainState, Sequence[Rollout], list[Tensor]], object
]  # one step of a method on rollouts and their scores


class SignFlipped(Exception):
    """The policy moved away from what was rewarded: reward or loss has the wrong sign somewhere."""


def require_right_sign(backbone: Backbone, trial: TrainState, learn: Learn) -> None:
    """Raise `SignFlipped` unless a few of a method's steps make the rewarded one of two replies likelier.

    Adapters and heads are restored afterwards; `trial` is a separate state over them.
    """
    row = Row([1, 2, 3, 4], [[5, 6], [7, 8]])
    rollout = Rollout(row, (True, True))
    weights = {name: each.detach().clone() for name, each in trial.parameters.items()}
    before = _preference(backbone, row)
    for _ in range(STEPS):
        learn(trial, [rollout], [torch.tensor([1.0, -1.0])])
        trial.step += 1
    after = _preference(backbone, row)
    trial.kept = weights
    trial.go_back()
    if not after > before:
        raise SignFlipped(
            f"the sign canary: in {STEPS} steps the rewarded reply should have become likelier than the other, "
            f"and the difference went from {before:.4f} to {after:.4f} nats"
        )


@torch.no_grad()
def _preference(backbone: Backbone, row: Row) -> float:
    first, second = backbone.log_probs(row)
    return float(first - second)
