"""Who gets in: the local owner, people who log in, programs with tokens, and nobody else."""

import stat
from collections.abc import Iterator

import gradio as gr
import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import Refused
from tests.helpers.over_http import HERE, assistant, key, loaded, rows
from ui.accounts.auth import cookie_secret, is_loopback, page_user
from ui.accounts.login import FAILURES, Passwords, set_owner_password
from ui.app import create_app
from ui.refusals import NotLoggedIn

__all__ = ["assistant", "loaded"]  # fixtures
PASSWORD = "correct horse battery"
HTML = {"Accept": "text/html"}


def client_of(assistant: Assistant) -> TestClient:
    return TestClient(create_app(assistant), base_url=HERE, follow_redirects=False)


@pytest.fixture
def web(assistant: Assistant) -> TestClient:
    return client_of(assistant)


@pytest.fixture
def ada(store: Database) -> User:
    """Someone with an account, which ends the time of the local owner."""
    return users.add_user(store, "Ada", "chatter", Passwords(store).hash(PASSWORD))


def log_in(web: TestClient, name: str = "Ada", password: str = PASSWORD, next: str = "/") -> int:
    return web.post("/login", data={"name": name, "password": password, "next": next}).status_code


# Without accounts


def test_without_accounts_the_local_owner_needs_no_login(web: TestClient) -> None:
    for host in ("127.0.0.1:7860", "localhost", "[::1]:7860"):
        assert web.get("/api/status", headers={"Host": host}).status_code == 200
    assert web.get("/login").headers["location"] == "/"
    bearer = {"Authorization": "Bearer whatever a client must send"}
    assert web.get("/v1/models", headers=bearer).status_code == 200


def test_a_name_pointed_at_this_machine_from_elsewhere_is_refused(web: TestClient) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.5:7860", ""):
        answer = web.get("/api/status", headers={"Host": host})
        assert (host, answer.status_code, "127.0.0.1" in answer.json()["error"]) == (host, 403, True)
    assert web.get("/", headers=HTML | {"Host": "evil.example"}).status_code == 403


def test_another_sites_page_cannot_write(web: TestClient, store: Database, owner: User) -> None:
    before = rows(store)
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8000"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        answer = web.post("/api/consent", json={"given": True}, headers=key() | headers)
        assert (headers, answer.status_code) == (headers, 403)
        assert web.post("/gradio_api/queue/join", json={}, headers=headers).status_code == 403
    assert rows(store) == before
    ours = {"Origin": HERE, "Sec-Fetch-Site": "same-origin"}
    assert web.post("/api/consent", json={"given": True}, headers=key() | ours).status_code == 200
    read = web.get("/api/consent", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in read.headers
    page = web.get("/config", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in page.headers


def test_only_names_of_this_machine_are_loopback() -> None:
    assert all(is_loopback(each) for each in ("127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"))
    assert not any(is_loopback(each) for each in ("", "0.0.0.0", "::", "10.0.0.1", "localhost.com", "example"))


# With accounts


def test_with_accounts_nothing_is_served_to_a_stranger_but_the_login_page(web: TestClient, ada: User) -> None:
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/config", "/theme.css", "/assets/x.js", "/api/consent"):
        assert (path, web.get(path).status_code) == (path, 401)
    for path in (
        "/gradio_api/queue/data",
        "/gradio_api/heartbeat/x",
        "/gradio_api/file=x",
        "/gradio_api/startup-events",
    ):
        assert (path, web.get(path).status_code) == (path, 401)
    for path in (
        "/gradio_api/queue/join",
        "/gradio_api/upload",
        "/gradio_api/reset",
        "/v1/chat/completions",
        "/api/votes",
    ):
        assert (path, web.post(path, json={}).status_code) == (path, 401)
    assert web.post("/v1/chat/completions", json={}).json()["error"]["code"] == "invalid_api_key"
    away = web.get("/docs", headers=HTML)
    assert (away.status_code, away.headers["location"]) == (303, "/login?next=/docs")
    page = web.get("/login", headers=HTML)
    assert (page.status_code, "http" in page.text) == (200, False)
    assert web.get("/healthz").status_code == 200


def test_logging_in_opens_a_session_and_logging_out_closes_it(web: TestClient, ada: User) -> None:
    opened = web.post("/login", data={"name": "ada ", "password": PASSWORD, "next": "/docs"})
    assert (opened.status_code, opened.headers["location"]) == (303, "/docs")
    assert all(word in opened.headers["set-cookie"].lower() for word in ("httponly", "samesite=lax"))
    assert web.get("/docs", headers=HTML).status_code == 200
    assert '"username":"Ada"' in web.get("/", headers=HTML).text
    assert web.post("/logout").headers["location"] == "/login"
    assert web.get("/docs").status_code == 401


def test_a_wrong_password_and_an_unknown_name_look_the_same(web: TestClient, ada: User) -> None:
    answers = [
        web.post("/login", data={"name": name, "password": "wrong"}) for name in ("Ada", "Bob", "<script>", "owner")
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert all("This name and password do not belong together." in answer.text for answer in answers)
    assert "<script>" not in answers[2].text
    assert web.get("/docs").status_code == 401


def test_after_ten_failures_a_name_rests(web: TestClient, store: Database, ada: User) -> None:
    assert [log_in(web, password="wrong") for _ in range(FAILURES)] == [401] * FAILURES
    refused = web.post("/login", data={"name": "ADA", "password": PASSWORD})
    assert (refused.status_code, "try again in 5 minutes" in refused.text) == (429, True)
    users.add_user(store, "Bob", "chatter", Passwords(store).hash(PASSWORD))
    assert log_in(web, "Bob") == 303


def test_a_login_leads_on_within_this_site_only(web: TestClient, ada: User) -> None:
    for next in ("https://evil.example", "//evil.example", "/\\evil.example", "javascript:x", ""):
        opened = web.post("/login", data={"name": "Ada", "password": PASSWORD, "next": next})
        assert (next, opened.headers["location"]) == (next, "/")


def test_a_changed_password_ends_every_session(web: TestClient, store: Database, ada: User) -> None:
    log_in(web)
    users.set_password(store, "Ada", Passwords(store).hash("another password"))
    assert web.get("/docs").status_code == 401
    assert log_in(web) == 401
    assert log_in(web, password="another password") == 303
    assert web.get("/docs").status_code == 200


def test_a_session_outlives_a_restart_but_no_forged_cookie_opens_one(
    web: TestClient, assistant: Assistant, store: Database, ada: User
) -> None:
    log_in(web)
    cookie = web.cookies["nightschool"]
    again = client_of(assistant)
    assert again.get("/docs", headers={"Cookie": f"nightschool={cookie}"}).status_code == 200
    for forged in (cookie[:-2] + "xx", "x" + cookie, "null", ""):
        assert again.get("/docs", headers={"Cookie": f"nightschool={forged}"}).status_code == 401
    secret = store.data / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert cookie_secret(store) == secret.read_text()


def test_a_token_opens_the_api_until_it_is_revoked(web: TestClient, store: Database, ada: User) -> None:
    bearer = {"Authorization": f"Bearer {users.add_token(store, ada, 'laptop')}"}
    elsewhere = bearer | {"Origin": "https://other.example", "Host": "chat.example"}
    assert web.get("/api/consent", headers=elsewhere).status_code == 200
    assert web.post("/api/consent", json={"given": True}, headers=elsewhere | key()).status_code == 200
    assert web.get("/api/status", headers=bearer).status_code == 403
    users.revoke_token(store, ada, "laptop")
    refused = web.get("/api/consent", headers=bearer)
    assert (refused.status_code, refused.json()["error"]) == (401, "this API token is not valid")


def test_two_people_see_their_own(web: TestClient, store: Database, ada: User, assistant: Assistant) -> None:
    bob = users.add_user(store, "Bob", "operator", Passwords(store).hash(PASSWORD))
    conversation = conversations.start_conversation(store, ada)
    conversations.add_message(store, conversation, None, "user", "my secret")
    log_in(web)
    assert [each["id"] for each in web.get("/api/conversations").json()] == [conversation]
    other = client_of(assistant)
    log_in(other, bob.name)
    assert other.get("/api/conversations").json() == []
    assert other.get(f"/api/conversations/{conversation}").status_code == 404


def test_a_body_that_is_too_large_is_not_read(web: TestClient) -> None:
    answer = web.post("/api/consent", content=b"x", headers=key() | {"Content-Length": str(1 << 40)})
    assert (answer.status_code, "at most 16 MB" in answer.json()["error"]) == (413, True)


def test_a_body_of_undeclared_length_is_read_and_counted_while_it_is(web: TestClient) -> None:
    def pieces(*all: bytes) -> Iterator[bytes]:
        yield from all

    headers = {"Content-Type": "application/json"}
    given = web.post("/api/consent", content=pieces(b'{"given"', b": true}"), headers=key() | headers)
    assert (given.status_code, given.json()) == (200, {"given": True})
    for path in ("/api/consent", "/v1/chat/completions"):
        answer = web.post(path, content=pieces(*[b" " * (1 << 20)] * 20), headers=key() | headers)
        assert (path, answer.status_code, "at most 16 MB" in answer.text) == (path, 413, True)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for path, kind in (("/login", form), ("/gradio_api/queue/join", headers)):
        answer = web.post(path, content=pieces(*[b"x" * (1 << 20)] * 6), headers=key() | kind)
        assert (path, answer.status_code) == (path, 413)


# Handlers of pages


def test_a_page_knows_who_is_there(store: Database, ada: User) -> None:
    assert page_user(gr.Request(username="Ada"), store) == ada
    for nobody in (None, "", "Bob"):
        with pytest.raises(NotLoggedIn):
            page_user(gr.Request(username=nobody), store)


# The owner's password


def test_the_environment_makes_the_owners_account_once_and_updates_it(store: Database, owner: User) -> None:
    set_owner_password(store, {})
    assert not users.has_accounts(store)
    set_owner_password(store, {"NIGHTSCHOOL_OWNER_PASSWORD": PASSWORD})
    made = users.find_user(store, "owner")
    assert made is not None
    assert (made.id, made.role) == (owner.id, "operator")  # the local owner's chats stay theirs
    set_owner_password(store, {"NIGHTSCHOOL_OWNER_PASSWORD": PASSWORD})
    assert users.find_user(store, "owner") == made  # a restart ends no session
    folder_file = store.data / "password"
    folder_file.write_text("one from a file\n")
    set_owner_password(store, {"NIGHTSCHOOL_OWNER_PASSWORD_FILE": str(folder_file)})
    assert Passwords(store).check("owner", "one from a file").id == owner.id


def test_an_owners_password_that_cannot_be_used_is_refused(store: Database) -> None:
    for environ in (
        {"NIGHTSCHOOL_OWNER_PASSWORD": ""},
        {"NIGHTSCHOOL_OWNER_PASSWORD": "short"},
        {"NIGHTSCHOOL_OWNER_PASSWORD_FILE": "/nowhere/at/all"},
    ):
        with pytest.raises(Refused, match="owner's password"):
            set_owner_password(store, environ)
    assert users.users(store) == []
