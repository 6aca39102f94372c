"""Other people's clients against a real server: OpenAI's for Node, LiteLLM, LangChain, and Gradio's.

They are installed where nothing of ours is, in the versions that tests/clients names.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

from feedback.database.database import Database
from tests.helpers.browser import serving
from tests.helpers.over_http import rows

pytestmark = pytest.mark.soak
CLIENTS = Path(__file__).parents[1] / "clients"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clients' scripts, where they can be installed."""
    return Path(shutil.copytree(CLIENTS, tmp_path_factory.mktemp("clients") / "clients"))


@pytest.fixture(scope="module")
def python(folder: Path) -> str:
    """An interpreter with the clients for Python."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    there = str(folder / "venv" / "bin" / "python")
    install(there, "-m", "pip", "install", "-q", "-r", str(folder / "requirements.txt"), cwd=folder)
    return there


@pytest.fixture(scope="module")
def node(folder: Path) -> str:
    """Node, with OpenAI's client beside the script."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("there is no Node on this machine")
    install(npm, "install", "--silent", "--no-audit", "--no-fund", cwd=folder)
    return node


def install(*command: str, cwd: Path) -> None:
    """Run an installer; without an index of packages, there is nothing to test."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} could not install the clients; is there a package index? {done.stderr[-300:]}")


@pytest.fixture
def url(tiny: Any, tmp_path: Path) -> Iterator[str]:
    with serving(tmp_path / "data", ["--model", tiny.name]) as server:
        yield server.url.rstrip("/")


def saw(*command: str, cwd: Path) -> dict[str, Any]:
    """What a client's script says it saw."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def counted(data: Path) -> dict[str, int]:
    store = Database(data)
    try:
        return rows(store)
    finally:
        store.close()


def test_openais_client_for_node(node: str, folder: Path, url: str, tmp_path: Path) -> None:
    told = saw(node, "ask.mjs", url, cwd=folder)
    assert len({told[name] for name in ("whole", "streamed", "text", "chunked")}) == 1
    assert told["models"] == ["nightschool", "base"]
    invalid = {"kind": "BadRequestError", "status": 400}
    assert told["long"] == invalid | {"code": "context_length_exceeded", "param": "messages"}
    assert told["unknown"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}
    assert told["wrong"] == invalid | {"code": "invalid_type", "param": "temperature"}
    assert counted(tmp_path / "data")["conversations"] == 6  # four replies, one after retries, one aborted


def test_litellm(python: str, folder: Path, url: str) -> None:
    told = saw(python, "ask_litellm.py", url, cwd=folder)
    assert told["whole"] == told["streamed"] == told["text"]
    assert (told["long"], told["longest"]) == ("ContextWindowExceededError", "ContextWindowExceededError")
    assert (told["unknown"], told["wrong"]) == ("NotFoundError", "BadRequestError")


def test_langchain(python: str, folder: Path, url: str) -> None:
    told = saw(python, "ask_langchain.py", url, cwd=folder)
    assert {told["whole"], *told["batch"]} == {told["streamed"]}
    assert told["usage"] > 10
    assert told["long"] == ["OpenAIContextOverflowError", "context_length_exceeded"]
    assert (told["text"], told["cut"]) != ("", "")


def test_gradios_client_is_told_that_the_pages_are_no_api(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no /gradio_api/info here"):
        Client(url, verbose=False)
    assert counted(tmp_path / "data")["conversations"] == 0
