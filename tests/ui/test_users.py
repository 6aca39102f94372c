"""Accounts, as an operator keeps them: every act in the audit trail."""

import os
import pty
import subprocess
import sys
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from feedback.accounts import roles, sessions, users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import Conflict, NotFound, Refused
from feedback.kinds.comparison import compare, standing_choice
from feedback.records import audit
from tests.conftest import two_replies
from tests.helpers.commands import as_process, nightschool, refused
from tests.helpers.over_http import HERE, assistant, key, loaded, rows
from ui.app import create_app

__all__ = ["assistant", "loaded"]  # fixtures
PASSWORD = "correct horse battery\n"


def user(store: Database, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """`nightschool user ...` on this store."""
    return nightschool("user", *arguments, "--data", str(store.data), said=said)


def account(store: Database, name: str, role: str = "chatter") -> User:
    return users.add_user(store, name, role, "a hash that no password has")


def deeds(store: Database) -> list[tuple[str, str]]:
    """What was done at a terminal or by somebody with an account, the oldest first; not what the test set up."""
    trail = reversed(audit.trail(store))
    return [(each.action, each.subject) for each in trail if each.user or audit.TERMINAL in each.detail]


def found(store: Database, name: str) -> User:
    here = users.find_user(store, name)
    assert here is not None
    return here


# Commands


def test_a_role_is_changed(store: Database) -> None:
    account(store, "root", "operator")
    account(store, "ada")
    assert "operator" in as_process("user", "role", "ada", "operator", "--data", str(store.data)).stdout
    assert found(store, "ada").role == "operator"
    assert deeds(store) == [("set role", "ada")]
    detail = audit.trail(store)[0].detail
    assert (detail["from"], detail["to"]) == ("chatter", "operator")
    refused(user(store, "role", "ada", "king"), "a role is one of chatter, rater, operator")
    refused(user(store, "role", "ada"), "which role?")
    refused(user(store, "role", "bob", "rater"), "there is no user 'bob'")
    assert len(deeds(store)) == 1


def test_who_is_disabled_is_let_in_no_more_until_enabled(store: Database) -> None:
    account(store, "root", "operator")
    ada = account(store, "ada")
    key, token = sessions.begin(store, ada, "192.0.2.1", "Firefox"), users.add_token(store, ada, "api")
    assert "no more" in user(store, "disable", "ada").stdout
    assert (sessions.find(store, key), users.user_of_token(store, token)) == (None, None)
    assert "ada  chatter  disabled" in user(store, "list").stdout
    refused(user(store, "disable", "ada"), "disabled already")
    assert "again" in user(store, "enable", "ada").stdout
    refused(user(store, "enable", "ada"), "is not disabled")
    assert sessions.find(store, key) is None
    assert deeds(store) == [("disable user", "ada"), ("enable user", "ada")]


def test_an_account_without_a_word_is_removed_and_another_is_not(store: Database) -> None:
    account(store, "root", "operator")
    ada, bob = account(store, "ada"), account(store, "bob")
    users.add_token(store, bob, "api")
    sessions.begin(store, bob, "192.0.2.1", "Firefox")
    two_replies(store, ada)
    refused(user(store, "remove", "ada"), "nightschool forget ada --yes")
    assert user(store, "remove", "bob").stdout == "bob is removed\n"
    assert users.find_user(store, "bob") is None
    assert store.rows("PRAGMA foreign_key_check") == []
    assert deeds(store) == [("remove user", "bob")]


def test_sessions_are_listed_and_ended(store: Database) -> None:
    ada = account(store, "ada", "operator")
    key = sessions.begin(store, ada, "192.0.2.1", "Firefox on Linux")
    listed = user(store, "sessions", "ada").stdout
    assert "192.0.2.1  Firefox on Linux" in listed
    assert key not in listed + user(store, "sessions", "ada", "--json").stdout
    assert user(store, "sessions", "ada", "--end").stdout == "ended: 1\n"
    assert sessions.find(store, key) is None
    assert "nowhere" in user(store, "sessions", "ada").stdout
    assert deeds(store) == [("end sessions", "ada")]


def test_a_new_password_by_command_ends_sessions_and_tokens_and_is_in_the_trail(store: Database) -> None:
    ada = account(store, "ada", "operator")
    key = sessions.begin(store, ada, "192.0.2.1", "Firefox")
    token = user(store, "token", "ada").stdout.strip()
    assert users.user_of_token(store, token) == ada
    said = user(store, "password", "ada", said=PASSWORD).stdout
    assert "sessions have ended, and tokens are revoked" in said
    assert (sessions.find(store, key), users.user_of_token(store, token)) == (None, None)
    user(store, "token", "ada")
    assert user(store, "revoke", "ada").stdout == "revoked 1\n"
    assert [each for each, _ in deeds(store)] == [
        "make token of",
        "set password of",
        "make token of",
        "revoke token of",
    ]


def test_a_short_a_common_and_a_tell_tale_password_are_refused_with_the_reason(store: Database) -> None:
    for password, why in (
        ("short", "at least 10 characters"),
        ("password1234", "very common password"),
        ("qwertyuiop", "common password"),
        ("aaaaaaaaaaaaaaaa", "easily guessed"),
        ("Nightschool1!", "a name"),
        ("ada.lovelace", "a name"),
        ("x" * 1025, "at most 1,024"),
    ):
        refused(user(store, "add", "ada lovelace", said=f"{password}\n"), why)
    assert users.users(store) == []
    long = "one two three four five six seven eight nine ten eleven twelve " * 4
    assert user(store, "add", "ada lovelace", "--role", "operator", said=f"{long}\n").returncode == 0


@pytest.mark.parametrize(
    "act", [("role", "ROOT", "rater"), ("disable", "root"), ("remove", "root"), ("forget",)], ids=str
)
def test_the_last_operator_stays_one(store: Database, act: tuple[str, ...]) -> None:
    account(store, "root", "operator")
    other = account(store, "other", "operator")
    roles.disable(store, None, other)
    before = users.users(store)
    command = ["user", *act] if act != ("forget",) else ["forget", "root", "--yes"]
    command += ["--data", str(store.data)]
    refused(nightschool(*command), "root is the last operator; make another first")
    assert users.users(store) == before
    roles.enable(store, None, other)
    assert nightschool(*command).returncode == 0


def test_two_operators_cannot_both_step_down(store: Database) -> None:
    ada, bob = account(store, "ada", "operator"), account(store, "bob", "operator")
    roles.set_role(store, ada.id, ada, "chatter")
    with pytest.raises(Conflict, match="last operator"):
        roles.disable(store, ada.id, bob)


def test_without_accounts_the_local_owner_is_not_shut_out(store: Database, owner: User) -> None:
    for act in (("disable", "owner"), ("remove", "owner"), ("role", "owner", "chatter")):
        refused(user(store, *act), "last operator")
    assert users.find_user(store, "owner") == owner


# The first account


@pytest.fixture
def said(store: Database, owner: User) -> tuple[str, str]:
    """A chat of the time without accounts, rated and consented to: the two replies."""
    users.set_consent(store, owner, True)
    _, left, right = two_replies(store, owner)
    compare(store, owner, left, right, "left")
    return left, right


def test_the_first_account_takes_the_earlier_chats_over(store: Database, owner: User, said: tuple[str, str]) -> None:
    done = user(store, "add", "ada", "--take-over", said=PASSWORD)
    assert done.stdout == "ada may log in as operator\nada has the 1 chat of 'owner'\n"
    ada = found(store, "ada")
    assert (ada.id, ada.role, users.find_user(store, "owner")) == (owner.id, "operator", None)
    assert len(conversations.conversations(store, ada)) == 1
    assert standing_choice(store, ada, *said) == "left"
    assert users.consent(store, ada) is True
    assert deeds(store) == [("add user", "ada")]
    assert audit.trail(store)[0].detail["took over"] == "owner"


def test_otherwise_it_is_said_that_they_stay_and_how_to_have_them(
    store: Database, owner: User, said: tuple[str, str]
) -> None:
    done = user(store, "add", "ada", said=PASSWORD)
    assert "the one chat had so far" in done.stdout
    assert "nightschool user take-over ada" in done.stdout
    assert "nobody can operate yet" in done.stderr
    ada = found(store, "ada")
    conversations.add_message(store, conversations.start_conversation(store, ada), None, "user", "hello")
    users.set_consent(store, ada, False)

    assert user(store, "take-over", "ada").stdout == "ada has the 1 chat of 'owner'\n"

    assert len(conversations.conversations(store, ada)) == 2
    assert conversations.conversations(store, owner) == []
    assert standing_choice(store, ada, *said) == "left"
    assert users.consent(store, ada) is False  # the newest answer
    assert deeds(store)[-1] == ("take over", "ada")
    assert store.rows("PRAGMA foreign_key_check") == []
    before = rows(store)
    refused(user(store, "take-over", "ada"), "nothing to take over")
    refused(user(store, "add", "bob", "--take-over", said=PASSWORD), "nothing to take over")
    assert rows(store) == before
    assert user(store, "add", "bob", said=PASSWORD).stdout == "bob may log in as chatter\n"


def test_the_owner_may_take_over_under_that_very_name(store: Database, owner: User, said: tuple[str, str]) -> None:
    assert user(store, "add", "owner", "--take-over", said=PASSWORD).returncode == 0
    assert found(store, "owner").id == owner.id
    assert users.has_accounts(store)


def test_a_name_that_is_taken_takes_nothing_over(store: Database, owner: User, said: tuple[str, str]) -> None:
    account(store, "ada", "operator")
    before = rows(store)
    refused(user(store, "add", "ada", "--take-over", said=PASSWORD), "already a user 'ada'")
    with pytest.raises(Conflict, match="take-over Ada"):
        roles.add(store, None, "Ada", "operator", "a hash", take_over=True)
    with pytest.raises(Refused, match="printable"):
        roles.add(store, None, " ", "operator", "a hash", take_over=True)
    assert rows(store) == before


def test_an_earlier_answer_of_both_stays_with_each(store: Database, owner: User, said: tuple[str, str]) -> None:
    """What only one person can have once is not doubled: the account's own stands."""
    ada = account(store, "ada", "operator")
    for each in (owner, ada):
        store.insert("split_people", {"user": each.id, "held_out": int(each == ada), "at": "2026-01-01"})
    roles.take_over(store, None, ada)
    assert store.rows("SELECT held_out FROM split_people WHERE user = ?", ada.id) == [{"held_out": 1}]
    with pytest.raises(NotFound):
        roles.take_over(store, None, ada)


@pytest.mark.parametrize(("answer", "taken"), [("y", True), ("", False)])
def test_at_a_terminal_it_is_asked(
    store: Database, owner: User, said: tuple[str, str], answer: str, taken: bool
) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "ui.cli", "user", "add", "ada", "--data", str(store.data)]
        os.execv(sys.executable, command)
    shown = typed(terminal, [("[y/N]", answer), ("password:", PASSWORD.strip()), ("again:", PASSWORD.strip())])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert "1 chat had before there were accounts" in shown
    assert (found(store, "ada").id == owner.id) is taken


def typed(terminal: int, answers: list[tuple[str, str]]) -> str:
    """What a program shows on its terminal, each answer typed after its question."""
    shown, until = "", time.monotonic() + 60
    while time.monotonic() < until:
        try:
            shown += os.read(terminal, 1024).decode()
        except OSError:  # it has ended
            break
        if answers and answers[0][0] in shown.rsplit("\n", 1)[-1]:
            os.write(terminal, f"{answers.pop(0)[1]}\n".encode())
    return shown


# The same by the API


def test_operators_do_it_by_the_api_too(assistant: Assistant, store: Database) -> None:
    root, ada = account(store, "root", "operator"), account(store, "ada")
    web = TestClient(create_app(assistant), base_url=HERE)
    bearer = {"Authorization": f"Bearer {users.add_token(store, root, 'api')}"}
    theirs = {"Authorization": f"Bearer {users.add_token(store, ada, 'api')}"}
    sessions.begin(store, ada, "192.0.2.1", "Firefox")

    def act(method: str, path: str, body: Any = None, who: dict[str, str] = bearer) -> tuple[int, Any]:
        answer = web.request(method, f"/api/users{path}", json=body, headers=who | key())
        return answer.status_code, answer.json()

    assert [each["name"] for each in act("GET", "")[1]] == ["root", "ada"]
    assert act("GET", f"/{ada.id}/sessions")[1][0]["address"] == "192.0.2.1"
    for method, path in (
        ("GET", ""),
        ("PATCH", f"/{ada.id}"),
        ("DELETE", f"/{root.id}"),
        ("GET", f"/{root.id}/sessions"),
    ):
        assert act(method, path, {"role": "operator"} if method == "PATCH" else None, theirs)[0] == 403
    assert act("DELETE", f"/{ada.id}/sessions") == (200, {"ended": 1})
    assert act("PATCH", f"/{ada.id}", {"role": "rater", "disabled": True})[1]["disabled"] is True
    assert web.get("/api/me", headers=theirs).status_code == 401
    assert act("PATCH", f"/{root.id}", {"role": "rater"})[0] == 409
    assert act("PATCH", f"/{root.id}", {"disabled": True})[0] == 409
    assert act("PATCH", f"/{ada.id}", {})[0] == 400
    assert act("PATCH", "/99", {"role": "rater"})[0] == 404
    assert act("DELETE", f"/{ada.id}") == (200, {"removed": "ada"})
    assert [each.user for each in audit.trail(store) if each.user] == ["root"] * 4
    assert [each for each, _ in deeds(store)] == ["end sessions", "set role", "disable user", "remove user"]
