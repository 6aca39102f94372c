"""Databases as each released version left them open, and have lost nothing.

`kept/schema_N.sql` is the dump of a database after N schema steps with a row or more in every table; it is never
changed. After a release with a new step, a dump of its databases is added.
"""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from feedback.accounts import users
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.database.migrations import steps
from feedback.errors import Unavailable
from feedback.examples import build
from feedback.kinds.comparison import compare, standing_choice
from feedback.records import adapters

KEPT = sorted((Path(__file__).parents[1] / "kept").glob("schema_*.sql"))


def contents(database: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table of ours."""
    connection = sqlite3.connect(database)
    connection.row_factory = sqlite3.Row
    sql = (
        "SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, 1) <> '_' AND name NOT LIKE 'sqlite%'"
    )
    tables = [row["name"] for row in connection.execute(sql)]
    found = {
        table: [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY rowid")] for table in tables
    }
    connection.close()
    return found


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.stem)
def test_a_database_of_every_released_schema_opens_with_all_it_held(kept: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "nightschool.db")
    connection.executescript(kept.read_text())
    connection.close()
    before = contents(tmp_path / "nightschool.db")
    assert len(before) > 15

    store = Database(tmp_path)

    assert steps.pending(store.db) == []
    after = contents(store.path)
    for table, rows in before.items():
        assert len(after[table]) == len(rows) > 0, table
        for old, new in zip(rows, after[table], strict=True):
            assert {name: new[name] for name in old} == old, table
    assert store.rows("PRAGMA foreign_key_check") == []
    assert store.row("PRAGMA integrity_check") == {"integrity_check": "ok"}
    store.close()


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.stem)
def test_it_goes_on_being_used(kept: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "nightschool.db")
    connection.executescript(kept.read_text())
    connection.close()
    store = Database(tmp_path)
    owner = users.local_owner(store)
    (conversation,) = conversations.conversations(store, owner)
    left, right = (each.id for each in conversations.tree(store, conversation["id"]) if each.role == "assistant")
    assert standing_choice(store, owner, left, right) == "tie"
    compare(store, owner, left, right, "left")
    pairs = [pair for pair in build.gather(store).pairs if pair.user == owner.id]
    assert [(pair.kind, pair.rejected.text) for pair in pairs] == [("comparison", "go away"), ("correction", "go away")]
    assert adapters.serving(store) == "night-0001"
    store.close()


def test_a_database_of_a_newer_program_is_one_clear_sentence(tmp_path: Path) -> None:
    store = Database(tmp_path)
    with store.transaction() as db:
        row = "('nightschool', 'm9999_flying_carpets', '2030-01-01')"
        db.conn.execute(f"INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES {row}")
    store.close()
    with pytest.raises(Unavailable, match="newer Nightschool \\(step m9999_flying_carpets\\)"):
        Database(tmp_path)
