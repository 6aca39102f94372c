"""What lies on the disk is for this account's eyes alone, from the first byte on."""

import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from assistant.models.base_model import Base
from feedback.accounts import users
from feedback.database.database import Database
from feedback.formats import files
from feedback.kinds.comparison import compare
from feedback.upkeep import backup
from tests.conftest import two_replies
from tests.feedback.test_backup import learned
from tests.helpers.commands import as_process
from tests.ui.test_app import serving


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """As most accounts have it: what is made is readable by everybody unless its maker takes care."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def nightschool(*arguments: str | Path, said: str = "") -> str:
    """Run a command that ends well; what it said."""
    done = as_process(*map(str, arguments), said=said)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def open_to_others(folder: Path) -> dict[str, str]:
    """What others may read, write or enter: the folder, and everything below it."""
    modes = {str(each): each.lstat().st_mode for each in (folder, *folder.rglob("*")) if not each.is_symlink()}
    return {path: stat.filemode(mode) for path, mode in modes.items() if mode & 0o077}


@contextmanager
def watched(data: Path) -> Iterator[list[str]]:
    """What others could have reached at any moment meanwhile, looked at as often as can be."""
    seen: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            time.sleep(0.0005)
            try:
                mode = data.stat().st_mode
                if mode & 0o077:
                    seen.append(stat.filemode(mode))
            except FileNotFoundError:
                pass

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


def test_a_first_start_leaves_nothing_open_at_any_moment(tiny: Base, tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    with watched(data) as seen, serving(data, "--model", tiny.name) as (_, url):
        httpx.post(
            f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        )
        there = {each.name for each in data.iterdir()}
        assert {"nightschool.db", "nightschool.db-wal", "nightschool.db-shm", "secret"} <= there
        assert open_to_others(data) == {}
    assert seen == []


def test_a_night_leaves_nothing_open(tiny: Base, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with closing(Database(data)) as store:
        me = users.local_owner(store)
        users.set_consent(store, me, True)
        for word in ("one", "two", "three", "four"):
            _, left, right = two_replies(store, me, word)
            compare(store, me, left, right, "left")
    nightschool("night", "--data", data, "--model", tiny.name, "--set", "min_steps=2", "--set", "batch_size=4")
    assert list(data.glob("adapters/*/adapter_model.safetensors"))
    assert open_to_others(data) == {}


def test_no_command_leaves_anything_open(tmp_path: Path) -> None:
    data, rows = tmp_path / "data", tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "hello", "chosen": "good day", "rejected": "go away"}\n' * 3)
    nightschool("import", rows, "--data", data)
    nightschool("set", "side_by_side_share", "0.5", "--data", data)
    nightschool("user", "add", "ada", "--role", "operator", "--data", data, said="a-long-secret-42\n")
    out = [tmp_path / "out" / f"all{suffix}" for suffix in (".jsonl", ".json", ".parquet")]
    for each in (*out, tmp_path / "out" / "folder"):
        nightschool("export", each, "--data", data)
    nightschool("export", tmp_path / "out" / "own.json", "--format", "own", "--user", "ada", "--data", data)
    nightschool("backup", tmp_path / "kept", "--data", data)
    nightschool("restore", tmp_path / "kept", "--data", tmp_path / "again")
    nightschool("restore", tmp_path / "kept", "--replace", "--data", data)
    for folder in (data, tmp_path / "kept", tmp_path / "again", tmp_path / "out" / "folder"):
        assert open_to_others(folder) == {}
    written = [each for each in (tmp_path / "out").iterdir() if each.is_file()]
    assert len(written) == 4
    assert {stat.filemode(each.stat().st_mode) for each in written} == {"-rw-------"}


def test_a_store_is_private_whoever_opens_it(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "data")) as store:
        two_replies(store, users.local_owner(store))
        assert {each.name for each in store.data.iterdir()} >= {"nightschool.db-wal", "nightschool.db-shm"}
        assert open_to_others(store.data) == {}
        learned(store)
        files.write(tmp_path / "rows.csv", iter([{"a": "b"}]))
        backup.back_up(store, tmp_path / "kept")
    assert open_to_others(tmp_path / "kept") == {}
    assert stat.S_IMODE((tmp_path / "rows.csv").stat().st_mode) == 0o600


def opened_up(data: Path) -> None:
    """As an older version left it, or somebody who copied it about."""
    for each in (data, *data.rglob("*")):
        if not each.is_symlink():
            each.chmod(0o755 if each.is_dir() else 0o644)


def test_what_others_could_read_is_closed_when_it_is_next_opened_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    with closing(Database(data)) as store:
        learned(store)
    (data / "night.log").write_text("night 1")
    opened_up(data)
    with caplog.at_level(logging.WARNING), closing(Database(data)):
        assert open_to_others(data) == {}
    with caplog.at_level(logging.WARNING), closing(Database(data)):
        pass
    assert [each.getMessage() for each in caplog.records] == [
        f"others could read {data}; from now on this account alone can"
    ]


def test_a_copy_that_others_could_read_comes_back_closed(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "data")) as store:
        learned(store)
        opened_up(store.data / "adapters")
        backup.back_up(store, tmp_path / "kept")
    assert open_to_others(tmp_path / "kept") == {}
    opened_up(tmp_path / "kept")
    backup.restore(tmp_path / "kept", tmp_path / "again")
    assert open_to_others(tmp_path / "again") == {}


def test_closing_a_data_folder_touches_nothing_that_is_not_ours(tmp_path: Path) -> None:
    shared, data = tmp_path / "shared", tmp_path / "project"
    for folder in (shared, data / "src"):
        folder.mkdir(parents=True)
        (folder / "run.sh").write_text("true")
        (folder / "run.sh").chmod(0o755)
    (data / "adapters").symlink_to(shared)
    with closing(Database(data)):
        assert stat.S_IMODE((data / "src" / "run.sh").stat().st_mode) == 0o755
        assert stat.S_IMODE((shared / "run.sh").stat().st_mode) == 0o755
        assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_a_folder_that_everybody_writes_in_is_not_taken_from_them(tmp_path: Path) -> None:
    everybodys = tmp_path / "tmp"
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    with closing(Database(everybodys)):
        assert stat.S_IMODE(everybodys.stat().st_mode) == 0o1777
        assert {stat.S_IMODE(each.stat().st_mode) for each in everybodys.iterdir()} == {0o600}
