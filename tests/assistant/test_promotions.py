"""What may serve, who decides, and what is refused: in the store, in the manager and through the HTTP API."""

import dataclasses
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from assistant.models.adapter import WEIGHTS
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import Conflict
from feedback.records import adapters, audit, nights
from tests.helpers.over_http import assistant, key, loaded, make_adapter, rows, token_of, web
from ui.operations import operations

__all__ = ["assistant", "loaded", "web"]  # fixtures


@pytest.fixture
def names(assistant: Assistant, owner: User) -> list[str]:
    """Three adapters, none of which serves."""
    return [make_adapter(assistant, name) for name in ("one", "two", "three")]


def promote(
    web: TestClient, name: str | None, headers: dict[str, str] | None = None, **more: object
) -> tuple[int, str]:
    """Ask for a promotion; the status, and the sentence if it was refused."""
    asked = {"adapter": name, "reason": "I tried it"} | more
    answer = web.post("/api/promotions", json=asked, headers=(headers or {}) | key())
    return answer.status_code, answer.json().get("error", "")


def test_a_refused_a_missing_and_a_damaged_adapter_get_one_sentence_and_change_nothing(
    web: TestClient, store: Database, assistant: Assistant, names: list[str]
) -> None:
    with store.transaction() as db:
        db.conn.execute("UPDATE adapters SET verdict = 'refused', reason = 'it only says ha' WHERE id = ?", names[:1])
    shutil.rmtree(adapters.directory(store, names[1]))
    weights = adapters.directory(store, names[2]) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    before = rows(store)
    for name, status, says in (
        (names[0], 409, f"adapter {names[0]} was refused: it only says ha"),
        (names[1], 400, "there is no adapter directory"),
        (names[2], 400, f"adapter {names[2]} is damaged"),
        ("nowhere", 404, "there is no adapter 'nowhere'"),
        ("previous", 409, "the base serves; there is nothing to go back to"),
    ):
        refused = promote(web, name)
        assert (name, refused[0], says in refused[1], "\n" in refused[1]) == (name, status, True, False)
    assert rows(store) == before
    assert assistant.adapters.serving() is None


def test_previous_is_a_rollback_each_time_further_back(web: TestClient, store: Database, names: list[str]) -> None:
    for name in names[:2]:
        assert promote(web, name)[0] == 200
    answer = web.post("/api/promotions", json={"adapter": "previous", "reason": "worse"}, headers=key())
    assert (answer.status_code, answer.json()["adapter"]) == (200, names[0])
    assert promote(web, "previous")[0] == 200
    assert adapters.serving(store) is None
    assert promote(web, "previous") == (409, "the base serves; there is nothing to go back to")


def test_who_decided_on_what_no_longer_serves_is_told_who_was_first(
    web: TestClient, store: Database, names: list[str]
) -> None:
    bob, eve = token_of(store, "Bob", "operator"), token_of(store, "Eve", "operator")
    assert promote(web, names[0], bob, instead_of="base")[0] == 200
    assert promote(web, names[1], bob, instead_of=names[0])[0] == 200
    late = promote(web, names[2], eve, instead_of=names[0])
    assert late == (409, f"Bob promoted {names[1]} a moment ago; look again before you promote")
    assert promote(web, None, eve, instead_of=None)[0] == 409
    assert adapters.serving(store) == names[1]
    assert promote(web, names[2], eve)[0] == 200  # who says nothing of what they believe is not asked
    trail = [each.user for each in audit.trail(store) if each.action == "promote"]
    assert trail == ["Eve", "Bob", "Bob"]


def test_of_two_operators_who_promote_at_once_exactly_one_wins(assistant: Assistant, names: list[str]) -> None:
    store = assistant.store
    both = [users.add_user(store, name, "operator", None) for name in ("Bob", "Eve")]
    start = threading.Barrier(2)

    def decide(user: User, name: str | None, believed: str | None) -> str:
        start.wait()
        try:
            operations.promote(assistant, user, name, "at once", believed)
            return "won"
        except Conflict as error:
            return str(error)

    for attempt in range(1, 7):
        believed = adapters.serving(store)
        chosen = [name for name in (*names, None) if name != believed][:2]
        with ThreadPoolExecutor(2) as pool:
            ends = list(pool.map(decide, both, chosen, [believed, believed]))
        assert sorted(each == "won" for each in ends) == [False, True], ends
        winner = ends.index("won")
        assert adapters.serving(store) == chosen[winner]
        done = f"{both[winner].name} promoted {chosen[winner] or 'the base'} a moment ago"
        assert ends[1 - winner] == f"{done}; look again before you promote"
        assert len(adapters.promotions(store)) == attempt


PROCESS = """
import sys, time
from feedback.records import adapters
from feedback.database.database import Database
from feedback.errors import Conflict
store = Database(sys.argv[1])
while time.time() < float(sys.argv[3]): pass
try:
    adapters.promote(store, sys.argv[2], None, "at once", {}, instead_of=None)
    print("won")
except Conflict as error:
    print(error)
"""


def test_of_two_processes_that_promote_at_once_exactly_one_wins(store: Database, names: list[str]) -> None:
    at = str(time.time() + 3)
    command = [sys.executable, "-c", PROCESS, str(store.data)]
    both = [subprocess.Popen([*command, name, at], stdout=subprocess.PIPE, text=True) for name in names[:2]]
    said = [each.communicate(timeout=60)[0].strip() for each in both]
    winner = said.index("won")
    assert said[1 - winner] == f"{names[winner]} was promoted a moment ago; look again before you promote"
    assert [each.adapter for each in adapters.promotions(store)] == [names[winner]]


def test_what_cannot_be_loaded_is_put_back_but_not_over_a_newer_promotion(
    assistant: Assistant, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, manager = assistant.store, assistant.adapters
    manager.promote(None, names[0], "good")
    shutil.rmtree(adapters.directory(store, names[1]))
    adapters.promote(store, names[1], None, "unseen", {})
    load = manager.get

    def meanwhile(name: str | None) -> object:
        if name == names[1]:
            adapters.promote(store, names[2], None, "a human was quicker", {})
        return load(name)

    monkeypatch.setattr(manager, "get", meanwhile)
    assert manager.serving() == names[0]  # for this one message
    assert manager.serving() == names[2]
    assert adapters.promotions(store)[0].reason == "a human was quicker"


def test_everything_an_operator_changes_is_in_the_audit_trail(
    web: TestClient, store: Database, names: list[str]
) -> None:
    promote(web, names[0])
    web.put("/api/settings", json={"side_by_side_share": 0.25}, headers=key())
    web.put("/api/schedule", json={"cron": "0 3 * * *", "time_zone": "UTC"}, headers=key())
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "training.night"])
    night = nights.start_night(store, "dpo", {}, process.pid)
    web.delete(f"/api/nights/{night}", headers=key())
    process.wait()
    trail = audit.trail(store)
    assert [(each.user, each.action, each.subject) for each in trail] == [
        ("owner", "cancel night", str(night)),
        ("owner", "set", "schedule"),
        ("owner", "set", "side_by_side_share"),
        ("owner", "promote", names[0]),
    ]
    assert trail[1].detail["cron"] == "0 3 * * *"
    assert dataclasses.asdict(trail[2])["detail"] == {"value": 0.25}


def test_a_night_that_ends_before_it_begins_says_why_in_its_own_words(assistant: Assistant, owner: User) -> None:
    broken = dataclasses.replace(assistant, base=dataclasses.replace(assistant.base, name="no-such-model"))
    with pytest.raises(Conflict, match="the night ended at once: there is no model 'no-such-model'"):
        operations.start_night(broken, owner)
    assert audit.trail(assistant.store) == []
    assert nights.nights(assistant.store) == []
