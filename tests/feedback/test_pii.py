"""What is masked on its way out, and what is not."""

import json
from pathlib import Path

import pytest

from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.kinds.vote import UP, vote
from feedback.messages import Message
from tests.conftest import BY_BASE
from tests.helpers.commands import nightschool


def test_addresses_and_numbers_are_masked_on_export_and_kept_in_the_ledger(
    store: Database, consenting: User, tmp_path: Path
) -> None:
    pytest.importorskip("scrubadub")
    said = "Write to joe.bloggs@example.com or call +49 30 901820"
    parent = conversations.record_messages(store, consenting, "chat", [Message("user", said)])
    reply = conversations.add_reply(store, parent, "I wrote to joe.bloggs@example.com.", BY_BASE)
    vote(store, consenting, reply, UP, words="joe.bloggs@example.com was glad")
    out = tmp_path / "out.jsonl"
    done = nightschool("export", str(out), "--mask", "--data", str(store.data))
    assert done.returncode == 0, done.stderr
    row = json.loads(out.read_text())
    assert "example.com" not in out.read_text()
    assert "901820" not in out.read_text()
    assert row["messages"][0]["content"].startswith("Write to {{EMAIL}}")
    assert row["said"]["rater"] == f"rater-{consenting.id}"
    assert conversations.node(store, reply).content == "I wrote to joe.bloggs@example.com."
