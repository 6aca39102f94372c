"""The server as a process: starting, refusing to start, answering, ending."""

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from feedback.accounts import users
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.records import adapters, settings
from tests.conftest import REPOSITORY
from tests.helpers.over_http import HERE, assistant, loaded, make_adapter
from tests.helpers.processes import Process, serving
from ui.app import create_app, look_for_promotions

__all__ = ["assistant", "loaded"]  # fixtures
STORY = [{"role": "user", "content": "Tell me a very long story about a lighthouse."}]
STREAMED = {"model": "nightschool", "messages": STORY, "max_tokens": 1900, "temperature": 0, "stream": True}


def refused(data: Path, *options: str, **environ: str) -> str:
    """What a server says that does not start: one sentence."""
    done = Process("ui.app:main", ["--data", str(data), "--port", "0", *options], REPOSITORY, **environ).wait(120)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def started_stream(url: str, client: httpx.Client) -> Iterator[dict[str, object]]:
    """The events of a long reply, as they come."""
    with client.stream("POST", f"{url}/v1/chat/completions", json=STREAMED, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def finish_of(data: Path, reply: str, within_s: float = 10.0) -> str:
    """How a reply ended, as the store has it."""
    end = time.monotonic() + within_s
    with closing(Database(data)) as store:
        while True:
            try:
                return conversations.provenance(store, reply).finish
            except Refused:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)


# As a process


@pytest.fixture
def served(tmp_path: Path, model: str) -> Iterator[tuple[Process, str]]:
    with serving(tmp_path / "data", "--model", model, "--grace", "1") as running:
        yield running


def test_a_client_that_goes_away_stops_its_reply_and_the_end_of_the_server_every_other(
    tmp_path: Path, served: tuple[Process, str]
) -> None:
    data, (process, url) = tmp_path / "data", served
    with httpx.Client() as client:
        # 1. a reader who leaves after some words
        events = started_stream(url, client)
        _, left, *_ = (next(events)["id"] for _ in range(5))
        events.close()
        assert finish_of(data, str(left)) == "cancelled"

        # 2. the same for one who waits for the whole
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{url}/v1/chat/completions", json=STREAMED | {"stream": False}, timeout=1)
        end = time.monotonic() + 10
        while "nightschool_chats_active 0.0" not in client.get(f"{url}/metrics").text and time.monotonic() < end:
            time.sleep(0.1)
        assert "nightschool_chats_active 0.0" in client.get(f"{url}/metrics").text

        # 3. the server is told to end while it writes
        events = started_stream(url, client)
        _, cut, *_ = (next(events)["id"] for _ in range(5))
        told = time.monotonic()
        process.signal(signal.SIGTERM)
        with suppress(httpx.HTTPError):
            assert list(events) is not None  # reads on until the server hangs up
        assert process.wait(20).returncode == 0
        assert time.monotonic() - told < 10
    assert finish_of(data, str(cut)) == "cancelled"


@pytest.mark.soak
def test_a_connection_that_was_idle_for_as_long_as_proxies_keep_one_still_answers(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (_, url), socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as line:
        for pause_s in (0, 62):
            time.sleep(pause_s)
            line.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = b""
            while part := b"" if answer.endswith(b"}") else line.recv(4096):
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")


def test_a_server_that_cannot_start_says_why_in_one_sentence(tmp_path: Path) -> None:
    data = tmp_path / "data"
    way_out = refused(data, "--host", "0.0.0.0")
    assert "nightschool user add NAME --role operator" in way_out
    assert "NIGHTSCHOOL_OWNER_PASSWORD" in way_out
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        sentence = refused(data, "--port", port)
        assert "in use" in sentence
        assert port in sentence
    assert "a port is a number" in refused(data, "--port", "99999")
    assert "no address" in refused(data, "--host", "no.such.host.invalid")
    assert "0 to 1, not 2.0" in refused(data, "--side-by-side", "2")
    assert "owner's password" in refused(data, NIGHTSCHOOL_OWNER_PASSWORD="short")
    assert "there is no model 'nowhere'" in refused(data, "--model", "nowhere")
    (tmp_path / "file").write_text("not a folder")
    assert "cannot make the data folder" in refused(tmp_path / "file")
    assert refused(Path("/proc/nightschool"))
    with closing(Database(data)) as store:
        assert (users.users(store), settings.setting(store, "side_by_side_share")) == ([], 0.1)


# The page


def test_the_page_names_no_outside_address_to_load_and_forbids_every_one(assistant: Assistant) -> None:
    with TestClient(create_app(assistant), base_url=HERE) as web:
        for path in ("/", "/login", "/docs", "/api/status", "/gradio_api/startup-events", "/nowhere"):
            headers = web.get(path).headers
            assert "frame-ancestors 'none'" in headers["content-security-policy"], path
            assert "http" not in headers["content-security-policy"]
            assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "same-origin")
        page = web.get("/").text
    loaded_by_it = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"([^\"]+)\"", page)
    assert loaded_by_it
    assert [each for each in loaded_by_it if "//" in each] == []
    assert "fonts.googleapis" not in page
    assert 'named_endpoints":{}' in page.replace(" ", "")  # Gradio's own schema shows nothing


def test_a_promotion_made_elsewhere_is_loaded_without_a_message(assistant: Assistant, store: Database) -> None:
    name = make_adapter(assistant, "elsewhere")
    over = threading.Event()
    looking = threading.Thread(target=look_for_promotions, args=(assistant, over))
    looking.start()
    adapters.promote(store, name, None, "by another process", {})
    end = time.monotonic() + 20
    while name not in assistant.adapters.loaded() and time.monotonic() < end:
        time.sleep(0.05)
    over.set()
    looking.join()
    assert name in assistant.adapters.loaded()
