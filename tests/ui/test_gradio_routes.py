"""Which of Gradio's routes our pages use, seen from Chromium: the allow-list holds these and no others."""

import re
from collections.abc import Iterator
from typing import ClassVar
from urllib.parse import urlsplit

import pytest

from assistant.models.base_model import Base
from tests.helpers.browser import Server, Visitor, chromium, serving
from ui.gradio_guard import ROUTES

pytestmark = pytest.mark.browser
UNSEEN = {"/favicon.ico", "/gradio_api/reset"}  # Chromium does not tell of the first; the second comes by chance


class Watcher(Visitor):
    """A visitor who notes what is asked of the server, and what it refuses."""

    asked: ClassVar[set[tuple[str, str]]] = set()  # by all of them

    def watch(self) -> "Watcher":
        self.refused: list[tuple[str, int]] = []
        self.context.on("request", lambda each: self.asked.add((each.method, path_of(each.url))))
        self.context.on("response", lambda each: self.note(each.url, each.status))
        return self

    def note(self, url: str, status: int) -> None:
        if status >= 400:
            self.refused.append((url, status))


def path_of(url: str) -> str:
    """Where below its page a request went."""
    return re.sub("^/operate/", "/", urlsplit(url).path)


@pytest.fixture(scope="module")
def server(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("served"), ["--model", tiny.name]) as started:
        yield started


@pytest.fixture(scope="module")
def watcher(server: Server) -> Iterator[Watcher]:
    with chromium() as browser:
        watching = Watcher(browser, server.url).watch()
        yield watching
        watching.close()


def test_a_chat_and_the_operate_page_are_refused_nothing(watcher: Watcher) -> None:
    watcher.open()
    watcher.locate("#box textarea").fill("Tell me a story.")
    watcher.locate("#box textarea").press("Enter")
    watcher.locate("#stop").wait_for()
    watcher.locate("#new-chat").click()  # what is being written is no longer followed: a cancel
    watcher.page.wait_for_timeout(500)
    watcher.operate()
    assert watcher.refused == []


@pytest.mark.soak
def test_a_page_that_lost_its_server_comes_back_and_what_is_open_is_used(watcher: Watcher, server: Server) -> None:
    test_a_chat_and_the_operate_page_are_refused_nothing(watcher)
    watcher.open()
    server.kill()
    watcher.locate("#box textarea").fill("Are you still there?")
    watcher.locate("#box textarea").press("Enter")
    watcher.page.wait_for_timeout(500)
    server.start()
    watcher.until(lambda: ("GET", "/gradio_api/app_id") in watcher.asked, "the page looks whether the server is back")
    watcher.page.wait_for_timeout(1000)
    assert watcher.refused == []
    used = {
        route.pattern for method, route in ROUTES for m, path in watcher.asked if m == method and route.fullmatch(path)
    }
    ours = {path for _, path in watcher.asked if not any(route.fullmatch(path) for _, route in ROUTES)}
    assert ours <= {"/healthz"}
    assert {route.pattern for _, route in ROUTES} - used <= UNSEEN
