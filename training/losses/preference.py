"""Losses for demonstrations, preferences and thumbs, as pure functions on tensors.

B is the number of replies or pairs. A log-prob is the sum over a reply's tokens, end of turn included, in nats; a score
is a reward model's. `policy` is the model being trained, `ref` the reference model that it is held to. Losses are per
example, unreduced; `weighted_mean` reduces them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(w x) / sum(w): a scalar from values and weights of one shape; 0 where all weights are 0."""
    return (weights * values).sum() / weights.sum().clamp(min=torch.finfo(values.dtype).tiny)


# Demonstrations


def nll_loss(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Language-model loss, nats a token: (B,) from summed log-probs (B,) and the replies' token counts (B,)."""
    return -log_probs / tokens


# Reward models


def bradley_terry_loss(
    better: Tensor,
    worse: Tensor,
    margin: Tensor | float = 0.0,
    label: Tensor | float = 1.0,
    center_rewards_coefficient: float = 0.0,
) -> Tensor:
    """Bradley and Terry, 1952, as eq. 1 of arXiv 2203.02155, of scores (B,) and (B,); loss (B,).

    `margin` (B,) is how far apart the scores should be (arXiv 2307.09288, eq. 2); `label` (B,) is the probability that
    `better` is the better one; `center_rewards_coefficient` weighs (better + worse)^2, which keeps the mean of scores
    at 0 (arXiv 2312.09244; 0.01 there).
    """
    apart = better - worse
    preferred = -label * F.logsigmoid(apart - margin) - (1 - label) * F.logsigmoid(-apart - margin)
    return preferred + center_rewards_coefficient * (better + worse) ** 2


def davidson_loss(left: Tensor, right: Tensor, outcome: Tensor, log_tie: Tensor | float) -> Tensor:
    """Davidson, 1970, eq. 2.3: ties as a third outcome, P(tie) ~ nu sqrt(p_left p_right); loss (B,).

    `outcome` (B,) is 1 where left was preferred, -1 where right was, 0 for a tie; `log_tie` is log nu.
    """
    tie = (left + right) / 2 + log_tie
    log_probs = torch.stack([right, tie, left], dim=-1).log_softmax(-1)
    return -log_probs.gather(-1, (outcome.long() + 1)[..., None])[..., 0]


def soft_davidson_loss(
    left: Tensor,
    right: Tensor,
    wins: Tensor,
    ties: Tensor,
    log_tie: Tensor | float,
    margin: Tensor | float = 0.0,
) -> Tensor:
    """`davidson_loss` with shares as the label: (B,) of people who prefer left, and who prefer neither; loss (B,).

    A tie is half a win in it: the slope over left - right is P(left) + P(tie) / 2 - (wins + ties / 2). `margin` is as
    in `bradley_terry_loss`, and is asked of no tie.
    """
    shares = {1: wins, 0: ties, -1: 1 - wins - ties}
    losses = [
        share * davidson_loss(left - way * margin / 2, right + way * margin / 2, torch.full_like(left, way), log_tie)
        for way, share in shares.items()
    ]
    return torch.stack(losses).sum(0)


def thumb_loss(scores: Tensor, bias: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of P(up) = sigmoid(score - bias), of scores (B,) and their raters' biases (B,); loss (B,).

    `wanted` (B,) is 1 for a thumb up and 0 for one down; a bias is how high a score a person asks for. It is the Rasch
    model (1960) with replies for persons and raters for items.
    """
    return F.binary_cross_entropy_with_logits(scores - bias, wanted, reduction="none")


def rao_kupper_loss(left: Tensor, right: Tensor, outcome: Tensor, threshold: Tensor) -> Tensor:
    """Rao and Kupper, 1967: a tie unless one is better by more than a threshold; loss (B,).

    P(left) = s(d - log theta), P(tie) = (theta^2 - 1) P(left) P(right). `threshold` is log theta, above 0; the other
    arguments are as in `davidson_loss`.
    """
    apart = left - right
    left_wins, right_wins = F.logsigmoid(apart - threshold), F.logsigmoid(-apart - threshold)
    tie = torch.log(torch.expm1(2 * threshold)) + left_wins + right_wins
    return -torch.where(outcome > 0, left_wins, torch.where(outcome < 0, right_wins, tie))


def plackett_luce_loss(scores: Tensor, ranked: Tensor | None = None) -> Tensor:
    """Plackett, 1975: the best is chosen among all, the next among the rest; scores (B, K), best first; loss (B,).

    `ranked` (B, K) is false at the unused places of a row with fewer than K replies, which come last.
    """
    if ranked is not None:
        scores = scores.masked_fill(~ranked, torch.finfo(scores.dtype).min / 2)
    among = scores.flip(-1).logcumsumexp(-1).flip(-1)  # over each reply and all ranked after it
    steps = among - scores
    return (steps if ranked is None else steps.masked_fill(~ranked, 0.0)).sum(-1)


# DPO and its variants

# beta by loss and by whether margins are per token; a pair that is missing means nothing. Summed over a reply, a margin
# is some hundred times what it is per token, so one beta cannot serve both: at 0.02 a pair is settled some 50 nats
# apart, and at 2.0 half a nat a token, as in SimPO (arXiv 2405.14734; 2.0 to 2.5). IPO's target is a gap of
# 1 / (2 beta), 5 nats a token at 0.1, which is TRL's default; summed over replies of any length it is none.
BETAS = {
    ("sigmoid", False): 0.02,
    ("sigmoid", True): 2.0,
    ("robust", False): 0.02,
    ("robust", True): 2.0,
    ("hinge", False): 0.02,
    ("hinge", True): 2.0,
    ("ipo", True): 0.1,
}
SMOOTHED = ("sigmoid", "robust")  # losses that label_smoothing is part of


def betas_in_words() -> str:
    """`BETAS` in words: "sigmoid 0.02, or 2 per token; ..."."""
    told = []
    for loss in dict.fromkeys(loss for loss, _ in BETAS):
        summed, per_token = (BETAS.get((loss, each)) for each in (False, True))
        parts = [f"{summed:g}"] if summed else []
        parts += [f"{per_token:g} per token"] if per_token else []
        told.append(f"{loss} {', or '.join(parts)}")
    return "; ".join(told)


def dpo_margin(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """The implicit reward of the chosen reply minus that of the rejected one: (B,) from four (B,).

    The implicit reward is r = beta log(policy / ref), eq. 5 of arXiv 2305.18290 up to a constant.
    """
    return beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))


def normalised_margin(
    chosen_ratio: Tensor, rejected_ratio: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, beta: float
) -> Tensor:
    """`dpo_margin` per token, so that length alone has no effect: (B,) from log(policy / ref) (B,) and lengths (B,).

    The reference's log-probs are subtracted, as in the length-normalised DPO of arXiv 2411.15124, eq. 6.
    """
    return beta * (chosen_ratio / chosen_tokens - rejected_ratio / rejected_tokens)


def dpo_loss(margin: Tensor, label_smoothing: float = 0.0, offset: Tensor | float = 0.0) -> Tensor:
    """DPO, eq. 7 of arXiv 2305.18290, of margins (B,); loss (B,).

    With `label_smoothing` e it is conservative DPO: the expected loss if a label is wrong with probability e
    (Mitchell, "A note on DPO with noisy preferences", 2023, eq. 3). `offset` (B,) is how far apart the two replies
    should be (DPO with an offset, arXiv 2402.10571), whichever is the better one.
    """
    return -(1 - label_smoothing) * F.logsigmoid(margin - offset) - label_smoothing * F.logsigmoid(-margin - offset)


def robust_dpo_loss(margin: Tensor, flipped: float, offset: Tensor | float = 0.0) -> Tensor:
    """Robust DPO, eq. 11 of arXiv 2403.00409: unbiased where labels are wrong with probability `flipped`; loss (B,).

    `offset` (B,) is as in `dpo_loss`.
    """
    clean = -(1 - flipped) * F.logsigmoid(margin - offset) + flipped * F.logsigmoid(-margin - offset)
    return clean / (1 - 2 * flipped)


def ipo_loss(ratio_gap: Tensor, tau: float) -> Tensor:
    """IPO, eq. 17 of arXiv 2310.12036: (gap - 1 / (2 tau))^2; loss (B,).

    `ratio_gap` (B,) is `normalised_margin` or `dpo_margin` with beta 1; the paper's authors compute it per token.
    """
    return (ratio_gap - 1 / (2 * tau)) ** 2


def hinge_loss(margin: Tensor, offset: Tensor | float = 0.0) -> Tensor:
    """SLiC's hinge on DPO's margin, section 3.1 of arXiv 2309.06657: max(0, 1 + offset - margin); loss (B,)."""
    return torch.relu(1 + offset - margin)


# KTO


def kto_baseline(policy_mismatched: Tensor, ref_mismatched: Tensor) -> Tensor:
    """z0 of KTO, section 4.1 of arXiv 2402.01306: the policy's KL from the reference, estimated on mismatched replies.

    Takes log-probs (B,) of replies to prompts other than their own. Returns a scalar without gradient, clamped to at
    least 0, as a KL cannot be negative.
    """
    if policy_mismatched.numel() == 0:
        return torch.zeros((), dtype=policy_mismatched.dtype, device=policy_mismatched.device)
    return (policy_mismatched - ref_mismatched).mean().clamp(min=0).detach()


def running_kto_baseline(
    policy_mismatched: Tensor, ref_mismatched: Tensor, total: float, count: float, decay: float = 0.9
) -> tuple[float, float]:
    """The sum and the number of mismatched log-ratios that z0 = max(0, sum / number) is of, after one more batch.

    `total` and `count` are those after the batch before, and count `decay` times. A batch holds a few thumbs, whose
    mean, clamped at 0, is too high on average: of one thumb of deviation 6 around 0 by 2.4 nats. In the first batch it
    is `kto_baseline`.
    """
    ratios = policy_mismatched - ref_mismatched
    return decay * total + float(ratios.sum()), decay * count + ratios.numel()


def kto_margin(policy: Tensor, ref: Tensor, baseline: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """How far a reply's reward is on the right side of the baseline: (B,); `wanted` is boolean (B,)."""
    above = beta * (policy - ref - baseline)
    return torch.where(wanted, above, -above)


def kto_loss(margin: Tensor, wanted: Tensor, wanted_weight: float = 1.0, unwanted_weight: float = 1.0) -> Tensor:
    """KTO, eq. 8 of arXiv 2402.01306, of margins (B,): lambda - lambda sigmoid(margin); loss (B,)."""
    weight = torch.where(wanted, wanted_weight, unwanted_weight)
    return weight * (1 - torch.sigmoid(margin))


def kto_weights(wanted: float, unwanted: float, most: float = 4 / 3) -> tuple[float, float]:
    """Weights of a wanted and an unwanted reply that bring the ratio of their sums over the data within 1:1 to 4:3.

    The range is that of arXiv 2402.01306, section 4.2. The mean weight is 1; with only one kind both are 1.
    """
    if not wanted or not unwanted:
        return 1.0, 1.0
    ratio = min(max(wanted / unwanted, 1.0), most)
    total = wanted + unwanted
    return total * ratio / (1 + ratio) / wanted, total / (1 + ratio) / unwanted
