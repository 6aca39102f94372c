"""The sampler: draws the next tokens of many replies at once from logits.

A row goes through: repetition penalty, frequency and presence penalties, bias, grammar mask, temperature, top-k, top-p,
min-p. That is the order of transformers' `generate` (`_get_logits_processor`); vLLM's sampler differs only in cutting
by min-p first, and adding the bias before the penalties. Unless it is greedy, each reply draws one number per token
from a generator of its own, and no row's arithmetic depends on another's, so a seed gives the same reply in any batch.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from assistant.engine.sampling.grammar import Grammar, Grammars
from assistant.engine.sampling.params import Sampling, Token
from feedback.errors import Refused

# Ranking a whole vocabulary costs milliseconds, and the few likeliest tokens nearly always decide.
CANDIDATES = 256
COLDEST = 1e-5  # temperatures under this overflow float32; at this one the likeliest token is all but certain

Numbers = NDArray[np.float64]


class SamplerState:
    """The sampler's state for one reply: its generator, the tokens that penalties count, its place in its schema."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], grammars: Grammars | None = None) -> None:
        """Raises `Refused` if the JSON schema cannot be followed, or there are no `grammars` to follow it with."""
        self.sampling = sampling
        self.cuts = (max(sampling.temperature, COLDEST), sampling.top_k or math.inf, _share(sampling), sampling.min_p)
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._grammar = _grammar(sampling, grammars)
        self._counting = sampling.repetition_penalty != 1 or bool(
            sampling.presence_penalty or sampling.frequency_penalty
        )
        # The tokens that penalties count, where each is in `_seen`, and how often the reply has it.
        seen = list(dict.fromkeys(prompt_ids)) if sampling.repetition_penalty != 1 else []
        self._slots = {token: slot for slot, token in enumerate(seen)}
        self._seen = torch.tensor(seen, dtype=torch.long)
        self._counts = torch.zeros(len(seen))
        self.shapes = self._counting or bool(sampling.logit_bias) or self._grammar is not None

    @property
    def failure(self) -> str | None:
        """The reason the reply cannot follow its schema to the end, if any; it then draws an end of turn."""
        return self._grammar.failure if self._grammar else None

    def number(self) -> float:
        """The next random number, in [0, 1)."""
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))

    def shape(self, row: Tensor) -> None:
        """Apply penalties, bias and grammar to logits (V,), in place."""
        asked = self.sampling
        if len(self._seen):
            seen, counts = self._seen.to(row.device), self._counts.to(row.device)
            values = row[seen]
            # CTRL (arXiv 1909.05858), as in transformers: towards less likely, whatever the logit's sign.
            factor = asked.repetition_penalty
            values = torch.where(values < 0, values * factor, values / factor)
            row[seen] = values - counts * asked.frequency_penalty - (counts > 0) * asked.presence_penalty
        if asked.logit_bias:
            known = [(token, bias) for token, bias in asked.logit_bias if token < len(row)]
            row[[token for token, _ in known]] += torch.tensor([bias for _, bias in known], device=row.device)
        if self._grammar is not None:
            row.masked_fill_(~self._grammar.allowed(len(row)).to(row.device), -math.inf)

    def accept(self, token: int) -> None:
        """Continue the reply with this token."""
        if self._grammar is not None:
            self._grammar.accept(token)
        if not self._counting:
            return
        if token not in self._slots:
            self._slots[token] = len(self._seen)
            self._seen = torch.cat([self._seen, torch.tensor([token])])
            self._counts = torch.cat([self._counts, torch.zeros(1)])
        self._counts[self._slots[token]] += 1


def _grammar(sampling: Sampling, grammars: Grammars | None) -> Grammar | None:
    if sampling.json_schema is None:
        return None
    if grammars is None:
        raise Refused("this assistant cannot hold a reply to a JSON schema; leave it out")
    return grammars.begin(sampling.json_schema)


def _share(sampling: Sampling) -> float:
    """Top-p; infinite if it cuts nothing, so that rounding cuts nothing either."""
    return sampling.top_p if sampling.top_p < 1 else math.inf


def sample(logits: Tensor, drawers: Sequence[SamplerState]) -> list[Token]:
    """Draw the next token of every reply from its row of logits (R, V), which are left unchanged.

    A token's `logprob` is under the model itself, at temperature 1; its `sampled_logprob` is under the distribution it
    was really drawn from, which has a single token if greedy. The drawers advance by the tokens.
    """
    assert logits.shape[0] == len(drawers)
    logits = logits.float()
    best = logits.amax(1)
    normaliser = best + _sum_of_exp(logits, best).log()
    shaped = _shaped(logits, drawers)

    ids, sampled = [0] * len(drawers), [0.0] * len(drawers)
    greedy = [row for row, drawer in enumerate(drawers) if drawer.sampling.temperature == 0]
    if greedy:
        for row, token in zip(greedy, _rows(shaped, greedy).max(1).indices.tolist(), strict=True):
            ids[row] = token
    drawn = [row for row, drawer in enumerate(drawers) if drawer.sampling.temperature > 0]
    if drawn:
        tokens = _sample(_rows(shaped, drawn), [drawers[row] for row in drawn])
        for row, (token, logprob) in zip(drawn, tokens, strict=True):
            ids[row], sampled[row] = token, logprob

    chosen = logits.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
    logprobs = (chosen - normaliser).tolist()
    likeliest = _likeliest(logits, normaliser, [drawer.sampling.top_logprobs for drawer in drawers])
    for token, drawer in zip(ids, drawers, strict=True):
        drawer.accept(token)
    return [Token(*each) for each in zip(ids, logprobs, sampled, likeliest, strict=True)]


def _shaped(logits: Tensor, drawers: Sequence[SamplerState]) -> Tensor:
    """The logits with penalties, biases and grammars applied; the same tensor if there are none."""
    rows = [row for row, drawer in enumerate(drawers) if drawer.shapes]
    if not rows:
        return logits
    shaped = logits.clone()
    for row in rows:
        drawers[row].shape(shaped[row])
    return shaped


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[rows]


def _sum_of_exp(logits: Tensor, best: Tensor, inverse: Tensor | None = None) -> Tensor:
    """Sum over each row of exp((logits - best) * inverse), (R,).

    In two steps, neither of which torch splits among threads within a row: a row's sum is the same in any batch.
    """
    weights = logits - best[:, None]
    if inverse is not None:
        weights *= inverse[:, None]
    weights.exp_()
    rows, vocabulary = weights.shape
    width = vocabulary // 32
    folded = weights[:, : 32 * width].reshape(rows, 32, width).sum(1)
    return folded.sum(1) + weights[:, 32 * width :].sum(1)


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each row's `count` highest logits, best first, and their ids: the result of `topk`, in half the time.

    The columns are dealt into strips. The highest `count` can only be in the `count` strips with the highest maxima.
    """
    rows, vocabulary = logits.shape
    depth = math.isqrt(vocabulary // count)
    if depth < 4:
        ranked, order = logits.topk(min(count, vocabulary))
        return ranked, order
    width = vocabulary // depth
    strips = logits[:, : depth * width].reshape(rows, depth, width).amax(1).topk(count, sorted=False).indices
    steps = torch.arange(depth, device=logits.device) * width
    columns = (strips[:, None, :] + steps[None, :, None]).flatten(1)
    left_over = torch.arange(depth * width, vocabulary, device=logits.device).expand(rows, -1)
    columns = torch.cat([columns, left_over], 1)
    ranked, at = logits.gather(1, columns).topk(count)
    return ranked, columns.gather(1, at)


def _sample(logits: Tensor, drawers: Sequence[SamplerState]) -> list[tuple[int, float]]:
    """Draw a token from each row of logits (S, V); return it with its log-prob under what it was drawn from."""
    cuts = np.array([drawer.cuts for drawer in drawers])
    numbers = np.array([drawer.number() for drawer in drawers])
    ranked, order = top(logits, CANDIDATES)
    sums = np.zeros(len(cuts))
    if (cuts[:, 1] > CANDIDATES).any():  # otherwise everything needed is ranked
        inverse = torch.from_numpy(1 / cuts[:, 0]).to(logits)
        sums = _sum_of_exp(logits, ranked[:, 0], inverse).double().cpu().numpy()
    at, logprobs, settled = _choose(ranked.double().cpu().numpy(), sums, cuts, numbers)
    ids = order.cpu().numpy()[np.arange(len(at)), at]
    for row in np.flatnonzero(~settled):
        whole = logits[row].cpu().numpy()
        order_of_all = np.argsort(-whole)
        ranked_all = whole[order_of_all].astype(np.float64)
        last, logprobs[[row]], _ = _choose(ranked_all[None], None, cuts[[row]], numbers[[row]])
        ids[row] = order_of_all[last[0]]
    return list(zip(ids.tolist(), logprobs.tolist(), strict=True))


def _choose(
    ranked: Numbers, sums: Numbers | None, cuts: Numbers, numbers: Numbers
) -> tuple[NDArray[np.int64], Numbers, NDArray[np.bool_]]:
    """Draw from logits (S, C) ranked best first: positions, log-probs, and where these candidates were enough.

    `sums` are of exp((logits - best) / temperature) over the whole vocabulary; None means that all of it is ranked
    here. Top-p keeps the fewest tokens that reach p, as in "The Curious Case of Neural Text Degeneration" (1904.09751);
    min-p those with at least that share of the best one's probability (2407.01082). Every cut keeps a prefix of the
    row.
    """
    temperature, top_k, top_p, min_p = (cuts[:, [column]] for column in range(4))
    count = ranked.shape[1]
    # 1. probabilities relative to the best candidate's, after temperature and top-k
    first_k = np.arange(count) < top_k
    weights = np.exp((ranked - ranked[:, :1]) / temperature) * first_k
    reached = weights.cumsum(1)
    total = reached[:, -1:]
    if sums is not None:
        total = np.where(top_k <= count, total, np.maximum(sums[:, None], total))

    # 2. top-p and min-p
    kept = (first_k & (reached - weights < top_p * total) & (weights >= min_p)).sum(1)
    kept = np.maximum(kept, 1)
    rows = np.arange(len(kept))
    uncut = (np.isinf(top_k) & np.isinf(top_p) & (min_p == 0))[:, 0]
    mass = np.where(uncut, total[:, 0], reached[rows, kept - 1])

    # 3. the first candidate at which the random share of that mass is passed
    goal = numbers * mass
    at = np.minimum((reached <= goal[:, None]).sum(1), kept - 1)
    with np.errstate(divide="ignore"):
        logprobs = np.log(weights[rows, at] / mass)
    if sums is None:
        return at, logprobs, np.ones(len(at), dtype=bool)
    cut_here = (top_k <= count) | (reached[:, -1:] >= top_p * total) | (weights[:, -1:] < min_p)
    # Top-p is a share of what top-k leaves, which is not known here if that is more than these candidates.
    known = (top_k <= count) | np.isinf(top_k) | np.isinf(top_p)
    return at, logprobs, (cut_here & known)[:, 0] | (uncut & (goal < reached[:, -1]))


def _likeliest(logits: Tensor, normaliser: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """For each row, as many of the most probable tokens as were asked for, with their log-probs under the model."""
    found: list[tuple[tuple[int, float], ...]] = [()] * len(counts)
    rows = [row for row, count in enumerate(counts) if count]
    if rows:
        ranked, order = top(_rows(logits, rows), max(counts))
        logprobs = (ranked - _rows(normaliser[:, None], rows)).tolist()
        for row, ids, its_logprobs in zip(rows, order.tolist(), logprobs, strict=True):
            found[row] = tuple(zip(ids, its_logprobs, strict=True))[: counts[row]]
    return found
