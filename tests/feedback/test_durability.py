"""A server that is killed or has no room: nothing acknowledged is lost, nothing refused is half done."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from assistant.models.base_model import Base
from feedback.accounts import users
from feedback.database.database import Database
from feedback.kinds.tally import counts
from feedback.upkeep import health
from tests.conftest import two_replies
from tests.helpers.browser import serving
from tests.helpers.over_http import HERE, loaded, with_store
from tests.helpers.processes import Process
from ui.app import create_app

__all__ = ["loaded"]  # a fixture


def vote(client: httpx.Client, reply: str, value: int = 1, words: str = "") -> httpx.Response:
    """One vote under a key of its own."""
    body = {"reply": reply, "value": value, "words": words}
    return client.post("/api/votes", json=body, headers={"Idempotency-Key": os.urandom(8).hex()})


@pytest.mark.soak
def test_a_server_killed_in_a_burst_of_votes_loses_none_that_it_acknowledged(tmp_path: Path, tiny: Base) -> None:
    store = Database(tmp_path)
    _, reply, _ = two_replies(store, users.local_owner(store))
    acknowledged: list[int] = []

    def vote_until_it_dies(url: str) -> None:
        try:
            with httpx.Client(base_url=url, timeout=30) as client:
                while True:
                    done = vote(client, reply)
                    assert done.status_code == 200, done.text
                    acknowledged.append(done.json()["id"])
        except httpx.HTTPError:
            return

    with serving(tmp_path, ["--model", tiny.name]) as server:
        people_voting = [threading.Thread(target=vote_until_it_dies, args=(server.url,)) for _ in range(8)]
        for each in people_voting:
            each.start()
        while len(acknowledged) < 100:
            time.sleep(0.01)
        server.kill()
        for each in people_voting:
            each.join()
        server.start()  # ready again on the same data
        with httpx.Client(base_url=server.url, timeout=30) as client:
            assert vote(client, reply).status_code == 200
    kept = [row["id"] for row in store.rows("SELECT id FROM votes")]
    assert set(acknowledged) <= set(kept)
    assert len(acknowledged) == len(set(acknowledged))
    assert store.row("PRAGMA integrity_check") == {"integrity_check": "ok"}
    store.close()


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A disk of its own with these mount options, where one can be had."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a disk cannot be mounted here (it takes root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "size=3m") as disk:
        yield disk


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """Nothing can be written there, by root neither."""
    with mounted(tmp_path / "disk", "ro") as disk:
        yield disk


def test_a_full_disk_is_said_clearly_and_chats_and_votes_go_on_when_there_is_room(
    small_disk: Path, loaded: Assistant
) -> None:
    store = Database(small_disk)
    _, reply, _ = two_replies(store, users.local_owner(store))
    ballast = small_disk / "ballast"
    with TestClient(create_app(with_store(loaded, store)), base_url=HERE) as client:
        assert vote(client, reply).status_code == 200
        room = os.statvfs(small_disk)
        ballast.write_bytes(b"x" * (room.f_bavail * room.f_frsize))
        refused = [vote(client, reply, words="y" * 50_000) for _ in range(3)]
        assert {each.status_code for each in refused} == {503}
        assert {"the disk of" in each.json()["error"] for each in refused} == {True}
        unwell = client.get("/healthz")
        assert (unwell.status_code, "the disk of nightschool.db is full" in unwell.json()["error"]) == (503, True)
        assert [each.words for each in health.examine(store) if each.name == "disk"] == [unwell.json()["error"]]
        before = counts(store)["votes"]
        ballast.unlink()
        assert vote(client, reply, value=-1).status_code == 200
        assert client.get("/healthz").json() == {"status": "well"}
        assert counts(store)["votes"] == before + 1
    assert store.row("PRAGMA integrity_check") == {"integrity_check": "ok"}
    store.close()


@pytest.mark.parametrize("program", ["ui.app:main", "training.night.night:main", "ui.cli.main:main chat"])
def test_a_read_only_data_folder_is_one_sentence_and_exit_2(read_only_disk: Path, program: str) -> None:
    name, *act = program.split()
    done = Process(name, [*act, "--data", str(read_only_disk)]).wait(120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
