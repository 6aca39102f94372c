"""The sign canary: before a policy learns from real scores, it must move towards a rewarded toy reply.

With the signs of reward and KL both flipped, a policy writes fluent text that is as bad as possible, while every curve
looks well (arXiv 1909.08593, section 4.4). So a method's own step is first tried on two replies of known worth, and
without any reward on a policy that has left its reference, to which the KL penalty must bring it back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

import torch
from torch import Tensor

from training.loop.state import TrainState
from training.model.packing import Row
from training.model.policy import Backbone
from training.rollouts.sampler import Rollout

STEPS = 3
MOVED = 0.02  # standard deviation of what is added to every weight, so that a policy has left its reference
RATE = 5e-4  # the learning rate: smaller steps drown in rounding, larger ones go astray whatever the sign

ROW = Row([1, 2, 3, 4], [[5, 6], [7, 8]])

Learn = Callable[
    [TrainState, Sequence[Rollout], list[Tensor]], object
]  # one step of a method on rollouts and their scores


class SignFlipped(Exception):
    """The policy moved away from what was rewarded: reward or loss has the wrong sign somewhere."""


def require_right_sign(backbone: Backbone, trial: TrainState, learn: Learn) -> None:
    """Raise `SignFlipped` unless a few of a method's steps make the rewarded one of two replies likelier.

    Adapters and heads are restored afterwards; `trial` is a separate state over them.
    """
    with restored(trial):
        before = _preference(backbone, ROW)
        _learn(trial, learn, torch.tensor([1.0, -1.0]), STEPS)
        after = _preference(backbone, ROW)
    if not after > before:
        raise SignFlipped(
            f"the sign canary: in {STEPS} steps the rewarded reply should have become likelier than the other, "
            f"and the difference went from {before:.4f} to {after:.4f} nats"
        )


def require_kl_sign(backbone: Backbone, trial: TrainState, learn: Learn) -> None:
    """Raise `SignFlipped` unless a step without any reward moves a policy back towards its reference.

    What is measured is by how much two replies' log-ratios to the reference differ: a KL penalty moves that towards 0,
    and perhaps beyond, whatever baseline is taken off. Adapters and heads are restored afterwards.
    """
    with restored(trial):
        for number, each in enumerate(backbone.parameters().values()):
            noise = torch.randn(each.shape, generator=torch.Generator().manual_seed(number))
            each.data.add_(MOVED * noise.to(each))
        before = _apart(backbone, ROW)
        _learn(trial, learn, torch.zeros(2), steps=1)
        after = _apart(backbone, ROW)
    if not (before - after) * before > 0:
        raise SignFlipped(
            "the sign canary: in a step without a reward the policy should have moved towards its reference, "
            f"and went from {before:.4f} to {after:.4f} nats"
        )


def require_models_sign(margins: Sequence[float]) -> None:
    """Raise `SignFlipped` unless reward models prefer, on average, what people preferred in what they learned from."""
    if margins and not fmean(margins) > 0:
        raise SignFlipped(
            f"the reward models score what people preferred {-fmean(margins):.3f} below the rest, on pairs that they "
            "learned from"
        )


@contextmanager
def restored(trial: TrainState) -> Iterator[None]:
    """Put all weights of a state back in the end."""
    weights = {name: each.detach().clone() for name, each in trial.parameters.items()}
    try:
        yield
    finally:
        trial.kept = weights
        trial.go_back()


def _learn(trial: TrainState, learn: Learn, scores: Tensor, steps: int) -> None:
    for _ in range(steps):
        learn(trial, [Rollout(ROW, (True, True))], [scores])
        trial.step += 1


@torch.no_grad()
def _apart(backbone: Backbone, row: Row) -> float:
    moved = backbone.log_probs(row) - backbone.log_probs(row, reference=True)
    return float(moved[0] - moved[1])


@torch.no_grad()
def _preference(backbone: Backbone, row: Row) -> float:
    first, second = backbone.log_probs(row)
    return float(first - second)
