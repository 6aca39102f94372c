"""What a proxy in front changes: a prefix of every path, cookies, and who may come in without accounts."""

import re
from html import unescape
from typing import Any

import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import Refused
from tests.helpers.over_http import HERE, assistant, loaded, token_of
from ui.accounts.login import Passwords
from ui.app import create_app
from ui.prefix import root_path
from ui.proxies import CLAIMS

__all__ = ["assistant", "loaded"]  # fixtures
PROXY, STRANGER = "10.9.8.7", "192.0.2.1"
PASSWORD = "a quiet evening by the sea"
HTML = {"Accept": "text/html"}
OUR_PATH = re.compile(r"""(?:href|src|action)="(/[^"]*)\"""")


def client(assistant: Assistant, address: str = PROXY, **options: Any) -> TestClient:
    """Somebody at an address; redirects are looked at, not followed."""
    app = create_app(assistant, **options)
    return TestClient(app, base_url=HERE, client=(address, 1234), follow_redirects=False)


@pytest.fixture
def ada(store: Database) -> User:
    return users.add_user(store, "Ada", "operator", Passwords(store).hash(PASSWORD))


def test_under_a_prefix_every_path_is_answered_and_every_link_has_it(assistant: Assistant, ada: User) -> None:
    by_option = client(assistant, STRANGER, prefix="/ns"), {}, ("/ns", "")  # the proxy passes it on, or strips it
    by_header = client(assistant, proxies=[PROXY]), {"X-Forwarded-Prefix": "/ns/"}, ("/ns", "")
    for web, told, sent_as in (by_option, by_header):
        for sent in sent_as:
            away = web.get(f"{sent}/docs", headers=HTML | told)
            assert (away.status_code, away.headers["location"]) == (303, "/ns/login?next=/docs")
            form = web.get(f"{sent}/login", headers=HTML | told).text
            assert 'action="/ns/login"' in form
            for following in ("/docs", "/ns/docs"):
                data = {"name": "Ada", "password": PASSWORD, "next": following}
                opened = web.post(f"{sent}/login", data=data, headers=told)
                assert (opened.status_code, opened.headers["location"]) == (303, "/ns/docs")
            cookies = opened.headers.get_list("set-cookie")
            assert len(cookies) == 2
            assert all("path=/ns;" in each.lower() for each in cookies)
            here = told | {"Cookie": "; ".join(each.split(";")[0] for each in cookies)}
            for page in ("/", "/operate/", "/account", "/docs", "/logout"):
                answer = web.get(sent + page, headers=HTML | here)
                assert (page, answer.status_code) == (page, 200)
                links = set(OUR_PATH.findall(unescape(answer.text))) - {"/manifest.json"}  # Gradio's, never asked for
                assert [each for each in links if not each.startswith("/ns/")] == [], page
            config = web.get(f"{sent}/operate/", headers=HTML | here).text
            assert f'"root":"{HERE}/ns/operate"' in config
            assert web.get(f"{sent}/operate", headers=here).headers["location"] == "/ns/operate/"
            assert web.get(f"{sent}/openapi.json", headers=here).json()["servers"] == [{"url": "/ns"}]
            assert f" {HERE}/ns/api/votes" in web.get(f"{sent}/docs", headers=here).text
            assert web.post(f"{sent}/logout", headers=here).headers["location"] == "/ns/login"
        bare = web.get("/ns", headers=told)
        assert (bare.status_code, bare.headers["location"]) == (308, "/ns/")
        assert web.get("/healthz").status_code == 200


def test_a_prefix_opens_no_door(assistant: Assistant, ada: User) -> None:
    """Every path is judged without the prefix, whatever stands before it."""
    chatter = token_of(assistant.store, "Bob", "chatter")
    web = client(assistant, prefix="/ns")
    for prefix, status in (("", 403), ("/ns", 403), ("/ns/ns", 404), ("/NS", 404), ("/ns/", 404)):
        assert web.get(f"{prefix}/metrics", headers=chatter).status_code == status
        assert web.get(f"{prefix}/operate/", headers=chatter).status_code == status
        assert web.get(f"{prefix}/v1/models").status_code == 401
    said = web.get("/ns/v1/nothing", headers=chatter).json()
    assert "/v1/nothing" in said["error"]["message"]


def test_only_a_named_proxy_says_what_the_prefix_is_and_never_an_address(assistant: Assistant, ada: User) -> None:
    app = create_app(assistant, proxies=[PROXY])
    for address, told, prefix in (
        (STRANGER, "/ns", ""),
        (PROXY, "//evil.example", ""),
        (PROXY, "/a/../b", ""),
        (PROXY, "https://evil", ""),
        (PROXY, "", ""),
        (PROXY, "/theirs, /ours", "/ours"),
    ):
        web = TestClient(app, base_url=HERE, client=(address, 1234), follow_redirects=False)
        away = web.get("/docs", headers=HTML | {"X-Forwarded-Prefix": told})
        assert (told, away.headers["location"]) == (told, f"{prefix}/login?next=/docs")


def test_a_root_path_is_a_path() -> None:
    assert [root_path(each) for each in ("", "/", "/ns", "/ns/", "/a/b-c.d")] == ["", "", "/ns", "/ns", "/a/b-c.d"]
    for wrong in ("ns", "//ns", "/a b", "/a/../b", "https://chat.example/ns", "/ns?x"):
        with pytest.raises(Refused, match="--root-path takes the path"):
            root_path(wrong)


def test_without_accounts_what_came_through_a_proxy_is_refused_with_the_way_out(assistant: Assistant) -> None:
    headers = [*(each.decode() for each in CLAIMS), "x-forwarded-for", "X-Forwarded-Anything"]
    for proxies in ([], ["127.0.0.1"]):
        web = client(assistant, "127.0.0.1", proxies=proxies)
        assert web.get("/v1/models").status_code == 200
        for header in headers:
            answer = web.get("/v1/models", headers={header: "203.0.113.5", "X-Forwarded-Host": "127.0.0.1"})
            assert (header, answer.status_code) == (header, 403)
            said = answer.json()["error"]["message"]
            assert all(each in said for each in ("came through a proxy", "user add NAME", "--trusted-proxy"))
        page = web.get("/", headers=HTML | {"Via": "1.1 proxy"})
        assert (page.status_code, "This came through a proxy" in page.text) == (403, True)
        assert web.get("/healthz", headers={"Via": "1.1 proxy"}).status_code == 200


def test_a_login_through_a_proxy_that_is_not_named_is_by_tls_if_the_browser_says_so_and_needs_the_host(
    assistant: Assistant, ada: User
) -> None:
    web = client(assistant, STRANGER)
    for origin, secure in ((f"https://{HERE[7:]}", True), (HERE, False)):
        opened = web.post("/login", data={"name": "Ada", "password": PASSWORD}, headers={"Origin": origin})
        assert opened.status_code == 303
        assert {"secure" in each.lower() for each in opened.headers.get_list("set-cookie")} == {secure}
    changed = web.post("/login", data={}, headers={"Origin": "http://chat.example"})
    assert changed.status_code == 403
    assert all(each in changed.text for each in ("pass the Host header on unchanged", "--trusted-proxy"))
