"""Losses and estimates of on-policy methods (REINFORCE, RLOO and PPO), as pure functions.

R replies of at most T tokens; (R, T) tensors come with a mask (R, T), true at a reply's own tokens. Log-probs, KL and
entropy are in nats. Losses are per token, unreduced, and 0 where the mask is false; `masked_mean` reduces them.
"""

import torch
from torch import Tensor

SPREAD = 1e-4  # added to a standard deviation that advantages are divided by
MOST_WEIGHT = 2.0  # of a token that the trainer finds likelier than the engine that drew it
EPSILON = 1e-8  # added to a variance under the root, as in the code of arXiv 1909.08593


def masked_mean(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean over the tokens (R, T) of all replies; `weights` (R,) weigh each token by its reply."""
    share = mask.to(values.dtype) * (1.0 if weights is None else weights[:, None])
    return (share * values).sum() / share.sum().clamp(min=torch.finfo(values.dtype).tiny)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale values (R, T) to variance 1 over the mask; their mean becomes 0, or stays if `shift_mean` is false.

    The variance is the biased one, as in the code of arXiv 1909.08593.
    """
    mean = masked_mean(values, mask)
    scaled = (values - mean) * (masked_mean((values - mean) ** 2, mask) + EPSILON).rsqrt()
    return torch.where(mask, scaled if shift_mean else scaled + mean, 0.0)


# Rewards


def replaced_scores(scores: Tensor, ended: Tensor, instead: float = -1.0) -> Tensor:
    """Replace the scores (R,) of replies that did not end by themselves with `instead`: detail 23 of arXiv 2403.17031.

    Replaced, not lowered: a reward model's score of an unfinished reply means nothing.
    """
    return torch.where(ended, scores, torch.full_like(scores, instead))


def token_rewards(scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """-beta log(policy / ref) at every token, plus the score at the last: (R, T), section 2.2 of arXiv 1909.08593.

    `scores` are (R,); the log-probs (R, T) are those of the policy that sampled and of the reference model.
    """
    rewards = torch.where(mask, -beta * (log_probs - ref_log_probs), 0.0)
    last = mask.sum(-1) - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def next_kl_coefficient(beta: float, kl: float, target: float, replies: int, horizon: int) -> float:
    """The adaptive controller of arXiv 1909.08593, section 2.2: beta (1 + clip(kl / target - 1, +-0.2) n / horizon).

    `kl` and `target` are in the same unit, here nats a token; n is `replies`, those sampled since the last update.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * replies / horizon)


# Advantages


def rloo_advantages(rewards: Tensor) -> Tensor:
    """Each reply's reward minus the mean of the prompt's other replies: (P, K) from (P, K), eq. 8 of arXiv 2402.14740.

    K is at least 2.
    """
    others = (rewards.sum(-1, keepdim=True) - rewards) / (rewards.shape[-1] - 1)
    return rewards - others


def group_advantages(rewards: Tensor) -> Tensor:
    """Each reply's reward minus the mean of all K replies to its prompt: (P, K) from (P, K).

    Section 4.1.2 of arXiv 2402.03300 (GRPO) before its division by the standard deviation (`scaled_advantages`).
    """
    return rewards - rewards.mean(-1, keepdim=True)


def scaled_advantages(advantages: Tensor, rewards: Tensor, of_batch: bool) -> Tensor:
    """Divide advantages (P, K) by the standard deviation of each prompt's rewards (P, K), or of the whole batch's.

    The deviations are the unbiased ones; `SPREAD` is added to them, as in TRL. Dividing by a prompt's own deviation
    makes prompts on which replies hardly differ count most (arXiv 2503.20783, section 3.1).
    """
    spread = rewards.std() if of_batch else rewards.std(-1, keepdim=True)
    return advantages / (spread + SPREAD)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (R, T) from rewards and values (R, T): eq. 16 of arXiv 1506.02438.

    The value after a reply's last token is 0. Returns are advantages plus values.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    advantage = coming = torch.zeros_like(values[:, 0])
    for at in reversed(range(values.shape[1])):
        delta = rewards[:, at] + gamma * coming - values[:, at]
        advantage = delta + gamma * gae_lambda * advantage
        advantages[:, at], coming = advantage, values[:, at]
    return advantages, advantages + values


# Losses


def reinforce_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """-A log p (Williams, 1992), without gradient through the advantages; inputs and output share any one shape."""
    return -advantages.detach() * log_probs


def ppo_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float, clip_high: float | None = None
) -> Tensor:
    """max(-A r, -A clip(r, 1 - clip, 1 + clip_high)), r = p / p_old; inputs and output share one shape.

    Eq. 7 of arXiv 1707.06347, in which both bounds are the same, as they are if `clip_high` is None; a higher upper one
    lets unlikely tokens become likely (arXiv 2503.14476, section 3.1).
    """
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """r - 1 - log r, r = ref / policy: an estimate of KL(policy || reference) that is never negative.

    Nats a token, in the shape of both inputs (Schulman, "Approximating KL divergence", 2020; eq. 4 of arXiv
    2402.03300).
    """
    log_ratio = ref_log_probs - log_probs
    return log_ratio.exp() - 1 - log_ratio


def importance_weights(log_probs: Tensor, drawn: Tensor, most: float = MOST_WEIGHT) -> Tensor:
    """min(p / q, `most`) of each token, without gradient, where the engine drew it with q: in the inputs' shape.

    Corrects for the engine and the trainer rounding differently (truncated importance sampling: Ionides, 2008).
    """
    return (log_probs - drawn).exp().clamp(max=most).detach()


def reply_weights(tokens: Tensor, kept: Tensor, normalise: str, longest: int) -> Tensor:
    """The weight (R,) of the token losses of each reply, of `tokens` (R,); 0 where `kept` (R,) is false.

    - "sequence": a reply weighs its summed log-prob, the mean over replies is taken (arXiv 2402.14740)
    - "reply": the mean over each reply's tokens, then over replies (GRPO, arXiv 2402.03300)
    - "token": the mean over the tokens of all replies (DAPO, arXiv 2503.14476)
    - "constant": the sum over tokens, divided by the `longest` a reply may be and by the number of replies
      (Dr. GRPO, arXiv 2503.20783)
    """
    kept, replies = kept.to(torch.float64), len(tokens)
    if normalise == "token":
        return kept / (kept * tokens).sum().clamp(min=1)
    share: dict[str, Tensor | float] = {"sequence": 1.0, "reply": 1 / tokens.clamp(min=1), "constant": 1 / longest}
    return kept * share[normalise] / replies


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the larger of the squared errors of the value and of the value clipped to within `clip` of the old one.

    As in the code of arXiv 1909.08593 (arXiv 2403.17031, table 5); inputs and output share one shape.
    """
    near = torch.minimum(torch.maximum(values, old_values - clip), old_values + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


# Metrics


def kl_per_position(policy_logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact KL(policy || reference) over the whole vocabulary: (N,) nats from logits (N, V)."""
    policy, ref = policy_logits.float().log_softmax(-1), ref_logits.float().log_softmax(-1)
    return (policy.exp() * (policy - ref)).sum(-1)


def entropy_per_position(logits: Tensor) -> Tensor:
    """Entropy: (N,) nats from logits (N, V)."""
    log_probs = logits.float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def approx_kl(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Half the mean squared log-ratio of two policies, nats a token: a scalar, as in the code of arXiv 1909.08593."""
    return 0.5 * masked_mean((log_probs - old_log_probs) ** 2, mask)


def clip_fraction(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The share of tokens whose ratio is outside 1 +- clip: a scalar."""
    ratio = (log_probs - old_log_probs).exp()
    return masked_mean(((ratio - 1).abs() > clip).to(log_probs.dtype), mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - var(returns - values) / var(returns): 1 if values predict returns exactly, 0 or less if not at all."""

    def variance(of: Tensor) -> Tensor:
        return masked_mean((of - masked_mean(of, mask)) ** 2, mask)

    return 1 - variance(returns - values) / variance(returns).clamp(min=torch.finfo(values.dtype).tiny)
