"""The engine behind HTTP against a real vLLM on this machine's processor: `make test-vllm`."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from assistant.chat import adapter_manager
from assistant.chat.assistant import Assistant, open_assistant
from assistant.chat.chat import add_user_message, start_pair, start_reply
from assistant.engine.sampling.params import Sampling
from assistant.engine.vllm.engine import RemoteEngine
from assistant.models.base_model import EMBEDDED, Base
from feedback.accounts import users
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import Database
from tests.helpers.trained import ASKED, LETTER, SAILOR, Trained, train_both
from tests.ui import test_app

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

GREEDY = Sampling(temperature=0, max_tokens=16)
STARTS_WITHIN_S = 600
SCHEMA = {
    "type": "object",
    "properties": {"fruit": {"enum": ["apple", "pear"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["fruit", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vllm(embedded: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM over the embedded model, in float32, so that its log-probs can be compared closely; where it answers."""
    python = os.environ.get("NIGHTSCHOOL_VLLM")
    if not python:
        pytest.skip("no vLLM; run: make test-vllm")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(embedded.path), "--dtype", "float32"]
    command += ["--enable-lora", "--max-lora-rank", "16", "--max-loras", "4"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=os.environ | own, stdout=output, stderr=output, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        assert soon(lambda: process.poll() is not None or well(url), STARTS_WITHIN_S), log.read_text()[-5000:]
        assert process.poll() is None, log.read_text()[-5000:]
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        process.wait()


def well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def soon(holds: Callable[[], bool], within_s: float = 10) -> bool:
    """Whether something becomes true in time."""
    until = time.monotonic() + within_s
    while not holds() and time.monotonic() < until:
        time.sleep(0.1)
    return holds()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Of the embedded model, which the server has."""
    return train_both(tmp_path_factory.mktemp("trained") / EMBEDDED, EMBEDDED)


@pytest.fixture(scope="module")
def data(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.copy(tmp_path_factory.mktemp("chats") / "data")


@pytest.fixture(scope="module")
def assistant(vllm: str, data: Path) -> Iterator[Assistant]:
    store = Database(data)
    opened = open_assistant(store, dtype="float32", engine_url=vllm)
    yield opened
    opened.close()
    store.close()


@pytest.fixture(scope="module")
def local(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assistant]:
    """The same, answered by the engine in this process."""
    store = Database(trained.copy(tmp_path_factory.mktemp("local") / "data"))
    opened = open_assistant(store, dtype="float32")
    yield opened
    opened.close()
    store.close()


def ask(
    assistant: Assistant, question: str, adapter: str | None = "serving", sampling: Sampling = GREEDY
) -> tuple[str, Provenance]:
    """A reply's text, and its record."""
    owner = users.local_owner(assistant.store)
    reply = start_reply(assistant, owner, add_user_message(assistant, owner, None, None, question), sampling, adapter)
    *_, text = reply
    return text, conversations.provenance(assistant.store, reply.id)


def lent(url: str) -> set[str]:
    """The adapters that the server has, by the ids they have here."""
    cards = httpx.get(f"{url}/v1/models").json()["data"]
    return {each["id"].rpartition("-")[0] for each in cards if each["parent"]}


def test_a_chat_is_answered_token_for_token_as_by_the_engine_in_this_process(
    assistant: Assistant, local: Assistant
) -> None:
    text, record = ask(assistant, ASKED[0])
    expected, expected_record = ask(local, ASKED[0])
    assert text == expected
    assert record.token_ids == expected_record.token_ids
    assert record.logprobs == pytest.approx(expected_record.logprobs, abs=2e-3)
    assert set(record.sampled_logprobs) == {0.0}
    assert (record.finish, expected_record.finish) == ("stop", "stop")
    assert assistant.engine.window == local.engine.window
    assert assistant.engine.end_ids == local.engine.end_ids


def test_a_swap_loads_an_adapter_at_run_time_proves_it_and_the_next_reply_is_by_it(
    assistant: Assistant, local: Assistant, vllm: str
) -> None:
    by_base, record = ask(assistant, ASKED[1])
    assert record.adapter is None
    proof = assistant.adapters.promote(None, SAILOR, "better")
    assert proof is not None
    assert proof.from_trainer < proof.tolerance == 2e-3
    assert proof.from_base > 0.1
    assert SAILOR in lent(vllm)
    by_sailor, record = ask(assistant, ASKED[1])
    assert record.adapter == SAILOR
    assert by_sailor != by_base
    assert by_sailor == ask(local, ASKED[1], SAILOR)[0]
    assistant.adapters.promote(None, None, "back")
    assert ask(assistant, ASKED[1])[0] == by_base


def test_a_pair_is_written_by_two_adapters_side_by_side(assistant: Assistant) -> None:
    alone = {name: ask(assistant, ASKED[2], name)[0] for name in (SAILOR, LETTER)}
    owner = users.local_owner(assistant.store)
    message = add_user_message(assistant, owner, None, None, ASKED[2])
    both = start_pair(assistant, owner, message, GREEDY, adapters=(SAILOR, LETTER))
    *_, (left, right) = both
    assert {both.left.adapter: left, both.right.adapter: right} == alone
    assert len(set(alone.values())) == 2
    assert both.pair is not None


def test_a_reply_that_is_stopped_is_stopped_in_the_server_too(assistant: Assistant, vllm: str) -> None:
    owner = users.local_owner(assistant.store)
    message = add_user_message(assistant, owner, None, None, "Tell me a very long story about a lighthouse.")
    reply = start_reply(assistant, owner, message, Sampling(max_tokens=400), None)
    assert reply.advance()
    asked = time.perf_counter()
    reply.finish_now()
    assert time.perf_counter() - asked < 1
    assert conversations.provenance(assistant.store, reply.id).finish == "cancelled"
    assert soon(lambda: 'num_requests_running{engine="0"' not in busy(vllm))
    assert (assistant.engine.active, assistant.engine.waiting) == (0, 0)


def busy(url: str) -> str:
    """The lines of the server's metrics that count requests, where they are not 0."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return "\n".join(each for each in lines if each.startswith("vllm:num_requests_") and not each.endswith(" 0.0"))


def test_a_draw_is_by_its_seed_and_a_schema_is_kept(assistant: Assistant) -> None:
    drawn = Sampling(temperature=1, top_p=1, seed=11, max_tokens=12)
    once, record = ask(assistant, ASKED[3], None, drawn)
    assert ask(assistant, ASKED[3], None, drawn)[0] == once
    assert record.sampled_logprobs == pytest.approx(record.logprobs, abs=1e-3)  # nothing was cut off
    schema = Sampling(json_schema=json.dumps(SCHEMA), max_tokens=60, seed=2)
    counted = json.loads(ask(assistant, "How many fruits do you have? Answer in JSON.", None, schema)[0])
    assert set(counted) == {"fruit", "count"}
    text, record = ask(assistant, ASKED[3], None, Sampling(beams=2, max_tokens=8))
    assert text
    assert len(record.token_ids) <= 8


def test_an_adapter_that_the_roster_forgets_is_unloaded(
    assistant: Assistant, vllm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant.adapters.get(SAILOR)
    assistant.adapters.get(LETTER)
    assert lent(vllm) == {SAILOR, LETTER}
    monkeypatch.setattr(adapter_manager, "MOST_KEPT", 1)
    assistant.adapters.get(LETTER)
    assert soon(lambda: lent(vllm) == {LETTER})
    assert assistant.adapters.loaded() == [LETTER]


def test_an_adapter_that_another_of_us_unloaded_is_lent_again(assistant: Assistant, vllm: str, data: Path) -> None:
    before, _ = ask(assistant, ASKED[4], LETTER)
    other = RemoteEngine(vllm, assistant.base, assistant.tokenizer)
    other.load(data / "adapters" / LETTER)
    other.close()
    assert lent(vllm) == set()
    assert ask(assistant, ASKED[4], LETTER)[0] == before
    assert lent(vllm) == {LETTER}


def test_the_served_program_answers_through_it(vllm: str, tmp_path: Path) -> None:
    with test_app.serving(tmp_path / "data", "--engine", "vllm", "--engine-url", vllm) as (_, url):
        said = {"model": "nightschool", "messages": [{"role": "user", "content": ASKED[0]}], "temperature": 0}
        answered = httpx.post(f"{url}/v1/chat/completions", json=said | {"max_tokens": 16}, timeout=120).json()
        assert "Bananas" in answered["choices"][0]["message"]["content"]
        assert httpx.get(f"{url}/healthz").status_code == 200
