"""The engine: exact, alone or in company, for many chats at once."""

import math
import threading
from itertools import islice

import pytest
import torch

from assistant.engine.engine import Engine
from assistant.engine.model_runner import SequenceChunk
from assistant.engine.request import Busy, EngineError, Generation
from assistant.engine.sampling.params import Sampling, Token
from assistant.models import base_model, chat_template
from assistant.models.base_model import Base
from feedback.errors import Refused
from feedback.messages import Message

GREEDY = Sampling(temperature=0, max_tokens=40)
QUESTIONS = ["Name three fruits.", "Write a haiku about the sea.", "Why is the sky blue?", "Who are you?", "Say hi."]


@pytest.fixture(scope="module")
def engine(base: Base) -> Engine:
    opened = Engine(base, "float32", "cpu", base_model.load_tokenizer(base))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reference(base: Base) -> torch.nn.Module:
    """The same model as transformers computes it."""
    return base_model.load_model(base, torch.float32, "cpu")


@pytest.fixture(scope="module")
def prompts(base: Base) -> list[list[int]]:
    tokenizer = base_model.load_tokenizer(base)
    return [chat_template.encode_prompt(tokenizer, [Message("user", question)], 1000) for question in QUESTIONS]


def ids(generation: Generation) -> list[int]:
    return [token.id for token in generation]


def generated(reference: torch.nn.Module, prompt_ids: list[int], **options: object) -> list[int]:
    inputs = torch.tensor([prompt_ids])
    mask = torch.ones_like(inputs)
    out = reference.generate(inputs, attention_mask=mask, do_sample=False, max_new_tokens=40, **options)
    return out[0, len(prompt_ids) :].tolist()


def test_greedy_replies_equal_those_of_transformers_alone_and_in_company(
    engine: Engine, reference: torch.nn.Module, prompts: list[list[int]]
) -> None:
    expected = [generated(reference, each) for each in prompts]
    assert [ids(engine.submit(each, GREEDY)) for each in prompts] == expected
    together = [engine.submit(each, GREEDY) for each in prompts]
    assert [ids(each) for each in together] == expected


def test_a_prompt_read_in_chunks_beside_others_is_read_the_same(
    engine: Engine, reference: torch.nn.Module, prompts: list[list[int]], base: Base
) -> None:
    words = " ".join(f"item {at}" for at in range(250))
    long = chat_template.encode_prompt(base_model.load_tokenizer(base), [Message("user", f"Summarise: {words}")], 4000)
    assert len(long) > 600  # three chunks
    beside = engine.submit(prompts[1], GREEDY)
    assert ids(engine.submit(long, GREEDY)) == generated(reference, long)
    assert ids(beside) == generated(reference, prompts[1])


@pytest.mark.parametrize("question", [0, 1, 2])
def test_beam_search_chooses_as_transformers_does(
    engine: Engine, reference: torch.nn.Module, prompts: list[list[int]], question: int
) -> None:
    beams = Sampling(temperature=0, beams=4, max_tokens=40)
    assert ids(engine.submit(prompts[question], beams)) == generated(reference, prompts[question], num_beams=4)


def test_log_probs_are_those_of_a_plain_forward(
    engine: Engine, reference: torch.nn.Module, prompts: list[list[int]]
) -> None:
    tokens = list(engine.submit(prompts[1], Sampling(temperature=0.9, top_p=0.8, seed=3, max_tokens=30)))
    reply = [token.id for token in tokens]
    with torch.inference_mode():
        logits = reference(torch.tensor([prompts[1] + reply])).logits[0, len(prompts[1]) - 1 : -1]
    natural = torch.log_softmax(logits, -1)
    for at, token in enumerate(tokens):
        assert token.logprob == pytest.approx(float(natural[at, token.id]), abs=1e-4)
        # What it was drawn from: the fewest tokens that reach 0.8 at temperature 0.9, worked out plainly.
        tempered = torch.softmax(logits[at] / 0.9, -1)
        ranked, order = tempered.sort(descending=True)
        count = int((ranked.cumsum(-1) < 0.8).sum()) + 1
        assert token.id in order[:count]
        share = float(tempered[token.id] / ranked[:count].sum())
        assert token.sampled_logprob == pytest.approx(math.log(share), abs=1e-3)
    read = [token.logprob for token in engine.score(prompts[1], reply, None)]
    assert read == pytest.approx([token.logprob for token in tokens], abs=1e-4)


def test_a_seed_gives_the_same_reply_whoever_else_is_answered(engine: Engine, prompts: list[list[int]]) -> None:
    seeded = Sampling(temperature=1.0, seed=11, max_tokens=24)
    alone = ids(engine.submit(prompts[2], seeded))
    for each in prompts:
        engine.submit(each, Sampling(temperature=1.0, max_tokens=24))
    assert ids(engine.submit(prompts[2], seeded)) == alone
    assert ids(engine.submit(prompts[2], Sampling(temperature=1.0, seed=12, max_tokens=24))) != alone


def test_a_cancelled_reply_keeps_its_tokens_and_frees_its_place(engine: Engine, prompts: list[list[int]]) -> None:
    writing = engine.submit(prompts[1], Sampling(temperature=1.5, max_tokens=2000, seed=1))
    first = writing.take()
    writing.cancel()
    rest = ids(writing)
    assert first
    assert writing.finish == "cancelled"
    assert len(first) + len(rest) < 2000
    assert (engine.active, engine.waiting) == (0, 0)


def test_a_full_queue_says_so_and_harms_nobody(engine: Engine, prompts: list[list[int]]) -> None:
    short = Sampling(temperature=0, max_tokens=2)
    accepted: list[Generation] = []

    def submit_many() -> None:
        for _ in range(200):
            accepted.append(engine.submit(prompts[0], short))

    with pytest.raises(Busy, match="busy, position 65"):
        submit_many()
    assert len({tuple(ids(each)) for each in accepted}) == 1


def test_a_prompt_over_the_window_is_refused(engine: Engine) -> None:
    with pytest.raises(Refused, match="takes at most"):
        engine.submit([5] * engine.window, GREEDY)


def test_a_step_that_fails_fails_its_replies_and_serves_the_next(engine: Engine, prompts: list[list[int]]) -> None:
    bad = engine.submit([10**9], GREEDY)  # no such token: the embedding cannot be looked up
    with pytest.raises(Exception, match="the assistant failed while answering"):
        ids(bad)
    assert len(ids(engine.submit(prompts[0], GREEDY))) > 3


def ids_or_error(generation: Generation) -> list[int] | EngineError:
    try:
        return ids(generation)
    except EngineError as error:
        return error


@pytest.mark.parametrize("fault", [SystemExit(3), MemoryError("no memory left"), KeyboardInterrupt()])
def test_a_thread_that_dies_fails_its_replies_clearly_and_another_serves_the_next(
    engine: Engine, prompts: list[list[int]], fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ids(engine.submit(prompts[0], GREEDY))
    faults, forward, thread = iter([fault]), engine.network.forward, engine._thread

    def once(parts: list[SequenceChunk]) -> torch.Tensor:
        for each in faults:
            raise each
        return forward(parts)

    monkeypatch.setattr(engine.network, "forward", once)
    writing = [engine.submit(prompts[0], GREEDY) for _ in range(40)]
    ends = [ids_or_error(each) for each in writing]
    failed = [each for each in ends if isinstance(each, EngineError)]
    assert 1 <= len(failed) <= 32  # those who waited are answered
    assert all(str(each).startswith("the assistant failed while answering (") for each in failed)
    assert all(each == alone for each in ends if not isinstance(each, EngineError))
    assert ids(engine.submit(prompts[0], GREEDY)) == alone
    thread.join(timeout=10)
    assert (engine.alive, engine.active, engine.waiting, thread.is_alive()) == (True, 0, 0, False)


def test_what_came_while_nobody_read_is_there_for_who_reads_on() -> None:
    writing = Generation([1], GREEDY, None)
    for item in (*(Token(each, 0.0, 0.0) for each in range(5)), None):
        writing.put(item)
    assert [token.id for token in islice(writing, 2)] == [0, 1]
    assert ids(writing) == [2, 3, 4]


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"top_p": 0},
        {"max_tokens": 0},
        {"seed": -1},
        {"beams": 99},
    ],
)
def test_unusable_sampling_is_refused_by_name(bad: dict[str, object]) -> None:
    with pytest.raises(Refused, match=next(iter(bad))):
        Sampling(**bad)  # type: ignore[arg-type]


def test_closing_ends_what_is_being_written(base: Base, prompts: list[list[int]]) -> None:
    opened = Engine(base, "float32", "cpu", base_model.load_tokenizer(base))
    writing = opened.submit(prompts[1], Sampling(temperature=1.5, max_tokens=4000))
    assert writing.take()
    threading.Thread(target=opened.close).start()
    ids(writing)
    assert writing.finish == "cancelled"
    with pytest.raises(Busy, match="shutting down"):
        opened.submit(prompts[0], GREEDY)
