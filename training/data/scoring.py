"""Tokenized examples in the model: grouping into passes, log-probs under the reference model, margins and gains."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from training.data.tokenize import TokenizedExample
from training.losses import preference
from training.model.packing import TOKENS_AT_ONCE, Row, together
from training.model.reference import References


def groups(examples: Sequence[TokenizedExample], most: int = TOKENS_AT_ONCE) -> list[list[int]]:
    """Group example indices into passes of at most `most` tokens; a longer example gets a pass of its own."""
    return together([example.own_row() for example in examples], most)


def references_of(references: References, examples: Sequence[TokenizedExample]) -> Tensor:
    """(B, R) log-probs of examples' replies under the reference model; NaN where an example has fewer replies.

    They are computed in packs like the policy's, so that both round alike.
    """
    values = torch.full((len(examples), max(2, *(len(each.replies) for each in examples))), math.nan)
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


def margins_of(policy: Tensor, example: TokenizedExample, reference: Tensor, baseline: Tensor, beta: float) -> Tensor:
    """An example's DPO margins, (P,) of its preferences, or KTO margin, (1,).

    It is computed from its replies' log-probs: (R,) under the policy, (R,) or more under the reference.
    """
    if example.kind == "thumb":
        wanted = torch.tensor([example.wanted], device=policy.device)
        return preference.kto_margin(policy, reference[:1], baseline, wanted, beta)
    chosen, rejected = sides_of(example)
    return preference.dpo_margin(policy[chosen], policy[rejected], reference[chosen], reference[rejected], beta)


def sides_of(example: TokenizedExample) -> tuple[list[int], list[int]]:
    """The indices of the chosen and of the rejected reply of each of an example's preferences."""
    return [each.chosen for each in example.preferences], [each.rejected for each in example.preferences]


def gain_of(example: TokenizedExample, gains: Tensor) -> Tensor:
    """An example's gain towards the preferred side, a scalar, from that on each of its replies (R,) (`gains_of`)."""
    if example.field != "pairs":
        return gains[0] if example.wanted else -gains[0]
    chosen, rejected = sides_of(example)
    weights = torch.tensor([each.weight for each in example.preferences], device=gains.device)
    return preference.weighted_mean(gains[chosen] - gains[rejected], weights)


def gains_of(row: Row, ours: Tensor, theirs: Tensor) -> Tensor:
    """One model's mean gain in token probability over another, on each of a row's R replies: (R,), from -1 to 1.

    It is computed from the models' log-probs (N,) of the reply tokens. Probabilities are compared because a log-prob
    falls without bound where a model has merely learned another wording, and a few such tokens decide a sum of logs.
    """
    return row.summed(ours.exp() - theirs.exp()) / row.summed(torch.ones_like(ours))
