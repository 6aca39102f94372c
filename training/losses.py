"""The losses, as pure functions on tensors.

B replies or pairs; a log-prob is the sum over a reply's tokens, in nats, end of turn included. `policy` is the model
being trained, `ref` the reference it may not leave without reason. Losses come back per example, unreduced.
Left out on purpose: where log-probs come from (`backbone`), and how examples are weighed (`preference`).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def dpo_margin(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """How much more the policy rewards the chosen reply than the rejected: (B,) from four (B,).

    The reward is the one implied by DPO, r = beta log(policy / ref), eq. 5 of arXiv 2305.18290 up to a constant.
    """
    return beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))


def dpo_loss(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """DPO, eq. 7 of arXiv 2305.18290, of margins (B,); loss (B,).

    With `label_smoothing` e it is conservative DPO: the loss expected when a label is wrong with probability e.
    """
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def kto_baseline(policy_mismatched: Tensor, ref_mismatched: Tensor) -> Tensor:
    """z0 of KTO, section 4.1 of arXiv 2402.01306: the policy's KL from the reference, estimated on replies (B,) to
    other prompts than their own. A scalar without gradient; an estimate below 0 is clamped to 0, as KL cannot be.
    """
    if policy_mismatched.numel() == 0:
        return torch.zeros((), dtype=policy_mismatched.dtype, device=policy_mismatched.device)
    return (policy_mismatched - ref_mismatched).mean().clamp(min=0).detach()


def kto_margin(policy: Tensor, ref: Tensor, baseline: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """How far a reply's reward stands on the right side of the baseline: (B,); `wanted` is boolean (B,)."""
    above = beta * (policy - ref - baseline)
    return torch.where(wanted, above, -above)


def kto_loss(margin: Tensor, wanted: Tensor, wanted_weight: float = 1.0, unwanted_weight: float = 1.0) -> Tensor:
    """KTO, eq. 8 of arXiv 2402.01306, of margins (B,): lambda - lambda sigmoid(margin); loss (B,)."""
    weight = torch.where(wanted, wanted_weight, unwanted_weight)
    return weight * (1 - torch.sigmoid(margin))


def kto_weights(wanted: int, unwanted: int, most: float = 4 / 3) -> tuple[float, float]:
    """Weights of a wanted and an unwanted reply, so that their sums over the data lie within 1:1 to 4:3.

    The range is that of arXiv 2402.01306, section 4.2. The mean weight is 1; with one kind alone both are 1.
    """
    if not wanted or not unwanted:
        return 1.0, 1.0
    ratio = min(max(wanted / unwanted, 1.0), most)
    total = wanted + unwanted
    return total * ratio / (1 + ratio) / wanted, total / (1 + ratio) / unwanted


def kl_per_position(policy_logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact KL(policy || reference) over the whole vocabulary: (N,) nats from logits (N, V)."""
    policy, ref = policy_logits.float().log_softmax(-1), ref_logits.float().log_softmax(-1)
    return (policy.exp() * (policy - ref)).sum(-1)
