"""The HTTP API, through the whole application over a real assistant: what it does, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from assistant.models.adapter import WEIGHTS
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database, now
from feedback.kinds import vote as thumbs
from feedback.kinds.base import spoken
from feedback.kinds.comparison import standing_choice
from feedback.kinds.correction import correct
from feedback.kinds.tally import counts
from feedback.kinds.vote import Thumb, standing_vote
from feedback.records import adapters, decisions, nights, settings
from feedback.records.decisions import Decision, Side
from feedback.upkeep import schedules
from tests.conftest import two_replies
from tests.helpers.over_http import DRAWN, GREEDY, HERE, LONG, assistant, key, loaded, make_adapter, rows, token_of, web

__all__ = ["assistant", "loaded", "web"]  # fixtures


# Feedback


def test_every_kind_of_feedback_is_recorded_and_the_newest_stands(
    web: TestClient, store: Database, owner: User
) -> None:
    _, left, right = two_replies(store, owner)
    down = {"reply": left, "value": -1, "reasons": ["untrue"], "words": "no"}
    assert web.post("/api/votes", json=down, headers=key()).json() == {"id": 1}
    assert web.post("/api/votes", json={"reply": left, "value": 1}, headers=key()).json() == {"id": 2}
    choice = {"left": left, "right": right, "choice": "right", "strength": 3}
    assert web.post("/api/comparisons", json=choice, headers=key()).status_code == 200
    assert web.post("/api/rankings", json={"replies": [left, right], "ranks": [2, 1]}, headers=key()).status_code == 200
    assert web.post("/api/corrections", json={"reply": left, "text": "hi"}, headers=key()).status_code == 200
    assert web.post("/api/critiques", json={"reply": left, "text": "too formal"}, headers=key()).status_code == 200
    assert web.post("/api/labels", json={"reply": left, "label": "untrue"}, headers=key()).status_code == 200
    assert web.post("/api/signals", json={"reply": left, "kind": "copy"}, headers=key()).status_code == 200
    assert set(counts(store).items()) == {("votes", 2), *((kind.table, 1) for kind in spoken()[1:])}
    assert standing_vote(store, owner, left) == Thumb(left, 1, (), "")
    assert standing_choice(store, owner, left, right) == "right"
    said = web.get(f"/api/replies/{left}/feedback").json()
    assert [(each["kind"], each["standing"]) for each in said if each["kind"] == "votes"] == [
        ("votes", False),
        ("votes", True),
    ]
    assert len(said) == 8


def test_a_request_sent_twice_acts_once(web: TestClient, store: Database, owner: User) -> None:
    _, left, right = two_replies(store, owner)
    once = key()
    first = web.post("/api/votes", json={"reply": left, "value": -1}, headers=once)
    again = web.post("/api/votes", json={"reply": left, "value": -1}, headers=once)
    assert (first.json(), "Idempotent-Replayed" in first.headers) == (again.json(), False)
    assert again.headers["Idempotent-Replayed"] == "true"
    other = web.post("/api/votes", json={"reply": right, "value": -1}, headers=once)
    assert (other.status_code, "different request" in other.json()["error"]) == (409, True)
    elsewhere = web.post("/api/critiques", json={"reply": left, "text": "no"}, headers=once)
    assert elsewhere.status_code == 409
    assert counts(store)["votes"] == 1


def test_feedback_beyond_an_hours_bound_is_refused_with_when_to_go_on(web: TestClient, store: Database) -> None:
    ann = users.add_user(store, "ann", "chatter", "hash")
    _, left, _ = two_replies(store, ann)
    settings.set_setting(store, None, "feedback_per_hour", 1)
    token = {"Authorization": f"Bearer {users.add_token(store, ann, 'test')}"}

    def vote(value: int) -> httpx.Response:
        return web.post("/api/votes", json={"reply": left, "value": value}, headers=key() | token)

    assert vote(1).status_code == 200
    refused = vote(-1)
    assert (refused.status_code, 3500 < int(refused.headers["Retry-After"]) < 3700) == (429, True)
    assert refused.json()["error"].startswith("you have given 1 pieces of feedback in the last hour")
    assert vote(0).status_code == 200  # taken back
    assert counts(store)["votes"] == 2


def test_a_pair_is_blind_and_its_replies_can_be_compared(web: TestClient, store: Database, owner: User) -> None:
    once = key()
    pair = web.post("/api/pairs", json=DRAWN, headers=once).json()
    assert set(pair) == {"pair", "left", "right", "left_out"}
    assert set(pair["left"]) == {"reply", "text"}
    assert pair["left"]["text"] != pair["right"]["text"]
    assert web.post("/api/pairs", json=DRAWN, headers=once).json() == pair
    choice = {"left": pair["left"]["reply"], "right": pair["right"]["reply"], "choice": "left"}
    assert web.post("/api/comparisons", json=choice, headers=key()).status_code == 200
    assert rows(store)["pairs"] == 1
    assert conversations.conversations(store, owner) == []  # a program's conversations are not among the person's chats


def test_a_pair_may_name_its_two_adapters(web: TestClient, store: Database, assistant: Assistant) -> None:
    name = make_adapter(assistant, "named")
    pair = web.post("/api/pairs", json=DRAWN | {"adapters": ["base", name]}, headers=key()).json()
    assert "left" in pair, pair
    authors = {conversations.provenance(store, pair[side]["reply"]).adapter for side in ("left", "right")}
    assert authors == {None, name}


def test_consent_is_asked_given_and_withdrawn(web: TestClient) -> None:
    assert web.get("/api/consent").json() == {"given": None}
    for given in (True, False):
        assert web.post("/api/consent", json={"given": given}, headers=key()).json() == {"given": given}
        assert web.get("/api/consent").json() == {"given": given}


def test_a_conversation_is_given_with_every_branch_and_what_was_said_of_it(
    web: TestClient, store: Database, owner: User
) -> None:
    message, left, right = two_replies(store, owner)
    thumbs.vote(store, owner, left, -1, ["style"], "stiff")
    correct(store, owner, right, "hello you")
    chats = web.get("/api/conversations").json()
    whole = web.get(f"/api/conversations/{chats[0]['id']}").json()
    assert [each["id"] for each in whole["messages"]] == [message, left, right]
    assert whole["messages"][1]["vote"] == {"value": -1, "reasons": ["style"], "words": "stiff"}
    assert whole["messages"][2]["correction"] == "hello you"
    assert whole["messages"][2]["vote"] is None


# Whose it is, and what one may


def test_operating_takes_an_operator(web: TestClient, store: Database) -> None:
    chatter, rater = token_of(store, "chatter", "chatter"), token_of(store, "rater", "rater")
    operator = token_of(store, "operator", "operator")
    routes = [
        ("GET", "/api/nights"),
        ("POST", "/api/nights"),
        ("GET", "/api/nights/1"),
        ("GET", "/api/nights/1/evidence"),
        ("DELETE", "/api/nights/1"),
        ("GET", "/api/adapters"),
        ("GET", "/api/promotions"),
        ("POST", "/api/promotions"),
        ("GET", "/api/schedule"),
        ("PUT", "/api/schedule"),
        ("GET", "/api/settings"),
        ("PUT", "/api/settings"),
        ("GET", "/api/status"),
        ("GET", "/metrics"),
    ]
    before = rows(store)
    for method, path in routes:
        for headers in (chatter, rater):
            answer = web.request(method, path, headers=headers | key())
            assert (path, answer.status_code, "operator" in answer.json()["error"]) == (path, 403, True)
    assert rows(store) == before
    assert web.get("/api/status", headers=operator).status_code == 200


# Operating


def test_a_promotion_is_proved_serves_the_next_reply_and_is_taken_back(
    web: TestClient, store: Database, assistant: Assistant
) -> None:
    name = make_adapter(assistant, "better")
    before = web.post("/v1/chat/completions", json=GREEDY).json()
    assert before["model"] == "base"
    once = key()
    done = web.post("/api/promotions", json={"adapter": name, "reason": "try it"}, headers=once).json()
    assert done["proof"]["from_trainer"] <= done["proof"]["tolerance"] < done["proof"]["from_base"]
    assert web.post("/api/promotions", json={"adapter": name, "reason": "try it"}, headers=once).json() == done
    after = web.post("/v1/chat/completions", json=GREEDY).json()
    assert after["model"] == name
    assert conversations.provenance(store, after["id"]).adapter == name
    assert web.get("/api/status").json()["serving"] == name
    by_name = web.post("/v1/chat/completions", json=GREEDY | {"model": "base"}).json()
    assert by_name["choices"][0]["message"] == before["choices"][0]["message"]
    assert web.post("/api/promotions", json={"adapter": None, "reason": "back"}, headers=key()).status_code == 200
    assert [each["adapter"] for each in web.get("/api/promotions").json()] == [None, name]


def test_the_schedule_and_the_settings_are_set_and_read(web: TestClient, store: Database) -> None:
    none = {"cron": None, "time_zone": None, "enabled": False, "grace_minutes": None, "every_new": None}
    assert web.get("/api/schedule").json() == none | {"new_feedback": 0, "next": [], "occurrences": []}
    asked = {"cron": "30 3 * * 7", "time_zone": "Europe/Berlin", "enabled": True, "grace_minutes": 5, "every_new": 50}
    answer = web.put("/api/schedule", json=asked, headers=key()).json()
    assert {name: answer[name] for name in asked} == asked
    assert len(answer["next"]) == 5
    assert all("T03:30:00" in each for each in answer["next"])
    assert web.get("/api/schedule").json() == answer
    assert web.get("/api/status").json()["next_night"] == answer["next"][0]
    schedules.claim(store, "clock", "2026-03-01T02:30:00+00:00", "skipped", "nobody has rated a reply yet")
    (occurrence,) = web.get("/api/schedule").json()["occurrences"]
    assert (occurrence["cause"], occurrence["outcome"], occurrence["night"]) == ("clock", "skipped", None)
    by_feedback = web.put("/api/schedule", json={"every_new": 20}, headers=key()).json()
    assert (by_feedback["cron"], by_feedback["grace_minutes"], by_feedback["next"]) == ("", 60, [])
    assert web.get("/api/status").json()["next_night"] is None
    assert web.put("/api/settings", json={"side_by_side_share": 0.5}, headers=key()).status_code == 200
    assert settings.setting(store, "side_by_side_share") == 0.5


def test_nights_are_listed_with_their_steps(web: TestClient, store: Database) -> None:
    night = nights.start_night(store, "dpo", {"rank": 8}, pid=0)
    nights.add_step(store, night, 1, {"loss": 0.7}, phase="training", steps=2)
    assert web.get("/api/nights").json()[0]["phase"] == "training"
    assert web.get(f"/api/nights/{night}").json()["metrics"] == [{"step": 1, "loss": 0.7}]
    ended = web.delete(f"/api/nights/{night}", headers=key())
    assert (ended.status_code, ended.json()["error"]) == (409, f"night {night} is not running")


def test_what_was_decided_about_what_a_night_made_is_told_with_its_evidence(
    web: TestClient, store: Database, assistant: Assistant
) -> None:
    night = nights.start_night(store, "dpo", {}, pid=0)
    assert web.get(f"/api/nights/{night}/evidence").json() == []
    assert web.get(f"/api/nights/{night + 1}/evidence").status_code == 404
    measured = {"held_out": {"looked": True, "conversations": 12, "rate": 0.9}}
    decided = Decision(
        make_adapter(assistant, "new"), None, night, "offline", "promoted", 0.0465, "people do", measured
    )
    decisions.record(store, decided, [Side(users.local_owner(store).id, "How are you?", 1.0)], "a secret")
    (told,) = web.get(f"/api/nights/{night}/evidence").json()
    assert told | {"adapter": "new", "against": None, "outcome": "promoted", "risk": 0.0465} == told
    assert told["evidence"] == measured
    text = web.get("/metrics").text
    assert 'nightschool_decisions_total{door="offline",outcome="promoted"} 1.0' in text
    assert "nightschool_risk_spent 0.0465" in text
    assert "nightschool_risk 1.0" in text


@pytest.fixture
def sleeping_night(store: Database) -> Iterator[int]:
    """A running night as far as anyone can see: a process of that name, and its row."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "training.night"])
    yield nights.start_night(store, "dpo", {}, process.pid)
    process.kill()
    process.wait()


def test_a_second_night_is_refused_and_the_first_is_cancelled_once(
    web: TestClient, store: Database, sleeping_night: int
) -> None:
    assert web.get("/api/status").json()["running_night"]["id"] == sleeping_night
    refused = web.post("/api/nights", json={"method": "dpo", "again": True}, headers=key())
    assert (refused.status_code, "is running already" in refused.json()["error"]) == (409, True)
    once = key()
    cancelled = web.delete(f"/api/nights/{sleeping_night}", headers=once)
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    again = web.delete(f"/api/nights/{sleeping_night}", headers=once)
    assert (again.json(), again.headers["Idempotent-Replayed"]) == (cancelled.json(), "true")
    assert web.get("/api/status").json()["running_night"] is None


def test_metrics_count_what_there_is(web: TestClient, store: Database, owner: User) -> None:
    _, left, _ = two_replies(store, owner)
    thumbs.vote(store, owner, left, 1)
    nights.start_night(store, "dpo", {}, pid=0)
    before = web.get("/metrics").text
    assert web.post("/v1/chat/completions", json=GREEDY).status_code == 200
    text = web.get("/metrics").text
    waits = [float(each.partition("nightschool_first_token_seconds_count ")[2].split()[0]) for each in (before, text)]
    assert waits[1] == waits[0] + 1
    assert f'nightschool_first_token_seconds_bucket{{le="+Inf"}} {waits[1]}' in text
    assert 'nightschool_feedback_total{kind="votes"} 1.0' in text
    assert 'nightschool_nights{state="running"} 1.0' in text
    assert 'nightschool_serving{adapter="base"} 1.0' in text
    assert "nightschool_tokens_written_total" in text
    assert web.get("/healthz").json() == {"status": "well"}


# Bad input

BAD = [
    ("POST", "/api/votes", {"reply": "nothing", "value": 1}, 404, "there is no reply 'nothing'"),
    ("POST", "/api/votes", {"reply": "LEFT", "value": 2}, 400, "a vote is 1, 0 or -1, not 2"),
    ("POST", "/api/votes", {"reply": "LEFT", "value": "1"}, 422, "value: input should be a valid integer"),
    ("POST", "/api/votes", {"reply": "LEFT", "value": True}, 422, "value: input should be a valid integer"),
    ("POST", "/api/votes", {"reply": "LEFT"}, 422, "value is missing"),
    ("POST", "/api/votes", {"reply": "LEFT", "value": 1, "vlaue": 1}, 422, "there is no field vlaue"),
    ("POST", "/api/votes", {"reply": "LEFT", "value": 1, "reasons": ["ugly"]}, 400, "unknown reason 'ugly'"),
    ("POST", "/api/votes", {"reply": "LEFT", "value": 1, "words": LONG}, 400, "at most 100,000 characters"),
    ("POST", "/api/votes", b"{", 422, "the body is not JSON"),
    ("POST", "/api/votes", b'{"reply": "LEFT", "value": 1, "words": "\\ud800"}', 400, "half of a character"),
    ("POST", "/api/votes", [1], 422, "the body: "),
    ("POST", "/api/comparisons", {"left": "LEFT", "right": "LEFT", "choice": "left"}, 400, "two different replies"),
    ("POST", "/api/comparisons", {"left": "LEFT", "right": "RIGHT", "choice": "me"}, 400, "a choice is one of"),
    ("POST", "/api/rankings", {"replies": ["LEFT"], "ranks": [1]}, 400, "two or more different replies"),
    ("POST", "/api/rankings", {"replies": ["LEFT", "RIGHT"], "ranks": [1]}, 400, "a whole number from 1"),
    ("POST", "/api/corrections", {"reply": "LEFT", "text": LONG}, 400, "at most 100,000 characters"),
    ("POST", "/api/pairs", {"messages": []}, 400, "the last message must be the user's"),
    ("POST", "/api/pairs", {"messages": [{"role": "god", "content": "hi"}]}, 400, "the last message must be"),
    ("POST", "/api/pairs", DRAWN | {"adapters": ["base"]}, 400, "adapters names two, not 1"),
    ("POST", "/api/pairs", DRAWN | {"adapters": ["base", "gone"]}, 404, "there is no adapter 'gone'"),
    ("POST", "/api/pairs", DRAWN | {"max_tokens": 0}, 400, "max_tokens is a whole number from 1"),
    ("POST", "/api/consent", {"given": "yes"}, 422, "given: input should be a valid boolean"),
    ("POST", "/api/promotions", {"adapter": "gone", "reason": "x"}, 404, "there is no adapter 'gone'"),
    ("POST", "/api/promotions", {"adapter": None, "reason": " "}, 400, "say why"),
    ("POST", "/api/promotions", {"adapter": None, "reason": "x"}, 409, "the base serves already"),
    ("POST", "/api/nights", {"method": "--dry-run"}, 422, "method: "),
    ("POST", "/api/nights", {"settings": {"--again": 1}}, 422, "settings"),
    ("POST", "/api/nights", {"settings": {"loss": "ipo"}}, 409, "loss=ipo takes per_token=1"),
    ("DELETE", "/api/nights/99", None, 404, "there is no night 99"),
    ("DELETE", "/api/nights/x", None, 422, "night: "),
    ("PUT", "/api/schedule", {"cron": "x", "time_zone": "UTC"}, 400, "a schedule is five fields"),
    ("PUT", "/api/schedule", {"cron": "61 3 * * *", "time_zone": "UTC"}, 400, "is not a schedule"),
    ("PUT", "/api/schedule", {"cron": "0 3 * * *", "time_zone": "Mars"}, 400, "there is no time zone 'Mars'"),
    ("PUT", "/api/schedule", {"cron": "0 3 * * *", "time_zone": "../../x"}, 400, "there is no time zone"),
    ("PUT", "/api/schedule", {"cron": "0 3 * * *", "grace_minutes": -1}, 400, "grace_minutes is a whole number from 0"),
    ("PUT", "/api/schedule", {"every_new": 0}, 400, "every_new is a whole number from 1 to 1,000,000, or none, not 0"),
    ("PUT", "/api/schedule", {"every_new": "50"}, 422, "every_new: input should be a valid integer"),
    ("PUT", "/api/schedule", {"time_zone": "UTC"}, 400, "needs a clock"),
    ("PUT", "/api/settings", {"side_by_side_share": 2.0}, 400, "a number from 0 to 1, not 2.0"),
    ("POST", "/api/nowhere", {}, 404, "there is no POST /api/nowhere"),
]


def test_bad_input_gets_one_sentence_and_changes_nothing(web: TestClient, store: Database, owner: User) -> None:
    _, left, right = two_replies(store, owner)
    before = rows(store)
    for method, path, body, status, sentence in BAD:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        sent = sent.replace(b"LEFT", left.encode()).replace(b"RIGHT", right.encode())
        answer = web.request(method, path, content=sent, headers=key() | {"Content-Type": "application/json"})
        case = (method, path, sent[:80])
        assert (case, answer.status_code, list(answer.json())) == (case, status, ["error"])
        said = answer.json()["error"]
        assert (case, sentence in said, "\n" in said) == (case, True, False), said
        assert (case, rows(store)) == (case, before)


def test_a_write_without_a_usable_key_is_refused(web: TestClient, store: Database, owner: User) -> None:
    _, left, _ = two_replies(store, owner)
    before = rows(store)
    for headers in ({}, {"Idempotency-Key": ""}, {"Idempotency-Key": "k" * 201}):
        answer = web.post("/api/votes", json={"reply": left, "value": 1}, headers=headers)
        assert (answer.status_code, "Idempotency-Key" in answer.json()["error"]) == (400, True)
    assert rows(store) == before


def test_a_damaged_or_foreign_adapter_is_refused_and_what_serves_goes_on(
    web: TestClient, store: Database, assistant: Assistant, owner: User
) -> None:
    damaged, foreign = make_adapter(assistant, "damaged"), make_adapter(assistant, "foreign", base_sha256="0" * 64)
    with (adapters.directory(store, damaged) / WEIGHTS).open("ab") as file:
        file.write(b"!")
    before = rows(store)
    for name, sentence in ((damaged, "is damaged"), (foreign, "another base model")):
        answer = web.post("/api/promotions", json={"adapter": name, "reason": "x"}, headers=key())
        assert (answer.status_code, sentence in answer.json()["error"]) == (400, True)
        answer = web.post("/v1/chat/completions", json=GREEDY | {"model": name})
        assert (answer.status_code, sentence in answer.json()["error"]["message"]) == (400, True)
    assert rows(store) == before
    assert web.post("/v1/chat/completions", json=GREEDY).json()["model"] == "base"


def test_a_failure_of_our_own_is_a_sentence_too(web: TestClient, store: Database) -> None:
    store.insert("settings", {"user": None, "name": "side_by_side_share", "value": '"half"', "at": now()})
    answer = web.get("/api/settings")
    assert (answer.status_code, list(answer.json())) == (500, ["error"])


# The page about it


def test_the_pages_about_the_api_know_every_route_and_load_nothing_from_elsewhere(web: TestClient) -> None:
    schema = web.get("/openapi.json").json()
    assert {"/api/votes", "/api/pairs", "/api/nights/{night}", "/v1/chat/completions"} <= set(schema["paths"])
    page = web.get("/docs")
    assert page.status_code == 200
    assert all(f"<code>{path}</code>" in page.text for path in schema["paths"])
    assert "https://" not in page.text
    assert page.text.count("http://") == page.text.count(f"curl -X GET {HERE}") + sum(
        page.text.count(f"curl -X {method} {HERE}") for method in ("POST", "PUT", "PATCH", "DELETE")
    )
    assert "<script" not in page.text


def test_gradios_own_doors_for_programs_are_shut(web: TestClient, tmp_path: Path) -> None:
    for path in ("/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/runs", "/gradio_api/api/send"):
        assert web.get(path).status_code == 404
    assert web.get("/monitoring").status_code in (401, 403, 404)
    assert web.post("/gradio_api/call/send", json={"data": []}).status_code == 404
