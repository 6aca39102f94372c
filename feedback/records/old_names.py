"""The names of settings and metrics before version 0.2, mapped to today's names.

Adapter cards, rows of nights and `--set` are read through this mapping; only new names are written.
"""

from collections.abc import Callable, Mapping
from typing import Any

SETTINGS = {
    "longest": "max_length",
    "least_steps": "min_steps",
    "looks": "evals_per_epoch",
    "centring": "center_rewards_coefficient",
    "members": "ensemble_size",
    "pessimism": "uncertainty_penalty",
    "reply_tokens": "max_completion_length",
    "end_required": "truncated",
    "require_eos": "truncated",
    "missing_end": "missing_eos_penalty",
    "clip": "clip_coef",
    "value_clip": "cliprange_value",
    "value_weight": "vf_coef",
    "lam": "gae_lambda",
    "kl_target": "adaptive_kl_target",
    "most_kl": "target_kl",
    "horizon": "kl_horizon",
    "minibatches": "num_minibatches",
    "ptx": "ptx_coef",
}
NOW_MEANT: dict[str, Callable[[Any], Any]] = {
    "missing_end": lambda score: -score,  # was added, now subtracted
    "end_required": lambda required: "replace" if int(required) else "keep",
    "require_eos": lambda required: "replace" if int(required) else "keep",
}
METRICS = {
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "chosen_logprob": "logps/chosen",
    "rejected_logprob": "logps/rejected",
    "kl_per_token": "kl",
    "aside_gain": "validation_gain",
    "gradient_norm": "grad_norm",
    "reward_gradient_norm": "reward_grad_norm",
    "approximate_kl": "approx_kl",
}


def settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under today's names, with values converted to today's meaning."""
    return {SETTINGS.get(name, name): NOW_MEANT.get(name, _same)(value) for name, value in stored.items()}


def metrics(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics under today's names."""
    return {METRICS.get(name, name): value for name, value in stored.items()}


def _same(value: Any) -> Any:
    return value
