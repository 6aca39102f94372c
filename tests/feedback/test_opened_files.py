"""No code of ours opens a file of the database but through SQLite.

Closing any descriptor of a file drops all POSIX locks that the process holds on it, SQLite's too; then another process
may remove the log under a live server. SQLite's own opening is not seen by Python's audit events, everything else is.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from assistant.models.base_model import Base
from feedback.accounts import users
from feedback.database.database import Database
from feedback.kinds.comparison import compare
from tests.conftest import REPOSITORY, two_replies
from tests.helpers.browser import free_port
from tests.helpers.processes import Process, until

WATCH = """
import os, sys
def watch(event, arguments):
    if event in ("open", "shutil.copyfile", "shutil.copytree", "os.rename", "os.remove"):
        names = [os.fsdecode(each) for each in arguments[:2] if isinstance(each, (str, bytes, os.PathLike))]
        if any(os.path.basename(each).startswith("nightschool.db") for each in names):
            with os.fdopen(os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT), "w") as file:
                file.write(f"{event} {' '.join(names)}\\n")
sys.addaudithook(watch)
"""


def watched(tmp_path: Path) -> dict[str, str]:
    """An environment in which every Python process writes down what it opens of a database."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'watch'}:{REPOSITORY}", "WATCHED": str(tmp_path / "opened.txt")}


def opened(tmp_path: Path, data: Path) -> list[str]:
    """What was opened of the live database, its locks aside."""
    file = tmp_path / "opened.txt"
    said = file.read_text().splitlines() if file.exists() else []
    return [each for each in said if f"{data}/nightschool.db" in each and ".db.lock" not in each]


def serve_watched(arguments: list[str]) -> int:
    """In the new process: the server, under the watch that its engine's process has, too."""
    from ui.app import main

    exec(WATCH, {})
    return main(arguments)


def nightschool(environment: dict[str, str], *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ui.cli", *words], env=environment, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data folder with a comparison in it, held open as by a server."""
    with closing(Database(tmp_path / "data")) as store:
        owner = users.local_owner(store)
        users.set_consent(store, owner, True)
        _, left, right = two_replies(store, owner)
        compare(store, owner, left, right, "left")
        yield store.data


@pytest.mark.soak
def test_the_server_opens_the_database_through_sqlite_alone(tmp_path: Path, data: Path, tiny: Base) -> None:
    environment, port = watched(tmp_path), free_port()
    asked = ["--data", str(data), "--model", tiny.name, "--port", str(port)]
    server = Process("tests.feedback.test_opened_files:serve_watched", asked, **environment)
    try:
        until(lambda: "answers at" in server.stdout, server)
        for path in ("", "operate/", "api/status", "api/me", "metrics"):
            assert httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=30).status_code == 200, path
    finally:
        server.kill()
    assert opened(tmp_path, data) == []


def test_the_commands_open_the_database_through_sqlite_alone(tmp_path: Path, data: Path) -> None:
    environment, copy = watched(tmp_path), tmp_path / "copy"
    for words in (["backup", str(copy)], ["doctor"], ["export", str(tmp_path / "out"), "--format", "trl"]):
        nightschool(environment, *words, "--data", str(data))
    nightschool(environment, "restore", str(copy), "--data", str(tmp_path / "new"))
    assert opened(tmp_path, data) == []
    assert opened(tmp_path, copy) != []  # the watch sees: a finished copy is read, to know its SHA-256
