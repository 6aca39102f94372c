"""A real server process and a real Chromium, for tests of pages.

What the chat page's controls are called, so that tests can find them (`page.locator("#box textarea")`):
- sidebar: #sidebar, #new-chat, #chats (radio buttons), #hide-chat, #settings (#temperature, #top-p, #max-tokens, #seed,
  #greedy, #beams), #consent-switch, #account with #to-account and #log-out
- notice of the first run: #consent, #consent-yes, #consent-no
- conversation: #chat (messages are [data-testid=user] and [data-testid=bot])
- the line under it: #about-row, #about with #answered-by, #your-rating, #your-correction; #correct, #choose-again,
  #answer-it, #older-version, #newer-version
- after a thumb: #why, #why-question, #reasons, #why-words, #save-why, #close-why
- correcting: #correction, #corrected-text, #save-correction, #take-correction-back, #cancel-correction
- side by side: #pair, #left-reply, #right-reply, #left-is-better, #right-is-better, #tie, #both-bad
- text box: #box, #send, #two-replies, #stop, #notice (what the page has to say)
And the operate page's, which operators reach by #to-operate, and leave by #to-chat:
- a glance: #headline (.well, .busy, .note or .trouble), #tiles
- the night: #night (#told, #curves with data-steps), #which-night, #method, #again, #run-now, #cancel-night,
  #night-notice
- adapters: #adapters (li[data-adapter] with button.promote), #rollback, #promotion (#promotion-question, #reason,
  #promote, #close-promotion), #promotion-notice
- settings: #standing-schedule, #enabled, #cron, #time-zone, #grace, #every-new, #next-times, #save-schedule,
  #schedule-notice, #share, #save-share, #share-notice
- the record: #said, #nights (button.see), #clock, #trail
"""

import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, expect, sync_playwright

from tests.helpers.processes import Process

REPOSITORY = Path(__file__).parents[2]
START_S = 120.0
REPLY_MS = 90_000
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Server:
    """A server process on a data folder and a port of its own. `url` is where it answers."""

    def __init__(self, data: Path, options: Sequence[str] = ()) -> None:
        self.data = data
        self.options = options
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it says that it answers."""
        asked = ["--data", str(self.data), "--port", str(self.port), *self.options]
        self._process = process = Process("ui.app:main", asked, REPOSITORY)
        until = time.monotonic() + START_S
        while "answers at" not in process.stdout:
            if process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"the server did not start:\n{process.stdout}{process.stderr}")
            time.sleep(0.05)

    def answers_by(self) -> str | None:
        """The adapter that answers now; None: the base."""
        status: dict[str, str | None] = httpx.get(f"{self.url}api/status", timeout=30).raise_for_status().json()
        return status["serving"]

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        assert self._process is not None
        self._process.signal(number)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
        self._process = None


@contextmanager
def serving(data: Path, options: Sequence[str] = ()) -> Iterator[Server]:
    """A server for as long as the block runs."""
    server = Server(data, options)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def chromium_path() -> str | None:
    """The Chromium that NIGHTSCHOOL_CHROMIUM names, else one on PATH; None: Playwright's own."""
    found = os.environ.get("NIGHTSCHOOL_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    return found or None


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


# Browser contexts that nobody uses, by browser and kind of window: what they have loaded need not be loaded again.
UNUSED: dict[tuple[Browser, int, int, str, bool], list[BrowserContext]] = {}


class Visitor:
    """One person's browser window on one server, counting what it asks of anyone else."""

    def __init__(
        self,
        browser: Browser,
        url: str,
        width: int = 1280,
        height: int = 800,
        scheme: str = "light",
        touch: bool = False,
    ) -> None:
        self.url = url
        self.outside: list[str] = []
        self.errors: list[str] = []
        self._unused = UNUSED.setdefault((browser, width, height, scheme, touch), [])
        self.context: BrowserContext = (
            self._unused.pop()
            if self._unused
            else browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=scheme,  # type: ignore[arg-type]
                has_touch=touch,
                is_mobile=touch,
            )
        )
        self.context.on("request", self._note)
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _note(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.outside.append(request.url)

    def open(self) -> "Visitor":
        """Open the chat page and wait until one can write and the newest chat is there."""
        self.page.goto(self.url)
        self.page.locator("#box textarea").wait_for()
        expect(self.page.locator("#main")).to_have_attribute("data-opened", "yes", timeout=30_000)
        self.page.wait_for_timeout(200)  # an update is applied a moment after it has come; a click before that is lost
        return self

    def operate(self) -> "Visitor":
        """Open the operate page and wait until everything is there."""
        self.page.goto(f"{self.url}operate/")
        expect(self.page.locator("#operate")).to_have_attribute("data-opened", "yes", timeout=30_000)
        return self

    def locate(self, selector: str) -> Locator:
        """What a selector finds."""
        return self.page.locator(selector)

    def write_short(self, tokens: int = 8) -> None:
        """Ask for replies of at most so many tokens, greedily, in the settings."""
        self.sidebar(True)
        self.locate("#settings > button").click()
        box = self.locate("#max-tokens input[type=number]")
        for _ in range(20):  # what is typed while the settings still unfold is put back to what it was
            box.fill(str(tokens))
            box.press("Tab")
            self.page.wait_for_timeout(400)
            if box.input_value() == str(tokens):
                break
        expect(box).to_have_value(str(tokens))
        self.locate("#settings > button").click()
        self.sidebar(False)

    def sidebar(self, wanted: bool) -> None:
        """Open or close the sidebar where the window is too narrow for both."""
        is_open = "open" in (self.locate("#sidebar").get_attribute("class") or "").split()
        if (self.page.viewport_size or {"width": 1280})["width"] <= 768 and is_open != wanted:
            self.locate("#sidebar .toggle-button").click()
            self.page.wait_for_timeout(400)  # it slides

    def new_chat(self) -> None:
        """Begin a chat, and wait until nothing on the page moves any more."""
        self.sidebar(True)
        self.locate("#new-chat").click()
        expect(self.locate("#chat [data-testid=user]")).to_have_count(0)
        self.page.wait_for_timeout(500)

    def say(self, text: str, two: bool = False) -> None:
        """Send a message and wait for the whole reply, or for two."""
        self.locate("#box textarea").fill(text)
        if two:
            self.locate("#two-replies").click()
        else:
            self.locate("#box textarea").press("Enter")
        self.wait_answered(text)

    def until(self, holds: Callable[[], bool], what: str, within_ms: int = REPLY_MS) -> None:
        """Wait until something holds that the page does not show. Raises `AssertionError`, naming it."""
        end = time.monotonic() + within_ms / 1000
        while not holds():
            assert time.monotonic() < end, f"never came true: {what}"
            self.page.wait_for_timeout(100)

    def wait_answered(self, text: str = "") -> None:
        """Wait until nothing is being written, under a message of that text."""
        if text:
            expect(self.locate("#chat [data-testid=user]").last).to_contain_text(text[:40], timeout=REPLY_MS)
        expect(self.locate("#send")).to_be_visible(timeout=REPLY_MS)

    def thumb(self, name: str) -> None:
        """Click the thumb "up" or "down" of the last reply."""
        label = re.compile("^dislike" if name == "down" else "^like", re.IGNORECASE)
        self.page.get_by_role("button", name=label).last.click()

    def close(self) -> None:
        """Close the window; the next person finds nothing of it but the scripts that every page has."""
        for page in self.context.pages:
            if page.url.startswith(self.url):
                page.evaluate("localStorage.clear(); sessionStorage.clear()")
            page.close()
        self.context.remove_listener("request", self._note)
        self.context.clear_cookies()
        self.context.unroute_all()
        self.context.set_offline(False)
        self._unused.append(self.context)
