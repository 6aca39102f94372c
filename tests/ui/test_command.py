"""The command line as a user types it: what it says, and how it ends."""

import json
from pathlib import Path

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database, now
from feedback.records import adapters, settings
from feedback.records.adapters import Adapter
from tests.helpers.commands import as_process, nightschool, refused


def announced(store: Database, name: str, verdict: str = "candidate") -> None:
    """A row in the adapters, whatever lies on the disk."""
    row = Adapter(name, None, None, "preference", "b" * 64, "w" * 64, verdict, "worse than the base", now())
    adapters.add_adapter(store, row)


def test_commands_that_read_want_data_that_is_there(tmp_path: Path) -> None:
    for command in ("adapters", "status", "rollback", "set"):
        refused(nightschool(command, "--data", str(tmp_path / "none")), "there is no Nightschool data")
    assert not (tmp_path / "none").exists()


def test_an_empty_store_has_a_status(store: Database) -> None:
    done = as_process("status", "--data", str(store.data), "--json")
    assert json.loads(done.stdout)["serving"] is None
    assert "start one with: nightschool night" in nightschool("status", "--data", str(store.data)).stdout


def test_promotions_that_cannot_be_are_one_sentence_and_change_nothing(store: Database) -> None:
    announced(store, "night-0001", "refused")
    announced(store, "night-0002")  # announced, but its directory is gone
    data = str(store.data)
    refused(as_process("promote", "night-0009", "--data", data), "there is no adapter 'night-0009'")
    refused(nightschool("promote", "night-0001", "--data", data), "was refused: worse than the base")
    refused(nightschool("promote", "night-0002", "--data", data), "there is no adapter directory")
    refused(nightschool("promote", "base", "--data", data), "the base serves already")
    refused(nightschool("rollback", "--data", data), "nothing to go back to")
    refused(nightschool("promote", "night-0002", "--data", data, "--reason", " "), "needs a reason")
    assert adapters.promotions(store) == []


def test_an_unknown_model_is_one_sentence(tmp_path: Path) -> None:
    refused(as_process("chat", "--data", str(tmp_path), "--model", "no-such"), "there is no model 'no-such'")


def test_settings_are_shown_and_changed_and_checked(store: Database) -> None:
    data = str(store.data)
    assert as_process("set", "side_by_side_share", "0.5", "--data", data).stdout == "side_by_side_share = 0.5\n"
    assert settings.setting(store, "side_by_side_share") == 0.5
    refused(nightschool("set", "side_by_side_share", "2", "--data", data), "a number from 0 to 1")
    refused(nightschool("set", "side_by_side_share", "many", "--data", data), "cannot be 'many'")
    refused(nightschool("set", "colour", "1", "--data", data), "there is no setting 'colour'")
    assert settings.setting(store, "side_by_side_share") == 0.5


def test_accounts_are_made_with_a_password_that_is_kept_hashed(store: Database) -> None:
    data = str(store.data)
    done = as_process("user", "add", "ada", "--role", "rater", "--data", data, said="correct horse\n")
    assert done.stdout == "ada may log in as rater\n"
    user = users.find_user(store, "ada")
    assert user is not None
    assert user.role == "rater"
    assert str(user.password_hash).startswith("$argon2id$")
    refused(nightschool("user", "add", "ada", "--data", data, said="correct horse\n"), "already a user")
    refused(nightschool("user", "add", "bob", "--data", data, said="short\n"), "at least 10 characters")
    refused(nightschool("user", "add", "--data", data), "whose?")
    token = nightschool("user", "token", "ada", "--data", data).stdout.strip()
    assert users.user_of_token(store, token) == user


def test_a_terminal_chat_is_recorded_and_rated(store: Database, owner: User, model: str) -> None:
    said = "Say hello in three words.\n/down not three\n/undo\n/up\n/correct Hello to you\n/who\n/consent yes\n/quit\n"
    asked = ["--data", str(store.data), "--model", model, "--temperature", "0", "--max-tokens", "12"]
    done = as_process("chat", *asked, said=said)
    assert done.returncode == 0, done.stderr
    assert "the base model" in done.stdout
    (reply,) = store.rows("SELECT message FROM replies")
    assert [row["value"] for row in store.rows("SELECT value FROM votes ORDER BY id")] == [-1, 0, 1]
    assert store.rows("SELECT reply, text FROM corrections") == [{"reply": reply["message"], "text": "Hello to you"}]
    assert users.consent(store, owner) is True
