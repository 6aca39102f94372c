"""Whatever an operator does leaves its audit row, whichever door it came through; and every setting has every door."""

import getpass
import io
import json
import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from assistant.models.base_model import Base
from feedback.accounts import users
from feedback.database.database import Database
from feedback.errors import NotFound, Refused
from feedback.records import adapters, audit, nights, settings
from tests.conftest import two_replies
from tests.helpers.commands import as_process, nightschool, refused
from tests.helpers.over_http import assistant, key, loaded, make_adapter, web
from tests.helpers.processes import Process
from training.night import night
from ui.cli.main import main as command_line
from ui.serve_options import ServeOptions

__all__ = ["assistant", "loaded", "web"]  # fixtures
WHO = audit.account_here()
ROWS = '{"prompt": "hello", "chosen": "good day", "rejected": "go away"}\n'


def done(data: Path) -> list[tuple[str | None, str, str, str | None]]:
    """Who did what to what, oldest first, and whose terminal it was."""
    with closing(Database(data)) as store:
        trail = audit.trail(store)
    return [(each.user, each.action, each.subject, each.detail.get("terminal")) for each in reversed(trail)]


def typed_in(words: list[str], data: Path) -> int:
    """What a command ends with; run here, as a process for each takes seconds."""
    before = sys.stdin
    sys.stdin = io.StringIO("a-long-secret-42\n")
    try:
        return command_line([*words, "--data", str(data)])
    finally:
        sys.stdin = before


# What is typed, the action that its row names, and what it was done to.
TYPED: dict[str, tuple[list[str], str, str]] = {
    "set": (["set", "gate", "off"], "set", "gate"),
    "set, quoted": (["set", "gate", '"advise"'], "set", "gate"),
    "schedule set": (["schedule", "set", "--cron", "0 3 * * *"], "set", "schedule"),
    "promote": (["promote", "base", "--reason", "back"], "promote", "base"),
    "rollback": (["rollback"], "promote", "base"),
    "import": (["import", "ROWS"], "import", "rows.jsonl"),
    "export": (["export", "OUT.jsonl"], "export to", "OUT.jsonl"),
    "export to a folder": (["export", "OUT"], "export to", "OUT"),
    "export of one person": (["export", "OUT.json", "--format", "own", "--user", "eve"], "export to", "OUT.json"),
    "backup": (["backup", "OUT"], "back up to", "OUT"),
    "forget": (["forget", "eve", "--yes"], "forget", "user 2"),
    "user add": (["user", "add", "bob"], "add user", "bob"),
    "user password": (["user", "password", "eve"], "set password of", "eve"),
    "user token": (["user", "token", "eve"], "make token of", "eve"),
    "user revoke": (["user", "revoke", "eve"], "revoke token of", "eve"),
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A data folder with a person in it, and something that serves."""
    with closing(Database(tmp_path / "data")) as store:
        two_replies(store, users.local_owner(store))
        users.add_user(store, "eve", "chatter", None)
        row = adapters.Adapter("one", None, None, "auto", "b" * 64, "w" * 64, "candidate", "fine", "2026")
        adapters.add_adapter(store, row)
        adapters.promote(store, "one", None, "try it", {})
        with store.transaction() as db:
            db.conn.execute("DELETE FROM audit")
    (tmp_path / "rows.jsonl").write_text(ROWS)
    return tmp_path / "data"


@pytest.mark.parametrize("door", TYPED)
def test_every_command_of_an_operator_leaves_its_row(door: str, house: Path, tmp_path: Path) -> None:
    typed, action, subject = TYPED[door]
    places = {"ROWS": str(tmp_path / "rows.jsonl")} | {each: str(tmp_path / each) for each in typed if "OUT" in each}
    assert typed_in([places.get(each, each) for each in typed], house) == 0
    assert done(house) == [(None, action, places.get(subject, subject), WHO)]


@pytest.mark.parametrize(
    "typed", [["set"], ["status"], ["schedule"], ["user", "list"], ["doctor"], ["set", "gate", "x"]]
)
def test_what_changes_nothing_leaves_none(typed: list[str], house: Path) -> None:
    typed_in(typed, house)
    assert done(house) == []


def test_a_restored_ledger_says_that_it_was_restored(house: Path, tmp_path: Path) -> None:
    kept, again = str(tmp_path / "kept"), tmp_path / "again"
    assert (typed_in(["backup", kept], house), typed_in(["restore", kept], again)) == (0, 0)
    assert done(again) == [(None, "restore", kept, WHO)]


def test_a_server_told_to_set_something_says_so(house: Path) -> None:
    from ui import app

    typed = ["--data", str(house), "--side-by-side", "0.5", "--model", "no-such", "--port", "0"]
    told = ServeOptions(**app.command.make_context("serve", typed).params)
    with pytest.raises(Refused, match="there is no model"):
        app.serve(told)
    assert done(house) == [(None, "set", "side_by_side_share", WHO)]


def test_a_night_started_at_a_terminal_leaves_its_row(house: Path, tiny: Base) -> None:
    assert as_process("night", "--data", str(house), "--model", tiny.name, "--gate", "off").returncode == 0
    assert done(house) == [(None, "start night", "1", WHO)]  # with nothing to learn from
    with closing(Database(house)) as store:
        assert audit.trail(store)[0].detail["gate"] == "off"


def test_a_night_that_ctrl_c_ends_leaves_a_row_of_that(house: Path, tiny: Base, tmp_path: Path) -> None:
    asked = ["--data", str(house), "--model", tiny.name, "--gate", "off"]
    with closing(Database(house)) as store:
        users.set_consent(store, users.local_owner(store), True)
    nightschool("import", str(tmp_path / "rows.jsonl"), "--data", str(house))
    process = Process("training.night.night:main", [*asked, "--set", "epochs=50"])
    with closing(Database(house)) as store:
        until = time.monotonic() + 60
        while not nights.nights(store) and time.monotonic() < until:
            time.sleep(0.05)
    process.signal(signal.SIGINT)
    assert process.wait(60).returncode == night.CANCELLED
    assert done(house)[-2:] == [(None, "start night", "1", WHO), (None, "cancel night", "1", WHO)]


def test_a_night_that_the_clock_starts_is_no_operators_act(house: Path, tiny: Base) -> None:
    asked = ["night", "--data", str(house), "--model", tiny.name]
    assert as_process(*asked, "--asked-by", "clock").returncode == 0
    assert done(house) == []


# API and page


OTHER = {
    "feedback_per_hour": 7,
    "side_by_side_share": 0.5,
    "gate": "advise",
    "risk": 0.2,
    "raters_per_question": 3,
    "retention_days": 90,
    "imported_prompts": 10_000,
    "night_method": "sft",
    "night_minutes": 45,
    "online_dpo_comparisons": 300,
    "policy_comparisons": 900,
    "policy_accuracy": 0.6,
    "policy_agreement": 0.7,
    "policy_method": "ppo",
}


def acts(one: str) -> dict[str, tuple[str, str, dict[str, Any], str, str]]:
    """What an operator can ask for by API, the action that its row names, and what it is done to."""
    asked = {name: ("PUT", "/api/settings", {name: value}, "set", name) for name, value in OTHER.items()}
    return asked | {
        "promote": ("POST", "/api/promotions", {"adapter": one, "reason": "good"}, "promote", one),
        "schedule": ("PUT", "/api/schedule", {"cron": "0 3 * * *", "time_zone": "UTC"}, "set", "schedule"),
    }


def test_every_act_by_api_leaves_its_row(web: TestClient, store: Database, assistant: Assistant) -> None:
    for door, (method, path, body, action, subject) in acts(make_adapter(assistant, "one")).items():
        before = len(audit.trail(store))
        assert (door, web.request(method, path, json=body, headers=key()).status_code) == (door, 200)
        newest, *others = audit.trail(store)
        assert (door, newest.user, newest.action, newest.subject) == (door, "owner", action, subject)
        assert (door, len(others), "terminal" in newest.detail) == (door, before, False)


def test_what_is_refused_leaves_no_row(web: TestClient, store: Database) -> None:
    for name in settings.SETTINGS:
        assert web.put("/api/settings", json={name: -1}, headers=key()).status_code in (400, 422)
    assert web.put("/api/schedule", json={"cron": "x"}, headers=key()).status_code == 400
    assert web.post("/api/promotions", json={"adapter": "none", "reason": "x"}, headers=key()).status_code == 404
    assert web.delete("/api/nights/7", headers=key()).status_code == 404
    assert audit.trail(store) == []


def test_what_a_forgotten_person_was_called_is_forgotten_there_too(house: Path) -> None:
    assert (typed_in(["user", "token", "eve"], house), typed_in(["forget", "eve", "--yes"], house)) == (0, 0)
    assert "eve" not in str(done(house))


def test_the_page_says_whose_terminal_it_was(house: Path) -> None:
    from datetime import UTC

    from ui.operate import lists
    from ui.operate.view import read_status

    assert typed_in(["set", "gate", "off"], house) == 0
    with closing(Database(house)) as store:
        shown = lists.show_trail(read_status(store, UTC))
    assert f"<strong>{WHO} (command line)</strong> set <strong>gate</strong>" in shown
    assert "terminal" not in shown


def test_the_account_is_the_systems_and_not_what_the_environment_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert getpass.getuser() == "somebody-else"
    assert audit.account_here() == WHO != "somebody-else"
    assert os.getuid() == os.geteuid()


# Settings


def test_every_setting_is_read_and_set_by_api_and_command_alike(web: TestClient, store: Database) -> None:
    assert set(OTHER) == set(settings.SETTINGS)
    data = str(store.data)
    defaults = {name: each.default for name, each in settings.SETTINGS.items()}
    assert (
        web.get("/api/settings").json() == defaults == json.loads(nightschool("set", "--json", "--data", data).stdout)
    )
    for name, value in OTHER.items():
        answer = web.put("/api/settings", json={name: value}, headers=key())
        defaults[name] = value
        assert (answer.status_code, answer.json()) == (200, defaults)
    assert json.loads(nightschool("set", "--json", "--data", data).stdout) == defaults
    for name, each in settings.SETTINGS.items():
        assert typed_in(["set", name, json.dumps(each.default)], store.data) == 0
    assert web.get("/api/settings").json() == {name: each.default for name, each in settings.SETTINGS.items()}


def test_settings_that_cannot_be_are_one_sentence_and_change_nothing(web: TestClient, store: Database) -> None:
    wrong = [{"colour": 1}, {"gate": "of"}, {"gate": None}, {"gate": True}, {"raters_per_question": 0}]
    wrong += [{"raters_per_question": 1.5}, {"retention_days": -1}, {"retention_days": 10**9}, {"retention_days": "9"}]
    wrong += [{"side_by_side_share": 0.3, "gate": "maybe"}]  # all or none
    for body in wrong:
        answer = web.put("/api/settings", json=body, headers=key())
        assert (body, answer.status_code in (400, 404, 422), list(answer.json())) == (body, True, ["error"])
    for body in ('{"side_by_side_share": NaN}', '{"side_by_side_share": Infinity}', '{"raters_per_question": 1e400}'):
        answer = web.put("/api/settings", content=body, headers=key() | {"Content-Type": "application/json"})
        assert (body, answer.status_code in (400, 422)) == (body, True)
    assert store.row("SELECT * FROM settings") is None
    refused(nightschool("set", "side_by_side_share", "NaN", "--data", str(store.data)), "a number from 0 to 1")
    refused(nightschool("set", "gate", "[" * 100_000, "--data", str(store.data)), "cannot be")
    with pytest.raises(NotFound):
        settings.set_all(store, None, {"gate": "off", "colour": 1})
    assert settings.setting(store, "gate") == "on"


def test_the_api_says_of_each_setting_what_it_is(web: TestClient) -> None:
    described = web.get("/openapi.json").json()["components"]["schemas"]["SettingsAsked"]["properties"]
    assert {name: each["description"] for name, each in described.items()} == {
        name: each.help for name, each in settings.SETTINGS.items()
    }
