"""What is told of every drawn token is true: its log-prob, that of the distribution it came from, and its seed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as plain

from assistant.engine.engine import Engine
from assistant.engine.sampling.params import Sampling, Token
from assistant.engine.sampling.sampler import SamplerState
from assistant.models import base_model, chat_template
from assistant.models.adapter import LoadedAdapter
from feedback.messages import Message
from tests.helpers.small_models import Reference
from tests.helpers.trained import LETTER, SAILOR, Trained

TOKENS = 24
WAYS = {
    "plain": Sampling(temperature=1.0, top_p=1.0),
    "cold": Sampling(temperature=0.6, top_p=0.9),
    "hot and short": Sampling(temperature=1.4, top_p=0.95, top_k=40),
    "min-p": Sampling(temperature=1.1, top_p=1.0, min_p=0.05),
    "repetition": Sampling(temperature=0.9, top_p=0.8, repetition_penalty=1.3),
    "presence and frequency": Sampling(temperature=1.0, top_p=0.9, presence_penalty=0.7, frequency_penalty=0.4),
    "biased": Sampling(temperature=0.8, top_p=0.7, logit_bias=((11, 4.0), (28, -5.0))),
    "greedy": Sampling(temperature=0),
}


@dataclass(frozen=True)
class Bench:
    engine: Engine
    reference: Reference
    loaded: dict[str | None, LoadedAdapter | None]
    prompts: list[list[int]]


@pytest.fixture(scope="module")
def bench(trained: Trained) -> Iterator[Bench]:
    directories = {name: trained.adapter(name) for name in (SAILOR, LETTER)}
    tokenizer = base_model.load_tokenizer(trained.base)
    engine = Engine(trained.base, "float32", "cpu", tokenizer)
    loaded: dict[str | None, Any] = {name: engine.load(each) for name, each in directories.items()}
    said = ["Name three fruits.", "Write a line about the sea, the sea, the sea.", "Why is the sky blue?"]
    prompts = [chat_template.encode_prompt(tokenizer, [Message("user", each)], 1000) for each in said]
    yield Bench(engine, Reference(trained.base, directories), loaded | {None: None}, prompts)
    engine.close()


def drawn_from(logits: Tensor, prompt_ids: list[int], before: list[int], asked: Sampling) -> Tensor:
    """Log-probs (V,) that a token was drawn from, by transformers' own processors in the order of its `generate`."""
    scores, ids = logits.clone()[None], torch.tensor([prompt_ids + before])
    if asked.repetition_penalty != 1:
        scores = plain.RepetitionPenaltyLogitsProcessor(asked.repetition_penalty)(ids, scores)
    counts = torch.bincount(torch.tensor(before, dtype=torch.long), minlength=scores.shape[1])
    scores = scores - asked.frequency_penalty * counts - asked.presence_penalty * (counts > 0)
    for token, bias in asked.logit_bias:
        scores[0, token] += bias
    scores = plain.TemperatureLogitsWarper(float(asked.temperature) or 1.0)(ids, scores)
    if asked.top_k:
        scores = plain.TopKLogitsWarper(asked.top_k)(ids, scores)
    if asked.top_p < 1:
        scores = plain.TopPLogitsWarper(asked.top_p)(ids, scores)
    if asked.min_p:
        scores = plain.MinPLogitsWarper(asked.min_p)(ids, scores)
    return scores[0].log_softmax(-1)


def cut_near(asked: Sampling) -> list[Sampling]:
    """As asked, and cut a hair earlier or later: rounding puts a token on the very edge to either side."""
    hair = 1e-4
    return [
        replace(asked, top_p=min(1.0, asked.top_p * factor), min_p=asked.min_p * factor)
        for factor in (1, 1 - hair, 1 + hair)
    ]


Replies = dict[tuple[str, str | None], tuple[list[int], list[Token]]]


@pytest.fixture(scope="module")
def together(bench: Bench) -> Replies:
    """A reply in every way by every adapter, all written together: its prompt and its tokens."""
    writing = {}
    for at, (way, asked) in enumerate(WAYS.items()):
        for name, loaded in bench.loaded.items():
            sampling = replace(asked, seed=100 + at, max_tokens=TOKENS)
            writing[way, name] = bench.engine.submit(bench.prompts[at % len(bench.prompts)], sampling, loaded)
    return {key: (each.prompt_ids, list(each)) for key, each in writing.items()}


@pytest.fixture(scope="module")
def plainly(bench: Bench, together: Replies) -> dict[tuple[str, str | None], Tensor]:
    """The logits (T, V) of a plain forward that the tokens of each reply were drawn from."""
    return {
        (way, name): bench.reference.logits(prompt_ids, [token.id for token in tokens], name)
        for (way, name), (prompt_ids, tokens) in together.items()
    }


def test_both_log_probs_of_every_drawn_token_are_those_of_a_plain_forward(
    together: Replies, plainly: dict[tuple[str, str | None], Tensor]
) -> None:
    for (way, name), (prompt_ids, tokens) in together.items():
        asked, ids, logits = WAYS[way], [token.id for token in tokens], plainly[way, name]
        natural = logits.log_softmax(-1)
        for at, token in enumerate(tokens):
            assert token.logprob == pytest.approx(float(natural[at, token.id]), abs=1e-4)
            if asked.temperature == 0:
                assert token.sampled_logprob == 0.0
                continue
            wanted = [float(drawn_from(logits[at], prompt_ids, ids[:at], each)[token.id]) for each in cut_near(asked)]
            assert any(token.sampled_logprob == pytest.approx(each, abs=1e-3) for each in wanted), (way, at, wanted)


def falls_on(logprobs: Tensor, number: float, token: int) -> bool:
    """Whether a random number means a token of a distribution (V,), or misses it by no more than rounding.

    The numbers from 0 to 1 belong to the tokens by their shares, likeliest first; shares that rounding cannot tell
    apart come in either order.
    """
    shares, own = logprobs.double().exp(), float(logprobs[token])
    begins = float(shares[logprobs > own + 1e-4].sum())
    ends = float(shares[logprobs >= own - 1e-4].sum())
    return math.isfinite(own) and begins - 1e-5 <= number <= ends + 1e-5


def test_a_seed_gives_the_same_reply_in_any_company_with_every_adapter_and_way(
    bench: Bench, together: Replies, plainly: dict[tuple[str, str | None], Tensor]
) -> None:
    for (way, name), (prompt_ids, tokens) in list(together.items())[::2]:
        asked = WAYS[way]
        sampling = replace(asked, seed=100 + list(WAYS).index(way), max_tokens=TOKENS)
        alone = list(bench.engine.submit(prompt_ids, sampling, bench.loaded[name]))
        ids, ids_alone = ([token.id for token in each] for each in (tokens, alone))
        if ids == ids_alone:
            continue
        # Company changes how products are rounded, and a number may lie that near to the edge between two tokens.
        at = next(at for at, pair in enumerate(zip(ids, ids_alone, strict=False)) if pair[0] != pair[1])
        drawer = SamplerState(sampling, prompt_ids)
        number = [drawer.number() for _ in range(at + 1)][at] if asked.temperature else 0.0
        near = [drawn_from(plainly[way, name][at], prompt_ids, ids[:at], each) for each in cut_near(asked)]
        for token in (ids[at], ids_alone[at]):
            assert any(falls_on(each, number, token) for each in near), (way, name, at, number, token)


def test_every_token_is_the_one_that_its_seed_means(
    together: Replies, plainly: dict[tuple[str, str | None], Tensor]
) -> None:
    for (way, name), (prompt_ids, tokens) in together.items():
        asked, ids, logits = WAYS[way], [token.id for token in tokens], plainly[way, name]
        drawer = SamplerState(replace(asked, seed=100 + list(WAYS).index(way)), prompt_ids)
        for at, token in enumerate(ids):
            number = drawer.number() if asked.temperature else 0.0
            near = [drawn_from(logits[at], prompt_ids, ids[:at], each) for each in cut_near(asked)]
            assert any(falls_on(each, number, token) for each in near), (way, name, at, number, token)


def test_two_seeds_give_two_replies(bench: Bench) -> None:
    asked = [Sampling(temperature=1.2, top_p=1.0, seed=seed, max_tokens=TOKENS) for seed in range(6)]
    writing = [bench.engine.submit(bench.prompts[1], each) for each in asked]
    assert len({tuple(token.id for token in each) for each in writing}) == 6


def test_the_likeliest_tokens_and_a_given_reply_have_the_log_probs_of_a_plain_forward(bench: Bench) -> None:
    asked = Sampling(temperature=1.0, seed=5, max_tokens=TOKENS, top_logprobs=7)
    tokens = list(bench.engine.submit(bench.prompts[2], asked, bench.loaded[SAILOR]))
    ids = [token.id for token in tokens]
    natural = bench.reference.logits(bench.prompts[2], ids, SAILOR).log_softmax(-1)
    for at, token in enumerate(tokens):
        best = natural[at].topk(7)
        assert [logprob for _, logprob in token.likeliest] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert natural[at, [each for each, _ in token.likeliest]].tolist() == pytest.approx(
            best.values.tolist(), abs=1e-4
        )
    read = list(bench.engine.score(bench.prompts[2], ids, bench.loaded[SAILOR]))
    assert [token.logprob for token in read] == pytest.approx([token.logprob for token in tokens], abs=1e-4)
