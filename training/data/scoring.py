"""Lessons through the model: which go together in one pass, their log-probs under the reference, and their margins."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from training.data.tokenize import TokenizedExample
from training.losses import preference
from training.model.packing import TOKENS_AT_ONCE, Row, together
from training.model.reference import References


def groups(examples: Sequence[TokenizedExample], most: int = TOKENS_AT_ONCE) -> list[list[int]]:
    """The numbers of examples that go through the model in one pass, of `most` tokens."""
    return together([example.own_row() for example in examples], most)


def references_of(references: References, examples: Sequence[TokenizedExample]) -> Tensor:
    """(B, 2) log-probs of examples' replies under the reference; NaN where an example has one reply only.

    In packs of the same kind as the policy's, so that both round alike.
    """
    values = torch.full((len(examples), 2), math.nan)
    for group in groups(examples):
        rows = [examples[at].own_row() for at in group]
        for at, row, found in zip(group, rows, references.each_token_of(rows), strict=True):
            values[at, : len(row.replies)] = row.summed(found)
    mismatched = [at for at, example in enumerate(examples) if example.kind == "thumb" and len(example.replies) == 2]
    others = [examples[at].row(1) for at in mismatched]
    for group in together(others, TOKENS_AT_ONCE):
        for at, found in zip(group, references.each_token_of([others[at] for at in group]), strict=True):
            values[mismatched[at], 1] = found.sum()
    return values


def margin_of(policy: Tensor, example: TokenizedExample, reference: Tensor, baseline: Tensor, beta: float) -> Tensor:
    """How far an example is on the right side, by its replies' log-probs (R,) under the policy, (2,) the reference."""
    if example.kind == "thumb":
        wanted = torch.tensor([example.wanted], device=policy.device)
        return preference.kto_margin(policy, reference[:1], baseline, wanted, beta)[0]
    return preference.dpo_margin(policy[0], policy[1], reference[0], reference[1], beta)


def gains_of(row: Row, ours: Tensor, theirs: Tensor) -> Tensor:
    """How much likelier one model's next tokens are than another's, along each of a row's R replies: (R,), -1 to 1.

    The mean difference of the two probabilities of each token, from their log-probs (N,). Probabilities, as a log-prob
    falls without end where a model has merely learned to say it otherwise, and a few such tokens decide a sum of logs.
    """
    return row.summed(ours.exp() - theirs.exp()) / row.summed(torch.ones_like(ours))
