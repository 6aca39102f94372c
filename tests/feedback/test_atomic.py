"""Files and folders that appear whole or not at all."""

import stat
from pathlib import Path

import pytest

from feedback import atomic


class Stopped(Exception):
    pass


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text("old")
    with atomic.file(path) as making:
        assert making.suffix == ".json"
        assert stat.S_IMODE(making.stat().st_mode) == 0o600
        making.write_text("new")
        assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["facts.json"]
    assert path.read_text() == "new"


def test_one_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    def fail(making: Path) -> None:
        making.write_text("half")
        raise Stopped

    atomic.write(tmp_path / "facts.json", b"old")
    with pytest.raises(Stopped), atomic.file(tmp_path / "facts.json") as making:
        fail(making)
    with pytest.raises(Stopped), atomic.folder(tmp_path / "folder") as making:
        fail(making / "file")
    assert [each.name for each in tmp_path.iterdir()] == ["facts.json"]
    assert (tmp_path / "facts.json").read_bytes() == b"old"


def test_what_a_killed_program_left_behind_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".facts.making.json").write_text("half")
    (tmp_path / ".folder.making").mkdir()
    (tmp_path / ".folder.making" / "file").write_text("half")
    atomic.write(tmp_path / "facts.json", b"whole")
    with atomic.folder(tmp_path / "folder") as making:
        assert not list(making.iterdir())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["facts.json", "folder"]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic.folder(tmp_path / "folder") as making:
            (making / text).write_text(text)
    assert [each.name for each in (tmp_path / "folder").iterdir()] == ["new"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    with atomic.file(path, by="1") as first, atomic.file(path, by="2") as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the last that was finished
