"""The end of the server while replies are being written: nothing torn, nothing lost, and soon."""

import json
import signal
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from assistant.models.base_model import EMBEDDED
from feedback.chats import conversations
from feedback.database.database import Database
from tests.helpers.over_http import HERE, loaded, with_store
from tests.helpers.processes import Process, serving, until
from ui.app import create_app

__all__ = ["loaded"]  # fixture
STORY = [{"role": "user", "content": "Tell me a very long story about a lighthouse."}]
LONG = {"messages": STORY, "max_tokens": 1900, "temperature": 0}
DOCKER_S = 10.0  # then it kills


@dataclass
class Asked:
    """What came of one request; `torn` says how its answer broke off."""

    status: int = 0
    headers: Any = None
    reply: str = ""
    text: str = ""
    events: list[Any] = field(default_factory=list)
    torn: str = ""

    def stream(self, url: str, body: dict[str, Any]) -> None:
        """Ask for a stream, and read it to its end."""
        try:
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body | {"stream": True}, timeout=60) as answer:
                self.status, self.headers = answer.status_code, answer.headers
                for line in answer.iter_lines():
                    self.read(line)
        except httpx.HTTPError as error:
            self.torn = repr(error)

    def read(self, line: str) -> None:
        """Read a line of an answer."""
        if line.startswith("data: "):
            event = json.loads(line[6:]) if line != "data: [DONE]" else line[6:]
            self.events.append(event)
            if "choices" in event:
                self.reply, text = event["id"], event["choices"][0]["delta"].get("content", "")
                self.text += text
        elif line.startswith("{"):
            self.events.append(json.loads(line))

    def plain(self, url: str, body: dict[str, Any]) -> None:
        """Ask for a whole reply."""
        try:
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            self.status, self.headers = answer.status_code, answer.headers
            self.events = [answer.json()]
        except (httpx.HTTPError, ValueError) as error:
            self.torn = repr(error)

    def require_ended(self) -> None:
        """Fails unless the answer is whole, or says as its kind does that the server is shutting down."""
        assert not self.torn, self.torn
        last = self.events[-1]
        if self.status == 503:
            assert self.headers["retry-after"]
            assert "shutting down" in last["error"]["message"]
            assert (last["error"]["type"], set(last["error"])) == ("server_error", {"message", "type", "param", "code"})
            return
        assert self.status == 200
        if self.headers["content-type"].startswith("text/event-stream"):
            assert last == "[DONE]"
            told = self.events[-2]
            assert "error" not in told or "shutting down" in told["error"]["message"]
            assert "error" in told or told["choices"][0]["finish_reason"] in ("stop", "length")
        else:
            assert last["choices"][0]["finish_reason"] in ("stop", "length")


def under_load(url: str, process: Process, count: int) -> tuple[list[Asked], list[Asked], float]:
    """Tell a server to end under so many streams and plain requests; the answers, and the seconds until it is gone."""
    streams, plains = ([Asked() for _ in range(count)] for _ in range(2))
    bodies = [LONG | {"max_tokens": 1900 if each % 2 else 40, "seed": each, "temperature": 1} for each in range(count)]
    threads = [
        threading.Thread(target=act, args=(url, body))
        for acts in ([each.stream for each in streams], [each.plain for each in plains])
        for act, body in zip(acts, bodies, strict=True)
    ]
    for each in threads:
        each.start()
    end = time.monotonic() + 60
    while sum(bool(each.text) for each in streams) < count // 2 and time.monotonic() < end:
        time.sleep(0.01)
    told = time.monotonic()
    process.signal(signal.SIGTERM)
    assert process.wait(30).returncode == 0, process.stderr
    took_s = time.monotonic() - told
    for each in threads:
        each.join()
    return streams, plains, took_s


def require_rest(web: httpx.Client, data: Path, asked: Asked) -> None:
    """Fails unless a reader who comes back gets the rest of what is kept, and nothing twice."""
    with closing(Database(data)) as store:
        kept = conversations.node(store, asked.reply).content
    answer = web.get(f"/api/turns/{asked.reply}/events?from={len(asked.text)}")
    rest = [json.loads(each[6:]) for each in answer.text.splitlines() if each.startswith("data: ")]
    assert asked.text + "".join(each.get("text", "") for each in rest) == kept
    assert rest[-1]["until"] == len(kept)


def test_the_end_tears_no_stream_and_fails_no_request_and_a_reader_who_comes_back_has_everything_once(
    tmp_path: Path, model: str, loaded: Assistant
) -> None:
    data, before = tmp_path / "data", list[Asked]()
    is_tiny = model != EMBEDDED
    for _ in range(1 if is_tiny else 20):
        with serving(data, "--model", model, *(("--grace", "0.5") if is_tiny else ())) as (process, url):
            with httpx.Client(base_url=url, timeout=30) as web:
                for each in before:
                    require_rest(web, data, each)
            streams, plains, took_s = under_load(url, process, 16)
        for each in (*streams, *plains):
            each.require_ended()
        assert took_s < DOCKER_S
        assert "the server ends: of " in process.stderr
        assert "Traceback" not in process.stderr
        before = [each for each in streams if each.text]
        assert before
    with closing(Database(data)) as store, TestClient(create_app(with_store(loaded, store)), base_url=HERE) as web:
        for each in before:
            require_rest(web, data, each)


def test_while_it_ends_it_begins_no_reply_and_answers_all_else_and_a_second_signal_ends_it(
    tmp_path: Path, model: str
) -> None:
    data = tmp_path / "data"
    with serving(data, "--model", model, "--grace", "60") as (process, url):
        slow = Asked()
        reading = threading.Thread(target=slow.stream, args=(url, LONG))
        reading.start()
        until(lambda: bool(slow.text), process)
        process.signal(signal.SIGINT)
        until(lambda: httpx.get(f"{url}/healthz").status_code == 503, process)
        assert "shutting down" in httpx.get(f"{url}/healthz").json()["error"]

        refused = Asked()
        refused.plain(url, LONG)
        refused.require_ended()
        assert refused.status == 503
        pair = httpx.post(f"{url}/api/pairs", json={"messages": STORY}, headers={"Idempotency-Key": "a"})
        assert (pair.status_code, "shutting down" in pair.json()["error"]) == (503, True)
        assert int(pair.headers["retry-after"]) > 0
        consent = httpx.post(f"{url}/api/consent", json={"given": True}, headers={"Idempotency-Key": "b"})
        assert consent.status_code == 200

        told = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait(20).returncode == 0
        assert time.monotonic() - told < 5
        reading.join()
        slow.require_ended()
        with closing(Database(data)) as store:
            assert conversations.provenance(store, slow.reply).finish == "cancelled"
            assert conversations.node(store, slow.reply).content.startswith(slow.text)
    assert "of 1 replies being written, 0 were finished and 1 cut short" in process.stderr


def test_a_resumable_stream_is_written_on_when_its_connection_breaks_and_replies_that_fit_the_grace_are_finished(
    tmp_path: Path, model: str
) -> None:
    body = LONG | {"max_tokens": 100, "stream": True, "stream_options": {"resumable": True}}
    with serving(tmp_path / "data", "--model", model) as (process, url):
        had, short = Asked(), Asked()
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                had.read(line)
                if had.text:
                    break
        answer = httpx.get(f"{url}/api/turns/{had.reply}/events?from={len(had.text)}", timeout=60)
        rest = [json.loads(each[6:]) for each in answer.text.splitlines() if each.startswith("data: ")]
        text = had.text + "".join(each.get("text", "") for each in rest)
        assert rest[-1] == {"until": len(text), "finish": "length"}

        reading = threading.Thread(target=short.stream, args=(url, LONG | {"max_tokens": 100}))
        reading.start()
        until(lambda: bool(short.text), process)
        process.signal(signal.SIGTERM)
        assert process.wait(20).returncode == 0
        reading.join()
    short.require_ended()
    assert short.events[-2]["choices"][0]["finish_reason"] == "length"
    with closing(Database(tmp_path / "data")) as store:
        kept = {asked.reply: conversations.node(store, asked.reply).content for asked in (had, short)}
    assert kept == {had.reply: text, short.reply: short.text}
