"""A kind of feedback is one file: declared there, it is written, shown, counted, exported, learned from, forgotten."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database import migrations
from feedback.database.database import Database
from feedback.errors import Refused, TooOften
from feedback.example_types import UnpairedExample
from feedback.examples.build import gather
from feedback.formats import export, files, load
from feedback.formats.registry import FORMATS
from feedback.kinds import base, tally
from feedback.kinds.base import KINDS, Kind
from feedback.records import nights, settings
from feedback.upkeep import privacy, schedules
from tests.conftest import REPOSITORY, two_replies
from tests.helpers.over_http import assistant, key, loaded, token_of, web
from ui.cli.__main__ import main
from ui.operate import render

__all__ = ["assistant", "loaded", "web"]  # fixtures

APPLAUSE = '''
"""Applause: how many hands clapped for a reply. Some applause is a thumb up."""

from pydantic import Field

from feedback.chats import conversations
from feedback.chats.conversations import checked
from feedback.database.database import now
from feedback.errors import Refused
from feedback.kinds.base import Body, Daily, Kind, ReplyId, register
from feedback.kinds.rate_limit import require_pace


class Applause(Body):
    """How many hands clapped for a reply."""

    reply: ReplyId
    hands: int = Field(description="0: taken back.")
    words: str = ""


def applaud(store, user, reply, hands, words=""):
    if hands < 0:
        raise Refused(f"hands are 0 or more, not {hands}")
    with store.transaction():
        conversations.ratable_reply(store, user, reply, taking_back=not hands)
        if hands:
            require_pace(store, user)
        row = {"user": user.id, "reply": reply, "hands": hands, "words": checked(words), "at": now()}
        return store.insert("applause", row)


def kept(said, parent, replies):
    return {"reply": replies[0], "hands": said.more["hands"], "words": said.words}


register(
    Kind(
        table="applause",
        name="applause",
        help="Clap for a reply.",
        body=Applause,
        write=applaud,
        taken_back=("hands", 0),
        forgotten={"words": ""},
        daily=(Daily("applause", "rounds of applause"),),
        examples=lambda row, context: context.thumb(row, row["reply"], True),
        says=lambda row: {"words": row["words"], "more": {"hands": row["hands"]}},
        row=kept,
        steps={
            "applause": """
                CREATE TABLE applause (
                    id INTEGER PRIMARY KEY,
                    user INTEGER NOT NULL REFERENCES users (id),
                    reply TEXT NOT NULL REFERENCES replies (message),
                    hands INTEGER NOT NULL,  -- 0: taken back
                    words TEXT NOT NULL,
                    at TEXT NOT NULL
                ) STRICT;
                CREATE INDEX applause_by_reply ON applause (reply, user, id);
                CREATE INDEX applause_by_user ON applause (user, at);
            """
        },
    )
)
'''

DOUBTS = '''
"""Doubts: somebody wonders about a reply. They teach nothing."""

from feedback.kinds.base import Body, Kind, ReplyId, register
from feedback.kinds.correction import possible, row_of, say, says


class Doubt(Body):
    """What somebody wonders about; empty takes it back."""

    reply: ReplyId
    text: str


def doubt(store, user, reply, text):
    return say(store, DOUBT, user, reply, text)


TABLE = """CREATE TABLE doubts (id INTEGER PRIMARY KEY, user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message), text TEXT NOT NULL, at TEXT NOT NULL) STRICT;
    CREATE INDEX doubts_by_reply ON doubts (reply, user, id); CREATE INDEX doubts_by_user ON doubts (user, at)"""

DOUBT = register(
    Kind(
        table="doubts", name="doubt", help="Wonder about a reply.", body=Doubt, write=doubt, taken_back=("text", ""),
        forgotten={"text": ""}, quotes=("text",), says=says, possible=possible, row=row_of, steps={"doubts": TABLE},
    )
)
'''


def declared(folder: Path, name: str, source: str) -> Kind:
    """The kind that a file declares."""
    (folder / f"{name}.py").write_text(source)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return KINDS[name]


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[dict[str, Kind]]:
    """Two kinds more, as long as the test lasts."""
    before, steps = dict(KINDS), dict(migrations.more_steps)
    yield {"applause": declared(tmp_path, "applause", APPLAUSE), "doubts": declared(tmp_path, "doubts", DOUBTS)}
    for known, was in ((KINDS, before), (migrations.more_steps, steps)):
        known.clear()
        known.update(was)


@pytest.fixture
def said(store: Database, toys: dict[str, Kind], web: TestClient) -> tuple[User, str]:
    """Ada, who clapped for a reply of hers, once and then again, and wondered about it; over HTTP."""
    headers = token_of(store, "ada", "rater")
    ada = users.find_user(store, "ada")
    assert ada is not None
    users.set_consent(store, ada, True)
    _, left, _ = two_replies(store, ada)
    claps = [{"reply": left, "hands": 1}, {"reply": left, "hands": 2, "words": "bravo, said Ada"}]
    for body in claps:
        assert web.post("/api/applause", json=body, headers=headers | key()).status_code == 200
    doubt = {"reply": left, "text": "is that so? asks Ada"}
    assert web.post("/api/doubts", json=doubt, headers=headers | key()).json() == {"id": 1}
    return ada, left


def test_a_kind_from_one_file_is_written_and_shown(store: Database, said: tuple[User, str], web: TestClient) -> None:
    ada, left = said
    headers = {"Authorization": f"Bearer {users.add_token(store, ada, 'more')}"}
    shown = web.get(f"/api/replies/{left}/feedback", headers=headers).json()
    assert [(each["kind"], each["standing"], each["said"]) for each in shown] == [
        ("applause", False, {"reply": left, "hands": 1, "words": ""}),
        ("applause", True, {"reply": left, "hands": 2, "words": "bravo, said Ada"}),
        ("doubts", True, {"reply": left, "text": "is that so? asks Ada"}),
    ]
    wrong = web.post("/api/applause", json={"reply": left, "hands": -1}, headers=headers | key())
    assert (wrong.status_code, wrong.json()) == (400, {"error": "hands are 0 or more, not -1"})
    assert web.post("/api/applause", json={"reply": left, "clap": 1}, headers=headers | key()).status_code == 422
    schema = web.get("/openapi.json", headers=headers).json()
    assert schema["paths"]["/api/applause"]["post"]["description"] == "Clap for a reply."
    assert schema["components"]["schemas"]["Applause"]["description"] == "How many hands clapped for a reply."
    assert len(privacy.own_data(store, ada)["said"]) == 3


def test_it_counts_as_feedback_everywhere(
    store: Database, said: tuple[User, str], web: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    ada, left = said
    assert schedules.new_feedback(store) == 3
    assert (tally.counts(store)["applause"], tally.counts(store)["doubts"]) == (2, 1)
    days = tally.by_day(store, UTC, 2)
    assert sum(day.counts["applause"] for day in days) == 2
    assert "2 rounds of applause" in render.show_said(days)
    assert main(["status", "--data", str(store.data)]) == 0
    assert "2 applause, 1 doubts" in capsys.readouterr().out
    settings.set_setting(store, None, "feedback_per_hour", 3)
    applaud = KINDS["applause"].write
    with pytest.raises(TooOften):
        applaud(store, ada, left, 1)
    applaud(store, ada, left, 0)  # what is taken back is always heard
    time.sleep(0.002)  # what is said in the millisecond in which a night begins is new to it
    nights.end_night(store, nights.start_night(store, "auto", {}, pid=0), "done", "learned")
    assert schedules.why_nothing_new(store) != ""
    users.set_consent(store, ada, False)
    assert schedules.why_nothing_new(store) == ""


def test_one_that_teaches_becomes_examples_while_it_stands_and_may_be_used(
    store: Database, said: tuple[User, str]
) -> None:
    ada, left = said
    (thumb,) = gather(store)
    assert isinstance(thumb, UnpairedExample)
    assert (thumb.answer.text, thumb.wanted, thumb.user) == ("good day to you", True, ada.id)
    users.set_consent(store, ada, False)
    assert (len(gather(store)), gather(store).left_out) == (0, {"no consent": 1})  # of what teaches nothing, no word
    users.set_consent(store, ada, True)
    KINDS["applause"].write(store, ada, left, 0)
    assert (len(gather(store)), gather(store).left_out) == (0, {"taken back": 1})


def test_it_goes_out_and_comes_in_again(store: Database, said: tuple[User, str], tmp_path: Path) -> None:
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    files.write(out, export.rows(store, FORMATS["nightschool"], Counter()))
    rows = [json.loads(line)["said"] for line in out.read_text().splitlines()]
    assert [(row["kind"], row.get("more"), row.get("words", row.get("text"))) for row in rows] == [
        ("applause", {"hands": 2}, "bravo, said Ada"),
        ("doubt", None, "is that so? asks Ada"),
    ]
    assert list(export.rows(store, FORMATS["trl-unpaired"], Counter())) == []  # holds thumbs alone
    other = Database(tmp_path / "other")
    assert load.import_file(other, out).kept == 2
    (thumb,) = gather(other)
    assert isinstance(thumb, UnpairedExample)
    assert (thumb.answer.text, thumb.wanted, thumb.by) == ("good day to you", True, "imported")
    files.write(again, export.rows(other, FORMATS["nightschool"], Counter()))
    assert [json.loads(line)["said"] for line in again.read_text().splitlines()] == rows
    other.close()


@pytest.mark.parametrize("who", ["who said it", "whose conversation it is"])
def test_its_words_are_forgotten_with_its_person(
    store: Database, said: tuple[User, str], web: TestClient, who: str
) -> None:
    ada, left = said
    if who == "who said it":
        assert privacy.forget(store, ada).ratings == 3
    else:
        ben = users.add_user(store, "ben", "rater", None)
        users.set_consent(store, ben, True)
        row = {"id": "q", "user": ben.id, "kind": "comparison", "parent": conversations.node(store, left).parent}
        row |= {"replies": json.dumps([left]), "why": "even", "propensity": 1.0, "asked_at": "now"}
        store.insert("questions", row)
        KINDS["doubts"].write(store, ben, left, "what does Ada mean?")
        privacy.forget(store, ada)
    assert {row["text"] for row in store.rows("SELECT text FROM doubts")} == {""}
    assert {row["words"] for row in store.rows("SELECT words FROM applause")} == {""}
    assert len(store.rows("SELECT * FROM applause")) == 2  # tombstones stay
    assert b"said Ada" not in store.path.read_bytes()


def test_who_cannot_blank_all_feedback_forgets_nobody(store: Database, said: tuple[User, str]) -> None:
    ada, _ = said
    del migrations.more_steps["doubts"], KINDS["doubts"]
    with pytest.raises(Refused, match=r"a kind that is not known here \(step doubts\); put its file back first"):
        privacy.forget(store, ada)
    assert users.find_user(store, "ada") is not None


def test_a_name_or_a_table_is_of_one_kind(toys: dict[str, Kind]) -> None:
    for same in (replace(toys["doubts"], name="new", steps={}), replace(toys["doubts"], table="new", steps={})):
        with pytest.raises(ValueError, match="already"):
            base.register(same)
    with pytest.raises(ValueError, match="there is a step 'doubts' already"):
        base.register(replace(toys["doubts"], name="new", table="new"))
    assert list(KINDS)[-2:] == ["applause", "doubts"]


def test_every_kind_declares_what_its_table_has(store: Database, toys: dict[str, Kind]) -> None:
    for kind in KINDS.values():
        columns = {row["name"] for row in store.rows(f"PRAGMA table_info({kind.table})")}
        assert {"id", "user", "at", *kind.thing, kind.about, *kind.json_columns, *kind.forgotten} <= columns, kind.table
        assert set(kind.quotes) <= set(kind.forgotten)
        for same in kind.same():
            plan = store.rows(f"EXPLAIN QUERY PLAN SELECT 1 FROM {kind.table} t, {kind.table} n WHERE {same}")
            assert not any(row["detail"].startswith("SCAN n") for row in plan), kind.table


def test_a_file_put_into_the_folder_is_a_kind_of_every_process(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "feedback", tmp_path / "feedback", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "feedback" / "kinds" / "applause.py").write_text(APPLAUSE)
    program = """
import sys
from feedback.database.database import Database
store = Database(sys.argv[1])  # before any kind is declared
from feedback.kinds import tally
print(list(tally.counts(store).items())[-1], len(store.rows("SELECT * FROM applause")))
"""
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "('applause', 0) 0\n", done.stderr


# Elsewhere than in a kind's file nothing lists kinds: their tables' names stand there alone, but for these.
ALLOWED = {
    "feedback/database/tables.py": set(KINDS),  # the tables as they were first shipped
    "training/rehearsal/questions.py": {"comparisons"},  # an option of the command
    "feedback/records/settings.py": {"comparisons"},  # a unit
    "feedback/formats": {"votes", "critiques"},  # names of formats of other people's files, and of a field there
}


def test_no_kind_is_named_outside_its_file() -> None:
    own = {Path(str(sys.modules[kind.write.__module__].__file__)): kind.table for kind in KINDS.values()}
    sql = re.compile(rf"\b(?:FROM|JOIN|INTO|UPDATE|TABLE|ON)\s+({'|'.join(KINDS)})\b")
    found = set()
    for package in ("feedback", "assistant", "training", "ui"):
        for path in (REPOSITORY / package).rglob("*.py"):
            name = str(path.relative_to(REPOSITORY))
            allowed = {
                own.get(path),
                *(table for under in ALLOWED if name.startswith(under) for table in ALLOWED[under]),
            }
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    named = {*sql.findall(node.value), *({node.value} & set(KINDS))}
                    found |= {(name, node.lineno, table) for table in named - allowed}
    assert found == set()
