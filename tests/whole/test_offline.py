"""Nothing leaves this machine: chat, rating, a night and a promotion ask no outside address for anything."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from feedback.database.database import Database
from tests.helpers.browser import serving

# Python tells of every connection and look-up before it is made. This refuses and writes down those to elsewhere.
REFUSE_AND_COUNT = """
import os, sys

def watch(event, arguments):
    if event == "socket.connect" or event == "socket.getaddrinfo":
        target = arguments[1] if event == "socket.connect" else arguments
        host = target[0] if isinstance(target, tuple) else None
        if isinstance(host, bytes):
            host = host.decode()
        if host and host not in ("localhost", "0.0.0.0", "::", "::1") and not host.startswith("127."):
            with open(os.environ["OUTSIDE_LOG"], "a") as log:
                log.write(f"{event} {host}\\n")
            raise OSError(f"{host} is refused here")

sys.addaudithook(watch)
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every Python started from now on refuses outside addresses; the file names those it was asked for."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(REFUSE_AND_COUNT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("OUTSIDE_LOG", str(tmp_path / "outside.log"))
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.delenv(name, raising=False)  # the program must see to it itself
    return tmp_path / "outside.log"


def test_the_watch_sees_an_outside_address(outside: Path) -> None:
    asks = "import socket; socket.create_connection(('192.0.2.1', 80))"
    assert subprocess.run([sys.executable, "-c", asks], capture_output=True, check=False).returncode != 0
    assert "192.0.2.1" in outside.read_text()


@pytest.mark.soak
def test_chat_rating_night_and_promotion_ask_nobody_outside(outside: Path, tmp_path: Path) -> None:
    Database(tmp_path / "data").close()  # with the tests' secret: the one conversation teaches
    with serving(tmp_path / "data") as server, httpx.Client(base_url=server.url, timeout=120) as client:
        assert client.get("/").status_code == 200

        def post(path: str, **body: object) -> dict[str, object]:
            done = client.post(path, json=body, headers={"Idempotency-Key": os.urandom(8).hex()})
            assert done.is_success, done.text
            answer: dict[str, object] = done.json()
            return answer

        post("/api/consent", given=True)
        message = {"role": "user", "content": "Say hello."}
        reply = post("/v1/chat/completions", messages=[message], max_tokens=8)
        post("/api/votes", reply=reply["id"], value=-1, reasons=["style"], words="too plain")
        night = [sys.executable, "-m", "training.night", "--data", str(server.data), "--set", "learning_rate=5e-4"]
        subprocess.run(night, check=True)
        subprocess.run(
            [sys.executable, "-m", "ui.cli", "promote", "night-0001", "--data", str(server.data)], check=True
        )
        again = post("/v1/chat/completions", messages=[message], max_tokens=8)
        assert post("/api/votes", reply=again["id"], value=1)
        assert client.get("/api/status").json()["serving"] == "night-0001"
    assert not outside.exists(), outside.read_text()
