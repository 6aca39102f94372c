"""How tokens are drawn, against transformers' own processors and plain counting; and what may not be asked."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from assistant.engine.sampling.grammar import ANY_OBJECT, Grammars
from assistant.engine.sampling.params import Sampling
from assistant.engine.sampling.sampler import SamplerState, sample, top
from assistant.models import base_model
from assistant.models.base_model import Base
from feedback.errors import Refused

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def expected(logits: Tensor, sampling: Sampling, prompt_ids: list[int]) -> Tensor:
    """The probabilities (V,) that transformers would draw from, for logits (V,)."""
    steps = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    return steps(torch.tensor([prompt_ids]), logits[None].clone().double()).softmax(-1)[0]


def many(logits: Tensor, sampling: Sampling, count: int, prompt_ids: list[int] | None = None) -> list[Any]:
    """So many first tokens of replies with different seeds, drawn in batches."""
    tokens = []
    for start in range(0, count, 500):
        seeds = range(start, min(start + 500, count))
        drawers = [SamplerState(Sampling(**{**vars(sampling), "seed": seed}), prompt_ids or []) for seed in seeds]
        tokens += sample(logits.expand(len(drawers), -1), drawers)
    return tokens


def peaked(size: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    """Logits (V,) of which no two are equal."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


# Against transformers

shares = st.floats(0.01, 1).map(lambda share: round(share, 3))
samplings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 2).map(lambda each: round(each, 2)),
    top_k=st.sampled_from([0, 0, 1, 5, 40, 256, 300]),
    top_p=st.one_of(st.just(1.0), shares),
    min_p=st.one_of(st.just(0.0), shares),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.3]),
    seed=st.integers(0, 2**63 - 1),
)


@settings(deadline=None, max_examples=150)
@example(Sampling(top_p=0.125, top_k=300, seed=0), 3001, 0, 0.3)  # more than are ranked at first, and a share of them
@given(samplings, st.sampled_from([7, 300, 3001, 12_000]), st.integers(0, 99), st.sampled_from([0.3, 2.0, 6.0]))
def test_every_draw_has_the_probability_that_transformers_gives_it(
    sampling: Sampling, size: int, world: int, spread: float
) -> None:
    logits, prompt_ids = peaked(size, world, spread), [0, 3, 5, 3]
    probabilities = expected(logits, sampling, prompt_ids)
    natural = torch.log_softmax(logits.double(), -1)
    for token in many(logits, sampling, 20, prompt_ids):
        assert token.logprob == pytest.approx(float(natural[token.id]), abs=2e-5)
        assert math.exp(token.sampled_logprob) == pytest.approx(float(probabilities[token.id]), rel=1e-3)


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 1.0, "top_p": 1.0},  # partly beyond the 256 likeliest
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 2.0, "top_p": 0.99},  # a nucleus of hundreds
        {"temperature": 1.0, "top_p": 1.0, "top_k": 20},
        {"temperature": 1.2, "top_p": 0.95, "top_k": 300, "min_p": 0.02},
    ],
)
def test_many_draws_follow_the_distribution(asked: dict[str, Any]) -> None:
    logits, count = peaked(3000), 4000
    probabilities = expected(logits, Sampling(**asked), []).numpy()
    ids = [token.id for token in many(logits, Sampling(**asked), count)]
    assert (probabilities[ids] > 0).all()
    # The rarest are counted together, so that every cell expects at least ten.
    order = np.argsort(-probabilities)
    cells = np.minimum((np.cumsum(probabilities[order]) * count / 10).astype(int), count // 10 - 1)
    seen = np.bincount(cells, np.bincount(ids, minlength=3000)[order])
    due = np.bincount(cells, probabilities[order]) * count
    seen, due = seen[due > 0], due[due > 0]
    assert stats.chisquare(seen, due * seen.sum() / due.sum()).pvalue > 1e-3


def test_the_highest_are_found_as_topk_finds_them() -> None:
    for size in (1, 5, 255, 257, 5000, 49_152, 50_257):
        logits = torch.stack([peaked(size, seed) for seed in range(3)])
        for count in (1, 20, 256):
            ranked, order = top(logits, count)
            again, ids = logits.topk(min(count, size))
            assert torch.equal(ranked, again)
            assert torch.equal(order, ids)


def test_greedy_takes_the_likeliest_and_draws_it_surely() -> None:
    logits = torch.stack([peaked(1000, seed) for seed in range(4)])
    tokens = sample(logits, [SamplerState(Sampling(temperature=0), []) for _ in range(4)])
    assert [token.id for token in tokens] == logits.argmax(1).tolist()
    assert [token.sampled_logprob for token in tokens] == [0.0] * 4
    assert [token.logprob for token in tokens] == pytest.approx(logits.log_softmax(1).amax(1).tolist(), abs=1e-5)


# Penalties and bias


def test_penalties_count_the_reply_and_repetition_the_prompt_too() -> None:
    logits = torch.tensor([2.0, 1.9, 1.8, -1.0])
    asked = {"temperature": 0.0, "presence_penalty": 0.15, "frequency_penalty": 0.1}
    drawer = SamplerState(Sampling(**asked), [0, 0, 0])
    # 2.0 once seen is worth 1.75, twice 1.65; 1.9 once 1.65; 1.8 once 1.55.
    assert [sample(logits[None], [drawer])[0].id for _ in range(4)] == [0, 1, 2, 0]
    again = SamplerState(Sampling(temperature=0, repetition_penalty=1.25), [0])
    # 2.0 / 1.25 = 1.6, 1.9 / 1.25 = 1.52, 1.8 / 1.25 = 1.44: once all three are seen the order is as it was.
    assert [sample(logits[None], [again])[0].id for _ in range(4)] == [1, 2, 0, 0]


def test_a_bias_bans_or_forces_a_token_and_the_logprob_is_still_the_models() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    natural = logits.log_softmax(1)[0].tolist()
    for asked, token in (({0: -100}, 1), ({2: 100, 99: 5}, 2)):
        for temperature in (0, 1):
            (drawn,) = sample(logits, [SamplerState(Sampling(temperature=temperature, logit_bias=asked, seed=1), [])])
            assert (drawn.id, drawn.logprob) == (token, pytest.approx(natural[token], abs=1e-5))
    assert torch.equal(logits, torch.tensor([[3.0, 2.0, 1.0]]))


def test_the_likeliest_tokens_are_told_as_the_model_has_them() -> None:
    logits = torch.stack([peaked(9000, 1), peaked(9000, 2)])
    asked = [Sampling(top_logprobs=3, logit_bias={5: 100}, seed=1), Sampling(seed=2)]
    biased, plain = sample(logits, [SamplerState(each, []) for each in asked])
    ranked, order = logits[0].log_softmax(-1).topk(3)
    assert [token for token, _ in biased.likeliest] == order.tolist()
    assert [logprob for _, logprob in biased.likeliest] == pytest.approx(ranked.tolist(), abs=1e-5)
    assert plain.likeliest == ()


# Seeds


def test_a_seed_gives_the_same_tokens_whoever_else_is_answered() -> None:
    steps = [torch.stack([peaked(49_153, 40 * step + row, 1.5) for row in range(16)]) for step in range(6)]
    asked = [
        Sampling(temperature=1.3, top_p=1.0, seed=5),
        Sampling(temperature=0.9, top_p=0.99, min_p=0.001, seed=6),
        Sampling(temperature=1.0, top_k=50, repetition_penalty=1.2, seed=7),
        Sampling(temperature=0),
    ] * 4
    together = [SamplerState(each, [1, 2]) for each in asked]
    with threads(2):
        expected = [sample(step, together) for step in steps]
    for row in range(4):
        alone = SamplerState(asked[row], [1, 2])
        for count in (1, 2):
            alone = SamplerState(asked[row], [1, 2])
            with threads(count):
                got = [sample(step[[row]], [alone])[0] for step in steps]
            assert got == [tokens[row] for tokens in expected]  # to the last bit


def test_without_a_seed_two_replies_differ() -> None:
    logits = peaked(5000)[None]
    drawers = [SamplerState(Sampling(temperature=2, top_p=1), []) for _ in range(2)]
    replies = [[sample(logits, [drawer])[0].id for _ in range(12)] for drawer in drawers]
    assert replies[0] != replies[1]


# JSON


@pytest.fixture(scope="module")
def tokenizer(embedded: Base) -> Any:
    return base_model.load_tokenizer(embedded)


@pytest.fixture(scope="module")
def grammars(tokenizer: Any) -> Grammars:
    return Grammars(tokenizer, frozenset({tokenizer.eos_token_id, 0}), len(tokenizer) + 100)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_noise_under_a_schema_is_json_of_that_schema_and_then_the_turn_ends(
    grammars: Grammars, tokenizer: Any, temperature: float
) -> None:
    sampling = Sampling(temperature=temperature, top_p=1, seed=3, json_schema=json.dumps(PERSON))
    drawer, ids = SamplerState(sampling, [], grammars), []
    generator = torch.Generator().manual_seed(1)
    while not ids or ids[-1] not in (0, tokenizer.eos_token_id):
        logits = torch.randn((1, len(tokenizer) + 100), generator=generator)
        logits[0, -100:] = 50  # the padding of a vocabulary, which is no token
        ids.append(sample(logits, [drawer])[0].id)
    person = json.loads(tokenizer.decode(ids[:-1]))
    assert drawer.failure is None
    assert set(person) == {"name", "age"}
    assert len(person["name"]) <= 12
    assert person["age"] >= 0


def test_a_schema_is_followed_beside_replies_that_are_free(grammars: Grammars, tokenizer: Any) -> None:
    logits = torch.stack([peaked(len(tokenizer), seed) for seed in range(2)])
    held = SamplerState(Sampling(json_schema=ANY_OBJECT, temperature=0), [], grammars)
    free = SamplerState(Sampling(temperature=0), [])
    first, second = sample(logits, [held, free])
    assert tokenizer.decode([first.id]).startswith("{")
    assert second.id == int(logits[1].argmax())


def test_a_reply_that_cannot_go_on_says_why_and_ends(grammars: Grammars, tokenizer: Any) -> None:
    drawer = SamplerState(Sampling(json_schema=ANY_OBJECT), [], grammars)
    drawer.accept(tokenizer.encode("not JSON")[0])
    (token,) = sample(peaked(len(tokenizer))[None], [drawer])
    assert token.id in (0, tokenizer.eos_token_id)
    assert drawer.failure


def test_a_schema_without_an_engine_that_can_follow_it_is_refused() -> None:
    with pytest.raises(Refused, match="cannot hold a reply to a JSON schema"):
        SamplerState(Sampling(json_schema=ANY_OBJECT), [])


# What may be asked


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"top_k": -1}, "top_k is a whole number from 0"),
        ({"top_k": 2.5}, "top_k is a whole number from 0"),
        ({"min_p": 1.5}, "min_p is a number from 0 to 1, not 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is a number above 0 and up to 2, not 0"),
        ({"presence_penalty": 3}, "presence_penalty is a number from -2 to 2"),
        ({"frequency_penalty": "much"}, "frequency_penalty is a number from -2 to 2"),
        ({"stop": "x"}, "stop is a list of at most 4 strings"),
        ({"stop": ["a"] * 5}, "stop is a list of at most 4 strings"),
        ({"stop": [""]}, "a stop string has 1 to 1,000 characters"),
        ({"stop": [1]}, "a stop string has 1 to 1,000 characters"),
        ({"logit_bias": {"x": 1}}, "token ids, whole numbers from 0, and 'x' is none"),
        ({"logit_bias": {1: 200}}, "logit_bias of token 1 is a number from -100 to 100, not 200"),
        ({"logit_bias": 5}, "logit_bias maps token ids to numbers"),
        ({"top_logprobs": 21}, "top_logprobs is a whole number from 0 to 20"),
        ({"json_schema": "{"}, "a JSON schema, an object, as JSON text, not '{'"),
        ({"json_schema": {}}, "a JSON schema, an object, as JSON text, not {}"),
        ({"json_schema": "[1]"}, "an object, as JSON text, not '[1]'"),
        ({"json_schema": '{"type": "strang"}'}, "cannot be followed: Invalid type: strang"),
        ({"json_schema": '{"uniqueItems": true, "type": "array"}'}, "cannot be followed: Unimplemented keys"),
        ({"json_schema": "[" * 100_000}, "a JSON schema, an object, as JSON text"),
        ({"json_schema": " " * 100_001}, "at most 100,000 characters"),
        ({"beams": 2, "top_k": 5}, "top_k does not go with beams over 1"),
        ({"beams": 2, "json_schema": "{}"}, "json_schema does not go with beams over 1"),
        ({"beams": 2, "top_logprobs": 1}, "top_logprobs does not go with beams over 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(bad: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        Sampling(**bad)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_asked_can_be_compared_and_kept_as_json() -> None:
    asked = Sampling(stop=["a", "b"], logit_bias={7: 1, 3: -2.5}, json_schema=ANY_OBJECT)  # type: ignore[arg-type]
    assert asked == Sampling(stop=("a", "b"), logit_bias=((3, -2.5), (7, 1)), json_schema=ANY_OBJECT)
    assert len({asked, Sampling()}) == 2
    assert json.loads(json.dumps(asked.as_dict()))["logit_bias"] == [[3, -2.5], [7, 1]]
