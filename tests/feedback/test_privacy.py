"""To have all that one said, and to have it forgotten: nothing of it is left in any file."""

import json
import sqlite3
from pathlib import Path

import pytest

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database, now
from feedback.errors import Conflict, Refused
from feedback.examples import build
from feedback.kinds.comparison import compare
from feedback.kinds.correction import correct
from feedback.kinds.critique import critique
from feedback.kinds.label import label
from feedback.kinds.ranking import rank
from feedback.kinds.tally import counts
from feedback.kinds.vote import DOWN, UP, standing_vote, vote
from feedback.records import adapters, nights, settings
from feedback.records.adapters import Adapter
from feedback.upkeep import privacy
from tests.conftest import two_replies
from tests.helpers.commands import nightschool, refused

SECRET = "my grandmother's recipe"


def ada_speaks(store: Database) -> User:
    """A person with a conversation, and something of every kind said of it, all of it private."""
    ada = users.add_user(store, "ada lovelace", "rater", "$argon2id$hash")
    users.add_token(store, ada, "api")
    users.set_consent(store, ada, True)
    _, left, right = two_replies(store, ada, SECRET)
    vote(store, ada, left, DOWN, ["untrue"], f"not {SECRET}")
    compare(store, ada, left, right, "left", words=SECRET, reasons=["style"])
    rank(store, ada, [left, right], [1, 2])
    correct(store, ada, left, f"here is {SECRET}")
    critique(store, ada, left, f"it lacks {SECRET}")
    label(store, ada, left, "privacy", words=SECRET)
    return ada


def learned(store: Database, name: str, people_of: dict[int, int]) -> None:
    """A night and its adapter."""
    night = nights.start_night(store, "auto", {}, 1)
    nights.record_people(store, night, people_of)
    adapters.add_adapter(store, Adapter(name, None, night, "auto", "b", "w", "candidate", "fine", now()))


def test_what_is_forgotten_is_in_no_file_and_everything_else_stays(store: Database, owner: User) -> None:
    ada = ada_speaks(store)
    _, mine, _ = two_replies(store, owner, "mine")
    vote(store, owner, mine, UP)
    learned(store, "night-0001", {ada.id: 3, owner.id: 1})
    learned(store, "night-0002", {owner.id: 1})
    adapters.add_adapter(store, Adapter("old", None, None, "auto", "b", "w", "candidate", "fine", now()))
    before = counts(store)
    hers, others = (nights.reward_models_of(store, each.id) for each in reversed(nights.nights(store)))
    for folder in (hers, others):
        folder.mkdir(parents=True)

    done = privacy.forget(store, ada)

    assert (done.conversations, done.messages, done.ratings) == (1, 3, 6)
    assert (done.trained_on_it, done.perhaps) == (("night-0001",), ("old",))
    assert privacy.to_retrain(store) == ["night-0001", "old"]
    assert (hers.exists(), others.exists()) == (False, True)
    assert counts(store) == before
    assert standing_vote(store, owner, mine) is not None
    assert build.gather(store).people() == {}
    assert users.find_user(store, "ada lovelace") is None
    store.checkpoint()
    for file in store.data.glob("nightschool.db*"):
        contents = file.read_bytes()
        assert SECRET.encode() not in contents, file
        assert b"ada lovelace" not in contents, file
    with pytest.raises(Conflict, match="already"):
        privacy.forget(store, users.user_by_id(store, ada.id) or ada)


def test_where_files_cannot_be_removed_nothing_is_forgotten_and_it_can_be_asked_again(
    store: Database, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = ada_speaks(store)
    learned(store, "night-0001", {ada.id: 3})
    folder = nights.reward_models_of(store, 1)
    folder.mkdir(parents=True)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("os.rmdir", denied)
        with pytest.raises(Refused, match=r"nothing is forgotten yet.*Permission denied"):
            privacy.forget(store, ada)
    assert users.find_user(store, "ada lovelace") is not None
    assert privacy.to_retrain(store) == []
    assert privacy.forget(store, ada).conversations == 1
    assert not folder.exists()


def test_the_owner_of_a_machine_alone_is_not_forgotten(store: Database, owner: User) -> None:
    with pytest.raises(Conflict, match="remove the data folder"):
        privacy.forget(store, owner)


def test_ones_own_data_is_all_of_it(store: Database, owner: User) -> None:
    ada = ada_speaks(store)
    two_replies(store, owner, "not hers")
    data = privacy.own_data(store, ada)
    (conversation,) = data["conversations"]
    assert [message["content"] for message in conversation["messages"]] == [SECRET, "good day to you", "go away"]
    kinds = {each["kind"] for each in data["said"]}
    assert kinds == {"votes", "comparisons", "rankings", "corrections", "critiques", "labels"}
    assert "not hers" not in json.dumps(data)
    assert data["consents"][0]["given"] == 1


def test_content_that_is_kept_too_long_is_removed_before_a_night(store: Database, owner: User) -> None:
    two_replies(store, owner, SECRET)
    with store.transaction() as db:
        db.conn.execute("UPDATE messages SET created_at = '2020-01-01T00:00:00.000+00:00'")
    two_replies(store, owner, "fresh")
    assert privacy.expire(store) == 0  # for ever, unless somebody says otherwise
    with pytest.raises(Refused, match="whole number of days"):
        settings.set_setting(store, None, "retention_days", -1)
    settings.set_setting(store, None, "retention_days", 30)
    assert (privacy.expire(store), privacy.expire(store)) == (1, 0)
    contents = [row["content"] for row in store.rows("SELECT content FROM messages WHERE role = 'user'")]
    assert contents == ["", "fresh"]
    assert SECRET.encode() not in Path(f"{store.path}-wal").read_bytes() + store.path.read_bytes()


def test_the_commands_forget_and_give_everything(store: Database, tmp_path: Path) -> None:
    learned(store, "night-0001", {ada_speaks(store).id: 1})
    data, out = str(store.data), tmp_path / "ada.json"
    assert nightschool("export", str(out), "--format", "own", "--user", "nobody", "--data", data).returncode == 2
    done = nightschool("export", str(out), "--format", "own", "--user", "ada lovelace", "--data", data)
    assert done.returncode == 0, done.stderr
    assert SECRET in out.read_text()
    refused(nightschool("forget", "nobody", "--data", data), "there is no user 'nobody'")
    refused(nightschool("forget", "ada lovelace", "--data", data), "--yes")
    said = nightschool("forget", "ada lovelace", "--yes", "--data", data)
    assert "1 conversation" in said.stdout
    connection = sqlite3.connect(store.path)
    assert connection.execute("SELECT count(*) FROM messages WHERE content LIKE '%grandmother%'").fetchone() == (0,)
    connection.close()
