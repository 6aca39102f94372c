"""The engine behind HTTP against servers that are not there, are others, fail, or forget. vLLM itself: `test_vllm`."""

import dataclasses
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from assistant.engine.request import Busy, EngineError
from assistant.engine.sampling.params import Sampling
from assistant.engine.vllm.engine import RemoteEngine
from assistant.engine.vllm.protocol import LIKELIEST, drawn_logprob
from assistant.models.adapter import CONFIG, WEIGHTS, AdapterCard, AdapterRefused, write_card
from assistant.models.base_model import Base, file_sha256, find_base, load_tokenizer
from feedback.errors import Refused
from tests.helpers.foreign import LOGPROB, SAID, Foreign, serving
from tests.helpers.tiny import make_tiny
from tests.ui.test_app import refused

PROMPT = [1, 4093, 198]


@pytest.fixture(scope="module")
def base(tiny: Base) -> Base:
    return tiny


@pytest.fixture
def foreign(base: Base) -> Iterator[Foreign]:
    with serving(Foreign(base, load_tokenizer(base))) as running:
        yield running


@pytest.fixture
def engine(foreign: Foreign) -> Iterator[RemoteEngine]:
    opened = RemoteEngine(foreign.url, foreign.base, foreign.tokenizer)
    yield opened
    opened.close()


def make_adapter(folder: Path, base: Base, **config: object) -> Path:
    """An adapter's directory as far as this side reads it."""
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(b"what only the server reads")
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4} | config))
    card = AdapterCard(
        id=folder.name,
        base_name=base.name,
        base_sha256=base.sha256,
        parent=None,
        method="sft",
        weights_sha256=file_sha256(folder / WEIGHTS),
        data_sha256="",
        counts={},
        settings={},
        seed=0,
        metrics={},
    )
    write_card(folder, card)
    return folder


def soon(holds: Callable[[], bool]) -> bool:
    """Whether something becomes true within 5 s."""
    until = time.monotonic() + 5
    while not holds() and time.monotonic() < until:
        time.sleep(0.01)
    return holds()


# Before it starts


def free_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_server_that_is_not_there_or_no_model_server_is_refused(base: Base, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    with pytest.raises(Refused, match=r"no model server answers at http://127\.0\.0\.1"):
        RemoteEngine(free_url(), base, tokenizer)
    for url in ("nowhere", "ftp://somewhere", "http://", "http://[::1"):
        with pytest.raises(Refused, match="--engine-url is a web address"):
            RemoteEngine(url, base, tokenizer)
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    with pytest.raises(Refused, match="no OpenAI-compatible server: GET /v1/models gave HTTP 404"):
        RemoteEngine(f"http://127.0.0.1:{web.server_address[1]}", base, tokenizer)
    web.shutdown()
    web.server_close()
    thread.join()


def test_a_server_that_would_go_wrong_in_mid_chat_is_refused_with_the_way_out(
    foreign: Foreign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dataclasses.replace(foreign)
    wrongs = {
        "has another tokenizer": {"spoils": 1},
        "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING": {"has_lora": False},
        "--logprobs-mode raw_logprobs": {"tells": LOGPROB - 2},
        "wants a key: set VLLM_API_KEY": {"key": "secret"},
        "is currently busy": {"behaves": "is busy"},
    }
    for says, wrong in wrongs.items():
        vars(foreign).update(wrong)
        with pytest.raises(Refused, match=says):
            RemoteEngine(foreign.url, foreign.base, foreign.tokenizer)
        vars(foreign).update({name: getattr(whole, name) for name in wrong})
    other = find_base(str(make_tiny(tmp_path / "other", seed=1)))
    with pytest.raises(Refused, match="--served-model-name other"):
        RemoteEngine(foreign.url, other, foreign.tokenizer)
    foreign.key = "secret"
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    RemoteEngine(f"{foreign.url}/v1/", foreign.base, foreign.tokenizer).close()


def test_the_command_that_cannot_reach_its_server_says_so_and_exits_with_2(tmp_path: Path, base: Base) -> None:
    options = ("--model", str(base.path), "--engine", "vllm", "--engine-url")
    assert "no model server answers at" in refused(tmp_path / "data", *options, free_url())
    assert "say --engine vllm" in refused(tmp_path / "data", "--engine-url", free_url())


# While it answers


def test_a_reply_comes_with_its_ids_and_log_probs_and_says_all_that_shapes_it(
    engine: RemoteEngine, foreign: Foreign
) -> None:
    sampling = Sampling(
        temperature=0,
        max_tokens=9_999,
        seed=7,
        top_k=5,
        min_p=0.1,
        logit_bias=((3, -1.0),),
        json_schema='{"type": "object"}',
    )
    reply = engine.submit(PROMPT, sampling)
    assert [(token.id, token.logprob, token.sampled_logprob) for token in reply] == [(SAID, LOGPROB, 0.0)] * 4
    assert reply.finish == "stop"
    asked = foreign.bodies[-1]
    assert (asked["prompt"], asked["max_tokens"]) == (PROMPT, 512 - len(PROMPT))  # the server's window
    assert (asked["seed"], asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (7, 5, 0.1, 1.0)
    assert asked["logit_bias"] == {"3": -1.0}
    assert asked["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert asked["stop_token_ids"] == [foreign.tokenizer.eos_token_id]
    assert soon(lambda: (engine.active, engine.waiting) == (0, 0))
    assert engine.tokens_written == 4


def test_a_given_reply_is_read_in_pieces_that_the_server_takes(engine: RemoteEngine, foreign: Foreign) -> None:
    given = list(range(10, 160))
    read = list(engine.score(PROMPT, given, None))
    assert [token.id for token in read] == given
    assert {token.logprob for token in read} == {LOGPROB}
    assert [len(each["prompt"]) for each in foreign.bodies[-2:]] == [100, 50]
    assert foreign.bodies[-1]["prompt"][0] == PROMPT + given[:100]


def test_a_server_that_fails_in_mid_reply_is_one_sentence_and_the_next_reply_is_written(
    engine: RemoteEngine, foreign: Foreign
) -> None:
    for behaves, says in {"dies": "broke off", "errs": "out of memory", "babbles": "not understood"}.items():
        foreign.behaves = behaves
        with pytest.raises(EngineError, match=says) as failed:
            list(engine.submit(PROMPT, Sampling()))
        assert len(str(failed.value).splitlines()) == 1
        foreign.behaves = "well"
        assert len(list(engine.submit(PROMPT, Sampling()))) == 4


def test_a_busy_server_is_busy_at_once(engine: RemoteEngine, foreign: Foreign) -> None:
    foreign.behaves = "is busy"
    with pytest.raises(Busy, match="the assistant is busy: The engine is currently busy"):
        engine.submit(PROMPT, Sampling())
    with pytest.raises(Refused, match="takes at most 512"):
        engine.submit([1] * 512, Sampling())


def test_a_server_that_is_gone_is_said_in_one_sentence_and_seen_by_the_health_check(base: Base) -> None:
    foreign = Foreign(base, load_tokenizer(base))
    with serving(foreign):
        engine = RemoteEngine(foreign.url, base, foreign.tokenizer)
        assert engine.alive
    assert not engine.alive
    with pytest.raises(EngineError, match=r"connection to the model server at .* is lost"):
        list(engine.submit(PROMPT, Sampling()))
    with serving(foreign, port=int(foreign.url.rpartition(":")[2])):  # back again
        assert engine.alive
        assert len(list(engine.submit(PROMPT, Sampling()))) == 4
    engine.close()


def test_a_cancelled_reply_closes_its_stream_at_once(engine: RemoteEngine, foreign: Foreign) -> None:
    foreign.behaves = "hangs"
    reply = engine.submit(PROMPT, Sampling())
    assert reply.take()
    assert (engine.active, engine.waiting) == (1, 0)
    asked = time.perf_counter()
    reply.cancel()
    list(reply)
    assert time.perf_counter() - asked < 1
    assert reply.finish == "cancelled"
    assert foreign.hung_up.wait(timeout=2)
    assert engine.active == 0


def test_closing_ends_replies_as_cancelled_and_leaves_no_thread(foreign: Foreign) -> None:
    before = set(threading.enumerate())
    engine = RemoteEngine(foreign.url, foreign.base, foreign.tokenizer)
    foreign.behaves = "hangs"
    replies = [engine.submit(PROMPT, Sampling()) for _ in range(8)]
    engine.close()
    for reply in replies:
        list(reply)
    assert {reply.finish for reply in replies} == {"cancelled"}
    assert not engine.alive
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(PROMPT, Sampling())
    # the foreign server's own threads end with their connections
    assert soon(lambda: not any(each.name == "remote engine" for each in set(threading.enumerate()) - before))


# Adapters


def test_an_adapter_is_loaded_under_a_name_of_its_content_and_unloaded_when_its_last_reply_is_over(
    engine: RemoteEngine, foreign: Foreign, tmp_path: Path
) -> None:
    directory = make_adapter(tmp_path / "night-0001", foreign.base)
    adapter = engine.load(directory)
    again = engine.load(directory)
    assert foreign.loaded == {adapter.lora_slot.model: str(directory)}
    engine.unload(again)
    foreign.behaves = "hangs"
    reply = engine.submit(PROMPT, Sampling(), adapter)
    assert reply.take()
    assert foreign.bodies[-1]["model"] == adapter.lora_slot.model
    engine.unload(adapter)
    time.sleep(0.2)
    assert foreign.loaded  # its reply is being written
    reply.cancel()
    assert soon(lambda: not foreign.loaded)


def test_other_content_has_another_name(engine: RemoteEngine, foreign: Foreign, tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    one = engine.load(make_adapter(tmp_path / "one" / "night-0001", foreign.base))
    other = engine.load(make_adapter(tmp_path / "other" / "night-0001", foreign.base, lora_alpha=1))
    assert one.id == other.id == "night-0001"
    assert one.lora_slot.model != other.lora_slot.model


def test_a_server_started_anew_is_given_its_adapter_again(
    engine: RemoteEngine, foreign: Foreign, tmp_path: Path
) -> None:
    directory = make_adapter(tmp_path / "night-0001", foreign.base)
    adapter = engine.load(directory)
    foreign.loaded.clear()
    assert len(list(engine.submit(PROMPT, Sampling(), adapter))) == 4
    assert list(foreign.loaded) == [adapter.lora_slot.model]
    foreign.loaded.clear()
    (directory / CONFIG).write_text("{}")
    with pytest.raises(AdapterRefused, match="was changed on disk"):
        list(engine.submit(PROMPT, Sampling(), adapter))


def test_a_damaged_adapter_never_reaches_the_server(engine: RemoteEngine, foreign: Foreign, tmp_path: Path) -> None:
    directory = make_adapter(tmp_path / "night-0001", foreign.base)
    (directory / WEIGHTS).write_bytes(b"other weights")
    with pytest.raises(AdapterRefused, match="is damaged"):
        engine.load(directory)
    assert foreign.loaded == {}


# What a token was drawn from

DRAWS = (
    Sampling(temperature=1, top_p=1),
    Sampling(temperature=0.7, top_p=0.95),
    Sampling(temperature=1.2, top_p=0.8),
    Sampling(temperature=1, top_p=1, top_k=3),
    Sampling(temperature=0.9, top_p=0.9, min_p=0.1),
)


@pytest.mark.parametrize("sampling", DRAWS, ids=str)
def test_the_log_prob_that_a_token_was_drawn_with_is_worked_out_from_the_likeliest(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        logprobs = torch.log_softmax(5 * torch.randn(200, generator=generator, dtype=torch.float64), dim=-1)
        ranked, order = logprobs.sort(descending=True)
        # By the book, over the whole vocabulary: temperature, min-p, top-k, top-p, and what is left sums to 1.
        probs = torch.softmax(ranked / sampling.temperature, dim=-1)
        probs[probs < sampling.min_p * probs[0]] = 0
        probs[sampling.top_k or len(probs) :] = 0
        probs /= probs.sum()
        probs[probs.cumsum(-1) - probs >= sampling.top_p] = 0
        probs /= probs.sum()
        known = [(int(order[at]), float(ranked[at])) for at in range(LIKELIEST)]
        at = random.Random(0).choice([at for at in range(LIKELIEST) if probs[at] > 0])
        told = drawn_logprob(float(ranked[at]), known, sampling)
        assert told == pytest.approx(math.log(probs[at]), abs=0.02)
