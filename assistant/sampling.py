"""How the next token is drawn from logits.

Each reply draws from a generator of its own, so a seed gives the same reply whoever else is answered meanwhile.
Left out on purpose: beam search, which chooses among whole replies (`beam`).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from feedback.store import Refused

MOST_BEAMS = 8


@dataclass(frozen=True)
class Sampling:
    """What a person or program may ask of one reply. `temperature` 0 is greedy; `seed` None draws one."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 512
    seed: int | None = None
    beams: int = 1  # over 1: beam search, deterministic

    def __post_init__(self) -> None:
        if not (_number(self.temperature) and 0 <= self.temperature <= 2):
            raise Refused(f"temperature is a number from 0 to 2, not {self.temperature!r}")
        if not (_number(self.top_p) and 0 < self.top_p <= 1):
            raise Refused(f"top_p is a number above 0 and up to 1, not {self.top_p!r}")
        if not (type(self.max_tokens) is int and self.max_tokens >= 1):
            raise Refused(f"max_tokens is a whole number from 1, not {self.max_tokens!r}")
        if self.seed is not None and not (type(self.seed) is int and 0 <= self.seed < 2**63):
            raise Refused(f"a seed is a whole number from 0 and under 2**63, not {self.seed!r}")
        if not (type(self.beams) is int and 1 <= self.beams <= MOST_BEAMS):
            raise Refused(f"beams is a whole number from 1 to {MOST_BEAMS}, not {self.beams!r}")

    def as_dict(self) -> dict[str, Any]:
        """For the reply's record."""
        return asdict(self)


def _number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[int, float, float]:
    """One token from float32 logits (V,): its id, its log-prob in nats under the model, and under what was drawn from.

    Greedy draws from a distribution of one, so the second log-prob is 0. Top-p keeps the fewest tokens whose
    probabilities (at this temperature) reach p, as in "The Curious Case of Neural Text Degeneration" (1904.09751).
    """
    if sampling.temperature == 0:
        token = int(logits.argmax())
        return token, float(logits[token] - logits.logsumexp(-1)), 0.0
    order, drawn_from = _nucleus(logits / sampling.temperature, sampling.top_p)
    at = int(torch.multinomial(drawn_from.exp(), 1, generator=generator))
    token = int(order[at])
    return token, float(logits[token] - logits.logsumexp(-1)), float(drawn_from[at])


def _nucleus(logits: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest tokens whose probabilities reach `top_p`, likeliest first, and their log-probs among themselves."""
    if top_p >= 1:
        return torch.arange(len(logits)), torch.log_softmax(logits, dim=-1)
    # Sorting a whole vocabulary costs milliseconds, and the few likeliest tokens nearly always reach p.
    normaliser = logits.logsumexp(-1)
    ranked, order = logits.topk(min(256, len(logits)))
    probs = (ranked - normaliser).exp()
    if float(probs.sum()) < top_p:
        ranked, order = logits.sort(descending=True)
        probs = (ranked - normaliser).exp()
    kept = probs.cumsum(-1) - probs < top_p
    return order[kept], torch.log_softmax(ranked[kept], dim=-1)
