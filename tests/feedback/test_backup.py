"""A backup is the whole school at one moment, and comes back as it was."""

import json
import shutil
import threading
from pathlib import Path

import pytest

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database, now
from feedback.errors import Conflict, NotFound
from feedback.kinds.tally import counts
from feedback.kinds.vote import DOWN, UP, vote
from feedback.records import adapters
from feedback.records.adapters import Adapter
from feedback.upkeep import backup, health
from feedback.upkeep.backup import Damaged, back_up, restore
from tests.conftest import two_replies
from tests.helpers.commands import as_process, nightschool, refused


def learned(store: Database, name: str = "night-0001") -> None:
    """An announced adapter with files."""
    folder = adapters.directory(store, name)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(name.encode() * 1000)
    adapters.add_adapter(store, Adapter(name, None, None, "auto", "b" * 64, "w" * 64, "candidate", "fine", now()))


def test_a_backup_made_while_people_vote_comes_back_whole(store: Database, owner: User, tmp_path: Path) -> None:
    _, reply, _ = two_replies(store, owner)
    learned(store)
    stop = threading.Event()

    def vote_on() -> None:
        while not stop.is_set():
            with store.transaction():
                vote(store, owner, reply, UP)
                users.set_consent(store, owner, True)

    voting = threading.Thread(target=vote_on)
    voting.start()
    made = back_up(store, tmp_path / "kept")
    stop.set()
    voting.join()

    assert set(made.files) == {"nightschool.db", "adapters/night-0001/adapter_model.safetensors"}
    restore(tmp_path / "kept", tmp_path / "again")
    again = Database(tmp_path / "again")
    counted = again.row("SELECT (SELECT count(*) FROM votes) AS v, (SELECT count(*) FROM consents) AS c")
    assert counted is not None
    assert counted["v"] == counted["c"]  # written together
    assert all(finding.well for finding in health.examine(again) if finding.name != "disk")
    folder = adapters.directory(again, "night-0001")
    assert (folder / "adapter_model.safetensors").read_bytes() == b"night-0001" * 1000
    vote(again, users.local_owner(again), reply, DOWN)
    again.close()


def test_a_damaged_backup_is_refused_and_changes_nothing(store: Database, owner: User, tmp_path: Path) -> None:
    two_replies(store, owner)
    back_up(store, tmp_path / "kept")
    for harm in ("byte", "missing", "manifest"):
        shutil.rmtree(tmp_path / "harmed", ignore_errors=True)
        harmed = Path(shutil.copytree(tmp_path / "kept", tmp_path / "harmed"))
        database = harmed / "nightschool.db"
        if harm == "byte":
            contents = bytearray(database.read_bytes())
            contents[len(contents) // 2] ^= 1
            database.write_bytes(contents)
        elif harm == "missing":
            database.unlink()
        else:
            (harmed / "backup.json").write_text("[]")
        with pytest.raises(Damaged, match="is damaged"):
            restore(harmed, tmp_path / "again")
        assert not (tmp_path / "again").exists()
    with pytest.raises(NotFound, match="is no backup"):
        restore(tmp_path / "nowhere", tmp_path / "again")


def test_data_that_is_there_is_kept_and_data_in_use_is_left_alone(store: Database, owner: User, tmp_path: Path) -> None:
    _, reply, _ = two_replies(store, owner)
    back_up(store, tmp_path / "kept")
    vote(store, owner, reply, UP)
    with pytest.raises(Conflict, match="--replace puts it aside"):
        restore(tmp_path / "kept", store.data)
    used = nightschool("restore", str(tmp_path / "kept"), "--data", str(store.data), "--replace")
    refused(used, "is in use")
    store.close()
    aside = restore(tmp_path / "kept", store.data, replace=True)
    assert aside is not None
    old, new = Database(aside), Database(store.data)
    assert (counts(old)["votes"], counts(new)["votes"]) == (1, 0)
    old.close()
    new.close()


def test_a_damaged_database_is_not_backed_up(store: Database, owner: User, tmp_path: Path) -> None:
    two_replies(store, owner)
    with store.alone() as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("INSERT INTO votes (user, reply, value, at) VALUES (1, 'no such reply', 1, 'now')")
    with pytest.raises(Damaged, match="a row of votes refers to nothing"):
        back_up(store, tmp_path / "kept")
    assert list(tmp_path.glob("*kept*")) == []
    found = {finding.name: finding for finding in health.examine(store)}
    assert not found["references"].well


def test_the_doctor_finds_what_is_missing_and_what_is_left(store: Database, owner: User) -> None:
    assert [finding.name for finding in health.examine(store) if not finding.well and finding.name != "disk"] == []
    learned(store)
    shutil.rmtree(adapters.directory(store, "night-0001"))
    (store.data / "adapters" / ".night-0002.making").mkdir()
    found = {finding.name: finding for finding in health.examine(store)}
    assert "night-0001 are gone" in found["adapters"].words
    assert ".night-0002.making" in found["leftovers"].words
    adapters.directory(store, "night-0003").mkdir()
    learned(store, "night-0004")
    shutil.copytree(adapters.directory(store, "night-0004"), adapters.directory(store, "night-0001"))
    found = {finding.name: finding for finding in health.examine(store)}
    assert "nobody announced night-0003" in found["adapters"].words


def test_the_commands_back_up_restore_and_examine(store: Database, owner: User, tmp_path: Path) -> None:
    two_replies(store, owner)
    data, kept = str(store.data), str(tmp_path / "kept")
    assert "backed up" in as_process("backup", kept, "--data", data).stdout
    refused(nightschool("backup", kept, "--data", data), "already something")
    done = nightschool("restore", kept, "--data", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    examined = nightschool("doctor", "--data", str(tmp_path / "again"), "--json")
    assert {each["name"] for each in json.loads(examined.stdout)} >= {"database", "references", "log", "adapters"}
    assert examined.returncode in (0, 1)
    (tmp_path / "again" / "adapters").mkdir()
    (tmp_path / "again" / "adapters" / "stray").mkdir()
    troubled = nightschool("doctor", "--data", str(tmp_path / "again"))
    assert troubled.returncode == 1
    assert "nobody announced stray" in troubled.stdout


def test_a_disk_without_room_is_refused_before_anything_is_written(
    store: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "ROOM", 1e12)
    with pytest.raises(backup.Unavailable, match="has room for"):
        back_up(store, tmp_path / "kept")
    assert list(tmp_path.glob("*kept*")) == []
