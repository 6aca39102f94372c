"""Beam search: the likeliest whole replies, a few side by side.

It makes the same choices as transformers' `generate(num_beams=k, do_sample=False)`: 2k candidates per step (more if
several tokens end a turn), finished replies scored by their mean log-prob per token, an end when no running beam can
still beat the worst of the k finished, and at the length limit the running ones count as finished too.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Beam:
    """A partial reply: its token ids, their log-probs, and the sum of those."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0

    @property
    def score(self) -> float:
        """Mean log-prob per token, in nats."""
        return self.total / max(len(self.token_ids), 1)

    def grown(self, token: int, logprob: float) -> "Beam":
        """This beam with one more token."""
        return Beam((*self.token_ids, token), (*self.logprobs, logprob), self.total + logprob)


@dataclass
class Search:
    """The beams of one reply. `running` ones go on, `finished` ones have ended; both best first, `width` at most."""

    width: int
    end_ids: frozenset[int]
    running: list[Beam] = field(default_factory=lambda: [Beam()])
    finished: list[Beam] = field(default_factory=list)

    def advance(self, logits: Tensor) -> list[int]:
        """Choose from logits (running beams, V); return, for each new running beam, the old one it grew from."""
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        totals = torch.tensor([beam.total for beam in self.running], device=logits.device)[:, None] + logprobs
        vocabulary = logprobs.shape[1]
        count = min((1 + max(len(self.end_ids), 1)) * self.width, totals.numel())
        grown, parents = [], []
        for rank, flat in enumerate(totals.flatten().topk(count).indices.tolist()):
            parent, token = divmod(flat, vocabulary)
            beam = self.running[parent].grown(token, float(logprobs[parent, token]))
            if token not in self.end_ids:
                grown.append(beam)
                parents.append(parent)
            elif rank < self.width:  # an end that is not among the best k is not taken
                self.finished.append(beam)
        self.running, parents = grown[: self.width], parents[: self.width]
        self.finished = sorted(self.finished, key=lambda beam: -beam.score)[: self.width]
        return parents

    @property
    def done(self) -> bool:
        """Whether no running beam can still beat the worst finished one."""
        if len(self.finished) < self.width:
            return False
        return self.running[0].score <= self.finished[-1].score

    def best(self) -> tuple[Beam, bool]:
        """The best reply so far, and whether it ended by itself."""
        best = max([*self.finished, *self.running], key=lambda beam: beam.score)
        return best, best in self.finished
