"""A person's own account page: their password, their sessions, and how it looks."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, expect

from assistant.chat.assistant import Assistant
from feedback.accounts import sessions, users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.records import audit
from tests.helpers.browser import Visitor, chromium
from tests.helpers.over_http import assistant, loaded
from tests.ui.test_logins import CHEAP, PASSWORD, answering, beside, client, log_in
from ui.app import create_app

__all__ = ["assistant", "loaded"]  # fixtures
NEW = "a wholly other phrase"


@pytest.fixture
def ada(store: Database) -> User:
    return users.add_user(store, "Ada", "chatter", CHEAP.hash(PASSWORD))


def change(web: TestClient, current: str = PASSWORD, new: str = NEW, again: str | None = None) -> tuple[int, str]:
    form = {"current": current, "new": new, "again": new if again is None else again}
    answer = web.post("/account/password", data=form)
    said = re.search(r'<p role="\w+" id="\w+">(.*?)</p>', answer.text)
    return answer.status_code, said[1] if said else answer.text


def test_a_person_changes_their_password_and_stays_logged_in_here_alone(
    assistant: Assistant, store: Database, ada: User
) -> None:
    web = client(assistant)
    elsewhere = beside(web, "192.0.2.2")
    log_in(web)
    log_in(elsewhere)
    token = users.add_token(store, ada, "laptop")
    assert "revokes\n      your API token" in web.get("/account").text
    before = web.cookies["nightschool"]

    status, said = change(web)

    assert (status, "logged out everywhere else, and your API tokens no longer work" in said) == (200, True)
    assert (web.get("/docs").status_code, elsewhere.get("/docs").status_code) == (200, 401)
    assert beside(web, "192.0.2.3").get("/docs", headers={"Cookie": f"nightschool={before}"}).status_code == 401
    assert users.user_of_token(store, token) is None
    assert (log_in(elsewhere), log_in(elsewhere, password=NEW)) == (401, 303)
    assert [(each.user, each.action) for each in audit.trail(store) if each.user] == [("Ada", "set password of")]


def test_a_password_is_not_changed_without_the_current_one_or_for_a_bad_one(
    assistant: Assistant, store: Database, ada: User
) -> None:
    web = client(assistant)
    log_in(web)
    for current, new, again, status, why in (
        ("wrong", NEW, NEW, 403, "not your current password"),
        (PASSWORD, NEW, "another one", 400, "differ"),
        (PASSWORD, "short", "short", 400, "at least 10"),
        (PASSWORD, "password1234", "password1234", 400, "easily guessed"),
        (PASSWORD, PASSWORD, PASSWORD, 400, "is the old one"),
    ):
        answer, said = change(web, current, new, again)
        assert (answer, why in said) == (status, True), said
    assert users.find_user(store, "Ada") == ada
    assert web.get("/docs").status_code == 200
    away = web.post("/account/password", data={"current": PASSWORD}, headers={"Origin": "https://evil.example"})
    assert away.status_code == 403


def test_whoever_finds_an_open_browser_has_few_tries_at_its_password(assistant: Assistant, ada: User) -> None:
    web = client(assistant)
    log_in(web)
    heard = [change(web, f"guess {each}")[0] for each in range(25)]
    assert heard.count(403) == 20  # ten as a known browser, ten as an address
    assert heard[-1] == 429
    assert change(web)[0] == 429


def test_a_person_sees_and_ends_their_sessions_and_no_others(assistant: Assistant, store: Database, ada: User) -> None:
    web = client(assistant)
    bob = users.add_user(store, "Bob", "chatter", CHEAP.hash(PASSWORD))
    sessions.begin(store, bob, "192.0.2.99", "Safari on macOS")
    others = [beside(web, f"192.0.2.{each}") for each in (2, 3, 4)]
    for each in (web, *others):
        log_in(each)
    page = web.get("/account").text
    assert (page.count("This browser."), "192.0.2.3" in page, "192.0.2.99" in page) == (1, True, False)
    (theirs,) = sessions.of(store, bob)
    (second,) = (each for each in sessions.of(store, ada) if each.address == "192.0.2.2")
    for wrong, status in ((str(theirs.id), 404), ("x", 400), ("9" * 30, 400)):
        assert web.post("/account/sessions", data={"session": wrong}).status_code == status
    assert len(sessions.of(store, bob)) == 1
    web.post("/account/sessions", data={"session": str(second.id)})
    assert [each.get("/docs").status_code for each in others] == [401, 200, 200]
    web.post("/account/sessions", data={"session": "others"})
    assert [each.get("/docs").status_code for each in (web, *others)] == [200, 401, 401, 401]


def test_a_password_from_the_environment_is_changed_there(
    assistant: Assistant, store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_OWNER_PASSWORD", PASSWORD)
    users.add_user(store, "owner", "operator", CHEAP.hash(PASSWORD))
    web = client(assistant)
    log_in(web, "owner")
    status, said = change(web)
    assert (status, "NIGHTSCHOOL_OWNER_PASSWORD" in said) == (400, True)


def test_without_accounts_there_is_no_account_page(assistant: Assistant) -> None:
    assert client(assistant).get("/account").headers["location"] == "/"
    assert client(assistant).post("/account/password", data={"new": NEW, "again": NEW}).status_code == 400


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_the_page_in_a_browser(
    assistant: Assistant, store: Database, browser: Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    name = "Ada of the " + "very " * 8 + "long name"
    ada = users.add_user(store, name, "operator", PasswordHasher().hash(PASSWORD))
    with answering(create_app(assistant)) as url:
        sessions.begin(store, ada, "2001:db8:1234:5678:9abc:def0:1234:5678", "Firefox on Android")
        visitor = Visitor(browser, f"{url}/", width, 800, scheme)
        page = visitor.page
        page.goto(url)
        page.locator("#name").fill(name)
        page.locator("#password").fill(PASSWORD)
        page.locator("button").click()
        page.locator("#box textarea").wait_for()
        visitor.open().sidebar(True)
        link = page.locator("#to-account")
        expect(link).to_be_visible()
        there = [page.locator(each).bounding_box() for each in ("#to-operate", "#to-account", "#log-out")]
        edges = [(box["x"], box["x"] + box["width"]) for box in there if box]
        assert all(before[1] + 8 <= after[0] for before, after in itertools.pairwise(edges)), edges
        bar = page.locator("#sidebar").bounding_box()
        assert bar is not None
        assert edges[-1][1] <= bar["x"] + bar["width"] - 8
        page.screenshot(path=tmp_path / f"chat-{width}.png")
        link.click()
        expect(page.locator("#change-password")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for each in page.locator("button, input:visible").all():
            box = each.bounding_box()
            assert box is not None
            assert box["height"] >= 40
        page.screenshot(path=tmp_path / f"account-{width}.png", full_page=True)
        page.locator("#current").fill("wrong, so far as I know")
        page.locator("#new").fill(NEW)
        page.locator("#again").fill(NEW)
        page.locator("#change-password button").click()
        expect(page.locator("#error")).to_contain_text("not your current password")
        page.locator("#end-others, #sessions button").last.click()
        expect(page.locator("#done")).to_contain_text("Logged out")
        page.goto(f"{url}/logout")
        page.screenshot(path=tmp_path / f"logout-{width}.png")
        page.get_by_role("button", name="Log out").click()
        expect(page.locator("#password")).to_be_visible()
        assert (visitor.outside, visitor.errors) == ([], [])
        visitor.close()
