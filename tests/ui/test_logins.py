"""Logging in under attack, sessions that end, and what a proxy with TLS changes."""

import asyncio
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import gradio as gr
import httpx
import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import Refused
from tests.helpers.over_http import HERE, answering, assistant, loaded
from ui.accounts.auth import page_user
from ui.accounts.login import FAILURES_OF_ADDRESS, Passwords, set_owner_password
from ui.accounts.patience import A_SECOND
from ui.app import create_app
from ui.refusals import NotLoggedIn

__all__ = ["assistant", "loaded"]  # fixtures
PASSWORD = "correct horse battery"
PROXY = "10.9.8.7"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)  # real argon2, at its smallest


@pytest.fixture
def ada(store: Database) -> User:
    return users.add_user(store, "Ada", "operator", CHEAP.hash(PASSWORD))


def client(assistant: Assistant, address: str = "192.0.2.1", url: str = HERE, **more: Any) -> TestClient:
    """A browser at an address; passwords are hashed at the smallest cost."""
    app = create_app(assistant, **more)
    app.state.logins = logins_of(assistant.store)
    return TestClient(app, base_url=url, follow_redirects=False, client=(address, 5000))


def logins_of(store: Database) -> Any:
    from ui.accounts.login import Logins

    return Logins(Passwords(store, CHEAP), "a secret")


def beside(web: TestClient, address: str) -> TestClient:
    """Another browser of the same server."""
    return TestClient(web.app, base_url=str(web.base_url), follow_redirects=False, client=(address, 5000))


def log_in(web: TestClient, name: str = "Ada", password: str = PASSWORD, **headers: str) -> int:
    named = {each.replace("_", "-"): value for each, value in headers.items()}
    return web.post("/login", data={"name": name, "password": password}, headers=named).status_code


def changes(store: Database) -> int:
    """How many rows were ever written."""
    assert store._writer is not None
    return store._writer.conn.total_changes


# Under attack


async def flooded(url: str) -> tuple[Counter[tuple[int, bool]], list[int]]:
    """What 80 connections that guess under changing names hear, and what /healthz says meanwhile."""
    heard: Counter[tuple[int, bool]] = Counter()
    health: list[int] = []
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=100)) as web:

        async def guess(number: int) -> None:
            for each in range(2):
                answer = await web.post("/login", data={"name": f"name {number} {each}", "password": "a guess"})
                heard[answer.status_code, "retry-after" in answer.headers] += 1

        async def look() -> None:
            while sum(heard.values()) < 160:
                health.append((await web.get("/healthz")).status_code)

        await asyncio.gather(look(), *(guess(number) for number in range(80)))
    return heard, health


def test_a_flood_of_guesses_is_refused_at_once_and_leaves_the_server_quick(assistant: Assistant, ada: User) -> None:
    with answering(create_app(assistant)) as url:
        heard, health = asyncio.run(flooded(url))
    assert set(heard) <= {(401, False), (429, True)}
    assert heard[429, True] > heard[401, False]
    assert heard[401, False] <= 60  # hashed
    assert len(health) > 1
    assert set(health) == {200}


def test_wrong_tries_of_one_address_do_not_keep_the_owner_out_elsewhere(assistant: Assistant, ada: User) -> None:
    web = client(assistant)
    assert [log_in(web, password="wrong") for _ in range(12)] == [401] * 10 + [429] * 2
    assert log_in(web) == 429
    assert log_in(beside(web, "192.0.2.2")) == 303


def test_wrong_tries_from_everywhere_leave_a_fresh_address_a_few(assistant: Assistant, ada: User) -> None:
    web = client(assistant)
    guesses = [log_in(beside(web, f"198.51.100.{each}"), password="wrong") for each in range(150)]
    assert set(guesses) == {401}
    late = beside(web, "192.0.2.77")
    assert [log_in(late, password="wrong") for _ in range(5)] == [401] * 3 + [429] * 2  # under siege: three, not ten
    assert log_in(beside(web, "192.0.2.78")) == 303


def test_a_browser_that_has_logged_in_rightly_has_tries_of_its_own(assistant: Assistant, ada: User) -> None:
    web = client(assistant)
    assert log_in(web) == 303
    web.post("/logout")
    attacker = beside(web, "192.0.2.1")  # at the same address, as behind one router or one unnamed proxy
    guesses = [log_in(attacker, f"name {each}", "wrong") for each in range(60)]
    guesses += [log_in(attacker, password="wrong") for _ in range(2)]
    assert guesses[-1] == 429
    assert log_in(beside(web, "192.0.2.1")) == 429
    assert log_in(web) == 303
    web.post("/logout")
    assert [log_in(web, password="wrong") for _ in range(11)][-1] == 429  # bounded, too
    assert log_in(web, "Bob", "wrong") == 429  # and good for this one name only


def test_one_address_may_not_guess_under_ever_new_names(assistant: Assistant, ada: User) -> None:
    web = client(assistant)
    heard = [log_in(web, f"name {each}", "wrong", X_Forwarded_For=f"203.0.113.{each}") for each in range(62)]
    assert Counter(heard) == {401: 60, 429: 2}  # and nobody is believed who says where he comes from
    refused = web.post("/login", data={"name": "x", "password": "y"})
    assert int(refused.headers["retry-after"]) > 60
    assert "from this address" in refused.text
    assert log_in(beside(web, "192.0.2.2")) == 303


def test_addresses_of_one_ipv6_network_are_one(assistant: Assistant, ada: User) -> None:
    web = client(assistant)
    heard = [log_in(beside(web, f"2001:db8:1:2::{each:x}"), password="wrong") for each in range(12)]
    assert Counter(heard) == {401: 10, 429: 2}
    assert log_in(beside(web, "2001:db8:1:3::1")) == 303


def test_failed_tries_are_counted_on_whatever_others_do(assistant: Assistant, ada: User) -> None:
    web = client(assistant)
    assert [log_in(web, password="wrong") for _ in range(10)] == [401] * 10
    for number in range(50_000):
        web.app.state.logins.failures.add(f"other name {number}")  # type: ignore[attr-defined]
    assert log_in(web) == 429
    assert log_in(beside(web, "192.0.2.2")) == 303


def test_failed_tries_are_forgotten_in_time() -> None:
    from ui.accounts.tries import Tries

    moment = [1000.0]
    tries = Tries(300, lambda: moment[0])
    for _ in range(3):
        last = tries.add("Ada")
        moment[0] += 70
    assert (tries.count("Ada"), tries.count("Bob")) == (3, 0)
    assert tries.wait_s("Ada", 3) == 50  # its minute began at 960, and is forgotten at 1260
    tries.take_back("Ada", last)
    assert (tries.count("Ada"), tries.wait_s("Ada", 3)) == (2, 0)
    moment[0] += tries.wait_s("Ada", 2)
    assert tries.count("Ada") == 1
    moment[0] += 300
    assert tries.count("Ada") == 0


def test_more_guesses_than_can_be_hashed_are_refused_without_waiting(assistant: Assistant, ada: User) -> None:
    """Sixty addresses at once, each with one guess: a few are hashed, the others hear 429 with when to come back."""
    app = create_app(assistant, proxies=["127.0.0.1"])

    async def all_at_once(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=100)) as web:
            form = {"name": "Ada", "password": "wrong"}
            sent = (web.post("/login", data=form, headers={"X-Forwarded-For": f"192.0.2.{n}"}) for n in range(60))
            return list(await asyncio.gather(*sent))

    with answering(app) as url:
        heard = asyncio.run(all_at_once(url))
    busy = [each for each in heard if each.status_code == 429]
    assert busy
    assert all("busy" in each.text and each.headers["retry-after"] for each in busy)
    assert log_in(client(assistant, "192.0.2.3")) == 303  # who heard that has used up nothing


def test_a_login_is_no_place_for_a_large_body(assistant: Assistant, ada: User) -> None:
    assert client(assistant).post("/login", data={"name": "Ada", "password": "x" * 100_000}).status_code == 413


def test_wrong_tokens_by_the_hundred_write_and_hash_nothing(assistant: Assistant, store: Database, ada: User) -> None:
    web = client(assistant)
    before = changes(store)
    heard = {web.get("/api/me", headers={"Authorization": f"Bearer ns-{each}"}).status_code for each in range(200)}
    assert (heard, changes(store)) == ({401}, before)


# Sessions


def test_logging_out_ends_the_session_on_the_server(assistant: Assistant, ada: User) -> None:
    web = client(assistant)
    log_in(web)
    kept = {"Cookie": f"nightschool={web.cookies['nightschool']}"}
    thief = beside(web, "192.0.2.9")
    assert thief.get("/docs", headers=kept).status_code == 200
    assert web.post("/logout").headers["location"] == "/login"
    assert thief.get("/docs", headers=kept).status_code == 401
    assert thief.post("/gradio_api/queue/join", json={}, headers=kept).status_code == 401


def test_a_new_password_ends_sessions_and_tokens(assistant: Assistant, store: Database, ada: User) -> None:
    web = client(assistant)
    log_in(web)
    bearer = {"Authorization": f"Bearer {users.add_token(store, ada, 'laptop')}"}
    stranger = beside(web, "192.0.2.2")
    assert (web.get("/docs").status_code, stranger.get("/docs", headers=bearer).status_code) == (200, 200)
    users.set_password(store, "Ada", CHEAP.hash("another password"))
    assert (web.get("/docs").status_code, stranger.get("/docs", headers=bearer).status_code) == (401, 401)


def test_a_stronger_hash_of_the_same_password_ends_nothing(assistant: Assistant, store: Database, ada: User) -> None:
    web = client(assistant)
    log_in(web)
    weak = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1).hash(PASSWORD)
    with store.transaction() as db:
        db.conn.execute("UPDATE users SET password_hash = ? WHERE id = ?", (weak, ada.id))
    other = beside(web, "192.0.2.2")
    assert log_in(other) == 303
    assert users.find_user(store, "Ada").password_hash != weak  # type: ignore[union-attr]
    assert (web.get("/docs").status_code, other.get("/docs").status_code) == (200, 200)


def test_logging_in_again_is_a_new_session_and_ends_the_browsers_old_one(assistant: Assistant, ada: User) -> None:
    web = client(assistant)
    log_in(web)
    old = {"Cookie": f"nightschool={web.cookies['nightschool']}"}
    log_in(web)
    assert web.get("/docs").status_code == 200
    assert beside(web, "192.0.2.1").get("/docs", headers=old).status_code == 401


def test_a_session_lasts_fourteen_days(assistant: Assistant, store: Database, ada: User) -> None:
    web = client(assistant)
    log_in(web)
    for days, status in ((13, 200), (15, 401)):
        made = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
        with store.transaction() as db:
            db.conn.execute("UPDATE sessions SET made_at = ?", (made,))
        assert (days, web.get("/docs").status_code) == (days, status)


def test_a_request_writes_nothing_but_when_somebody_was_last_seen_now_and_then(
    assistant: Assistant, store: Database, ada: User
) -> None:
    from feedback.accounts import sessions

    web = client(assistant)
    log_in(web)
    before = changes(store)
    for _ in range(50):
        assert web.get("/docs").status_code == 200
    assert changes(store) == before
    with store.transaction() as db:
        db.conn.execute("UPDATE sessions SET seen_at = '2026-01-01T00:00:00.000+00:00'")
    before = changes(store)
    for _ in range(50):
        assert web.get("/docs").status_code == 200
    for _ in range(100):
        if sessions.of(store, ada)[0].seen_at > "2026-01-02":
            break
        threading.Event().wait(0.05)
    assert sessions.of(store, ada)[0].seen_at > "2026-01-02"
    assert changes(store) == before + 1


def test_a_session_is_kept_as_a_hash_with_where_it_was_opened(assistant: Assistant, store: Database, ada: User) -> None:
    from feedback.accounts import sessions

    web = client(assistant)
    firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    web.post("/login", data={"name": "Ada", "password": PASSWORD}, headers={"User-Agent": firefox})
    (session,) = sessions.of(store, ada)
    assert (session.address, session.agent) == ("192.0.2.1", "Firefox on Linux")
    (row,) = store.rows("SELECT * FROM sessions")
    assert row["sha256"] not in web.cookies["nightschool"]


def test_the_cookies_of_before_log_in_again(assistant: Assistant, ada: User) -> None:
    import base64
    import json

    import itsdangerous

    from ui.accounts.auth import cookie_secret

    old = base64.b64encode(json.dumps({"user": ada.id, "mark": users.sha256(ada.password_hash or "")[:32]}).encode())
    cookie = itsdangerous.TimestampSigner(cookie_secret(assistant.store)).sign(old).decode()
    web = client(assistant)
    assert web.get("/docs", headers={"Cookie": f"nightschool={cookie}"}).status_code == 401
    page = web.get("/", headers={"Cookie": f"nightschool={cookie}", "Accept": "text/html"})
    assert page.headers["location"] == "/login?next=/"


def test_only_so_many_sessions_of_one_person_are_kept(assistant: Assistant, store: Database, ada: User) -> None:
    from feedback.accounts import sessions

    for number in range(60):
        sessions.begin(store, ada, "192.0.2.1", f"browser {number}")
    assert len(sessions.of(store, ada)) == len(store.rows("SELECT id FROM sessions")) == 50


def test_get_logout_is_a_page_with_a_button(assistant: Assistant, ada: User) -> None:
    web = client(assistant)
    assert web.get("/logout", headers={"Accept": "text/html"}).headers["location"] == "/login"
    log_in(web)
    page = web.get("/logout", headers={"Accept": "text/html"})
    assert (page.status_code, '<form method="post" action="/logout">' in page.text) == (200, True)
    assert web.get("/docs").status_code == 200  # an image of another site's page logs nobody out
    away = {"Origin": "https://evil.example"}
    assert web.post("/logout", headers=away).status_code == 403
    assert web.post("/logout", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert web.get("/docs").status_code == 200
    assert web.post("/logout", headers={"Origin": HERE}).status_code == 303
    assert web.get("/docs").status_code == 401
    assert web.post("/logout", headers={"Accept": "text/html"}).headers["location"] == "/login"  # it had ended


def test_who_is_disabled_is_out_at_once_everywhere(assistant: Assistant, store: Database, ada: User) -> None:
    from feedback.accounts import roles

    bob = users.add_user(store, "Bob", "chatter", CHEAP.hash(PASSWORD))
    bearer = {"Authorization": f"Bearer {users.add_token(store, bob, 'laptop')}"}
    web = client(assistant)
    stranger = beside(web, "192.0.2.2")
    log_in(web, "Bob")
    assert (web.get("/docs").status_code, stranger.get("/docs", headers=bearer).status_code) == (200, 200)
    assert page_user(gr.Request(username="Bob"), store) == bob

    roles.disable(store, None, bob)

    assert (web.get("/docs").status_code, stranger.get("/docs", headers=bearer).status_code) == (401, 401)
    with pytest.raises(NotLoggedIn):
        page_user(gr.Request(username="Bob"), store)
    refused = web.post("/login", data={"name": "Bob", "password": PASSWORD})
    assert (refused.status_code, "disabled" in refused.text) == (403, True)
    assert log_in(web, "Bob", "wrong") == 401  # whether it is disabled is for those who know the password

    roles.enable(store, None, bob)

    assert web.get("/docs").status_code == 401
    assert stranger.get("/docs", headers=bearer).status_code == 200
    assert log_in(web, "Bob") == 303


# TLS


def test_cookies_are_secure_and_browsers_stay_on_tls_where_the_request_came_by_it(
    assistant: Assistant, ada: User
) -> None:
    for url, secure in (("http://chat.example", False), ("https://chat.example", True)):
        web = client(assistant, url=url)
        answer = web.post("/login", data={"name": "Ada", "password": PASSWORD})
        cookies = answer.headers.get_list("set-cookie")
        assert len(cookies) == 2
        for cookie in cookies:
            words = cookie.lower().replace(" ", "").split(";")
            assert ("secure" in words, "httponly" in words, "samesite=lax" in words) == (secure, True, True)
        assert ("strict-transport-security" in answer.headers) == secure
        assert ("strict-transport-security" in web.get("/login").headers) == secure


def test_only_a_named_proxy_is_believed_about_tls_the_address_and_the_host(assistant: Assistant, ada: User) -> None:
    from feedback.accounts import sessions

    said = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.44", "X-Forwarded-Host": "chat.example"}
    form = {"name": "Ada", "password": PASSWORD}
    for address, believed in ((PROXY, True), (f"::ffff:{PROXY}", True), ("10.9.9.9", False), ("192.0.2.1", False)):
        web = client(assistant, address, proxies=["10.9.8.0/24"])
        answer = web.post("/login", data=form, headers=said | {"Origin": "https://chat.example"})
        if not believed:
            assert (address, answer.status_code) == (address, 403)  # the host here is 127.0.0.1
            answer = web.post("/login", data=form, headers=said | {"Origin": HERE})
        assert (address, answer.status_code) == (address, 303)
        assert ("secure" in answer.headers["set-cookie"].lower()) == believed
        assert ("strict-transport-security" in answer.headers) == believed
        assert sessions.of(assistant.store, ada)[0].address == ("192.0.2.44" if believed else address)
        (cookie,) = (each for each in answer.headers.get_list("set-cookie") if each.startswith("nightschool="))
        page = web.get("/", headers=said | {"Accept": "text/html", "Cookie": cookie.split(";")[0]}).text
        assert "Nightschool" in page
        assert ("https://chat.example" in page) == believed


def test_what_a_client_claims_through_a_named_proxy_is_not_believed(assistant: Assistant, ada: User) -> None:
    """The proxy appends the address it saw; whatever stands before is the client's word."""
    web = client(assistant, PROXY, proxies=[PROXY])
    heard = [log_in(web, password="wrong", X_Forwarded_For=f"203.0.113.{each}, 192.0.2.4") for each in range(12)]
    assert Counter(heard) == {401: 10, 429: 2}
    assert log_in(web, X_Forwarded_For="203.0.113.1, 192.0.2.5") == 303


def test_behind_tls_the_origin_is_compared_as_browsers_mean_it(assistant: Assistant, ada: User) -> None:
    web = client(assistant, PROXY, proxies=[PROXY])
    tls = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.44"}
    for host, origin, status in (
        ("chat.example", "https://chat.example", 303),
        ("chat.example:443", "https://chat.example", 303),
        ("CHAT.example", "https://chat.example", 303),
        ("chat.example:8443", "https://chat.example:8443", 303),
        ("chat.example", "http://chat.example", 403),  # whoever sits on the wire could have written that page
        ("chat.example", "https://chat.example:8443", 403),
        ("chat.example", "https://evil.example", 403),
        ("chat.example", "https://chat.example.evil.example", 403),
        ("chat.example", "null", 403),
        ("chat.example", "https://chat.example:port", 403),
    ):
        headers = {"Host": host, "Origin": origin, "X-Forwarded-Host": host}
        answer = web.post("/login", data={"name": "Ada", "password": PASSWORD}, headers=tls | headers)
        assert (host, origin, answer.status_code) == (host, origin, status)


def test_a_proxy_is_named_by_an_address_or_a_network() -> None:
    from ui.proxies import trusted

    assert trusted(["10.0.0.1, 192.168.0.0/16", "::1"]) == ["10.0.0.1", "192.168.0.0/16", "::1"]
    assert trusted(["10.1.2.3/8"]) == ["10.0.0.0/8"]
    for wrong in ("proxy", "*", "10.0.0.1/99", "10.0.0.0/8;"):
        with pytest.raises(Refused, match="--trusted-proxy"):
            trusted([wrong])


# Passwords


def test_the_owners_password_is_refused_when_short_or_common_and_goes_on_where_it_stands(store: Database) -> None:
    for password, why in (("short", "at least 10"), ("password1234", "guess"), ("owner-Owner1", "a name")):
        with pytest.raises(Refused, match=why):
            set_owner_password(store, {"NIGHTSCHOOL_OWNER_PASSWORD": password})
    assert users.users(store) == []
    owner = users.add_user(store, "owner", "operator", CHEAP.hash("password"))  # as it could be made before
    set_owner_password(store, {"NIGHTSCHOOL_OWNER_PASSWORD": "password"})
    assert users.find_user(store, "owner") == owner


def test_an_address_that_has_had_its_tries_is_told_so_at_a_pace_and_others_at_once(
    assistant: Assistant, ada: User
) -> None:
    web = client(assistant)
    known = beside(web, "192.0.2.9")
    assert log_in(known) == 303
    known.post("/logout")
    for number in range(FAILURES_OF_ADDRESS):
        assert web.post("/login", data={"name": f"nobody {number}", "password": "wrong"}).status_code == 401
    refused = web.post("/login", data={"name": "Ada", "password": PASSWORD})
    assert (refused.status_code, "too many failed logins from this address" in refused.text.lower()) == (429, True)
    assert int(refused.headers["retry-after"]) > 1
    begun = time.monotonic()
    assert [log_in(web) for _ in range(A_SECOND)] == [429] * A_SECOND
    assert time.monotonic() - begun > 0.9
    assert log_in(beside(web, "192.0.2.2")) == 303
    assert log_in(known) == 303
