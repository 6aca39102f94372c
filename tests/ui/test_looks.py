"""What is seen at first look, measured in Chromium on a screen and on two phones, by mouse and by touch.

One server serves the whole module, with two people, two adapters that were really trained, and a chat of everything
that is hard to show. What the pages do is in `test_chat_page` and `test_operate_page`.
"""

import re
import signal
from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher
from playwright.sync_api import Browser, Locator, expect

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.kinds.correction import correct
from feedback.records import adapters, audit, settings
from tests.conftest import BY_BASE
from tests.helpers.browser import Server, Visitor, chromium, serving
from tests.helpers.trained import LETTER, SAILOR, Trained

pytestmark = [pytest.mark.browser, pytest.mark.long]
PASSWORD = "a long walk by the sea"
WIDTHS = (390, 360, 1280)
SLOW_MS = 400
TABLE = """| Planet | Moons | Distance from the sun |
|:-------|------:|:--------:|
| Mercury | 0 | 57,909,227 km |
| Jupiter | 95 | 778,340,821 km |"""
CODE = """```python
# how many
def add(left: int, right: float) -> float:
    return left + right * 2 if left is not None else "none"
```

```json
{"name": "Ada", "born": 1815, "known": true}
```"""
ARABIC = "مرحبا بك في المدرسة الليلية."
RICH = f"{TABLE}\n\n{CODE}\n\n{ARABIC}\n\n- واحد\n- اثنان\n\nThat was Arabic, 中文, and 🌙."
# Words of a text that stand on more than one line.
BROKEN_WORDS = """element => {
    const broken = [], walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT), range = new Range();
    for (let node; node = walker.nextNode();)
        for (const word of node.data.matchAll(/[\\p{L}\\p{N}]+/gu)) {
            range.setStart(node, word.index);
            range.setEnd(node, word.index + word[0].length);
            if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) broken.push(word[0]);
        }
    return broken;
}"""
# The least contrast of an element's colours with what is behind them, as WCAG 2 counts it, and how many colours.
CONTRASTS = """elements => {
    const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
    const behind = element => {
        const [r, g, b, alpha = 1] = rgb(getComputedStyle(element).backgroundColor);
        return alpha > 0.99 || !element.parentElement ? [r, g, b] : behind(element.parentElement);
    };
    return elements.map(element => {
        const colour = getComputedStyle(element).color;
        const [less, more] = [light(rgb(colour)), light(behind(element))].sort((a, b) => a - b);
        return [colour, (more + 0.05) / (less + 0.05)];
    });
}"""


@pytest.fixture(scope="module")
def house(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The server's own store, as another process sees it: an operator, a chatter, a night's adapter that serves."""
    store = Database(trained.copy(tmp_path_factory.mktemp("looks") / "data"))
    settings.set_setting(store, None, "side_by_side_share", 0)
    hashed = PasswordHasher().hash(PASSWORD)
    for name, role in (("ada", "operator"), ("bo", "chatter")):
        users.set_consent(store, users.add_user(store, name, role, hashed), True)
    adapters.promote(store, SAILOR, None, "for the pictures", {})
    yield store
    store.close()


@pytest.fixture(scope="module")
def server(house: Database, trained: Trained) -> Iterator[Server]:
    with serving(house.data, ["--model", trained.base.name]) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def cookies(browser: Browser, server: Server) -> list:  # type: ignore[type-arg]
    """Ada's session."""
    visitor = Visitor(browser, server.url)
    log_in(visitor, "ada")
    kept = visitor.context.cookies()
    visitor.close()
    return kept


@pytest.fixture
def ada(browser: Browser, server: Server, cookies: list) -> Iterator["Windows"]:  # type: ignore[type-arg]
    opened = Windows(browser, server, cookies)
    yield opened
    for each in opened.all:
        each.close()
        assert each.outside == []
        assert each.errors == []


class Windows:
    """Ada's windows, of any size."""

    def __init__(self, browser: Browser, server: Server, cookies: list) -> None:  # type: ignore[type-arg]
        self.browser, self.server, self.cookies = browser, server, cookies
        self.all: list[Visitor] = []

    def __call__(self, width: int = 1280, **more: object) -> Visitor:
        visitor = Visitor(self.browser, self.server.url, width, 800, **more)  # type: ignore[arg-type]
        visitor.context.add_cookies(self.cookies)
        self.all.append(visitor)
        return visitor


@pytest.fixture
def me(house: Database) -> User:
    return known(house, "ada")


def known(store: Database, name: str) -> User:
    user = users.find_user(store, name)
    assert user is not None
    return user


def log_in(visitor: Visitor, name: str, password: str = PASSWORD) -> None:
    """From wherever one has been sent to the login page, or from its own address."""
    if "/login" not in visitor.page.url:
        visitor.page.goto(f"{visitor.url}login")
    visitor.page.get_by_label("Name").fill(name)
    visitor.page.get_by_label("Password").fill(password)
    visitor.page.get_by_role("button", name="Log in").click()
    visitor.locate("#box textarea").wait_for()


def written(store: Database, user: User, *texts: str) -> list[str]:
    """A chat written straight into the store, person first; the ids of its messages."""
    conversation = conversations.start_conversation(store, user)
    ids: list[str] = []
    for place, text in enumerate(texts):
        parent = ids[-1] if ids else None
        by_person = place % 2 == 0
        ids.append(
            conversations.add_message(store, conversation, parent, "user", text)
            if by_person
            else conversations.add_reply(store, parent or "", text, BY_BASE)
        )
    return ids


def widths(visitor: Visitor, *more: int) -> Iterator[int]:
    """The page at the width of two phones and of a screen, one after the other."""
    for width in (*more, *WIDTHS):
        visitor.page.set_viewport_size({"width": width, "height": 800})
        visitor.page.wait_for_timeout(100)
        yield width


def slowed(visitor: Visitor) -> None:
    """From now on every answer of the server comes a while late."""
    slow = {"offline": False, "latency": SLOW_MS, "downloadThroughput": -1, "uploadThroughput": -1}
    visitor.context.new_cdp_session(visitor.page).send("Network.emulateNetworkConditions", slow)


def in_view(visitor: Visitor, selector: str) -> bool:
    """Whether all of something is on the screen."""
    inside = """element => {
        const {height, top, bottom, left, right} = element.getBoundingClientRect();
        return height > 0 && top >= 0 && bottom <= innerHeight && left >= 0 && right <= innerWidth;
    }"""
    found = visitor.locate(selector)
    return found.count() > 0 and bool(found.first.evaluate(inside))


def size(button: Locator) -> tuple[float, float]:
    box = button.bounding_box()
    assert box is not None
    return box["width"], box["height"]


# The operate page


def test_the_table_of_nights_breaks_no_word(ada: Windows) -> None:
    visitor = ada().operate()
    assert visitor.locate("#nights td").count() >= 12
    for width in widths(visitor, 901, 900, 700):
        broken = f"cells => cells.map({BROKEN_WORDS}).flat()"
        assert (width, visitor.locate("#nights td, #adapters li, #trail li").evaluate_all(broken)) == (width, [])
        tall = "cells => Math.max(...cells.map(cell => cell.getBoundingClientRect().height))"
        assert visitor.locate("#nights td").evaluate_all(tall) < 400  # a letter a line: more than 1,000
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    "opener", [pytest.param("#rollback", marks=pytest.mark.soak), f"li[data-adapter={LETTER}] button.promote"]
)
def test_a_promotion_is_asked_about_in_view_and_in_focus_and_can_be_left(ada: Windows, opener: str) -> None:
    visitor = ada().operate()
    for width, leave in zip(widths(visitor), ("Escape", "#close-promotion", "Escape"), strict=False):
        visitor.locate(opener).click()
        expect(visitor.locate("#reason textarea")).to_be_focused(timeout=3_000)
        for part in ("#promotion-question", "#reason", "#promote", "#close-promotion"):
            visitor.until(lambda part=part: in_view(visitor, part), f"{part} is in view at {width}", 2_000)  # type: ignore[misc]
        if leave == "Escape":
            visitor.page.keyboard.press(leave)
        else:
            visitor.locate(leave).click()
        expect(visitor.locate("#promotion")).to_be_hidden(timeout=3_000)
        expect(visitor.locate(opener)).to_be_focused(timeout=3_000)


def test_what_comes_of_a_promotion_is_said_in_view(ada: Windows) -> None:
    visitor = ada().operate()
    for width in widths(visitor):
        visitor.locate("#rollback").click()
        expect(visitor.locate("#reason textarea")).to_be_focused(timeout=3_000)
        visitor.locate("#promote").click()
        expect(visitor.locate("#promotion-notice")).to_contain_text("Say why")
        visitor.until(lambda: in_view(visitor, "#promotion-notice p"), f"the refusal is in view at {width}", 2_000)
        visitor.locate("#close-promotion").click()
        expect(visitor.locate("#promotion")).to_be_hidden()


def test_the_curves_asked_for_come_into_view(ada: Windows) -> None:
    visitor = ada().operate()
    for width, night in zip(widths(visitor), "121", strict=True):
        visitor.locate(f"#nights button[data-name='{night}']").click()
        expect(visitor.locate("#night strong")).to_have_text(f"Night {night}")
        visitor.until(lambda: in_view(visitor, "#night .night-head"), f"the night is in view at {width}", 3_000)


def test_who_is_an_operator_no_longer_is_told_and_sees_no_error(
    browser: Browser, server: Server, house: Database
) -> None:
    users.add_user(house, "di", "operator", PasswordHasher().hash(PASSWORD))
    visitor = Visitor(browser, server.url, 390)
    log_in(visitor, "di")
    visitor.operate()
    with house.transaction() as db:
        db.conn.execute("UPDATE users SET role = 'chatter' WHERE name = 'di'")
    visitor.locate("#save-share").click()
    expect(visitor.locate("#headline [role=alert]")).to_contain_text("di is a chatter", timeout=5_000)
    expect(visitor.page.get_by_text("Error", exact=True)).to_have_count(0)
    visitor.close()


@pytest.mark.parametrize("how", ["no network", pytest.param("a server that hangs", marks=pytest.mark.soak)])
def test_a_server_out_of_reach_is_no_green_page_and_comes_back(ada: Windows, server: Server, how: str) -> None:
    visitor = ada(390).operate()
    expect(visitor.locate("#headline .well .title")).to_be_visible()
    lost = visitor.locate("#headline [role=alert]")
    try:
        if how == "no network":
            visitor.context.set_offline(True)
        else:
            server.signal(signal.SIGSTOP)
        expect(lost).to_contain_text("not reached", timeout=10_000)
        for width in widths(visitor) if how == "no network" else ():
            visitor.page.mouse.wheel(0, 300)  # it stays where it is seen
            assert (width, in_view(visitor, "#headline [role=alert]")) == (width, True)
        expect(visitor.locate("#headline .well")).to_be_hidden()
    finally:
        visitor.context.set_offline(False)
        server.signal(signal.SIGCONT)
    expect(visitor.locate("#headline .well .title")).to_be_visible(timeout=10_000)
    expect(lost).to_have_count(0)


@pytest.mark.soak
def test_settings_saved_in_a_hurry_are_all_saved_in_order(ada: Windows, house: Database) -> None:
    visitor = ada().operate()
    slowed(visitor)
    for percent in ("31", "32", "33"):
        visitor.locate("#share input[type=number]").fill(percent)
        visitor.locate("#save-share").click()
    expect(visitor.locate("#share-notice")).to_contain_text("33 % of turns", timeout=9_000)
    saved = [each.detail for each in audit.trail(house, 10) if each.subject == "side_by_side_share"]
    assert [str(each.get("value", each)) for each in saved[:3]] == ["0.33", "0.32", "0.31"]
    settings.set_setting(house, None, "side_by_side_share", 0)


# The chat page


def test_a_table_in_a_reply_breaks_no_word_and_keeps_its_alignment(ada: Windows, house: Database, me: User) -> None:
    written(house, me, "The planets?", RICH)
    visitor = ada().open()
    table = visitor.locate("#chat [data-testid=bot] table").last
    expect(table).to_be_visible()
    aligned = "cells => cells.map(cell => getComputedStyle(cell).textAlign.replace('start', 'left'))"
    for width in widths(visitor):
        assert (width, table.evaluate(BROKEN_WORDS)) == (width, [])
        assert table.locator("tr > *").evaluate_all(aligned) == ["left", "right", "center"] * 3
        assert table.evaluate("table => getComputedStyle(table).borderTopWidth") == "0px"  # its cells have borders
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("scheme", "width"), [pytest.param("light", 1280, marks=pytest.mark.soak), ("dark", 390)])
def test_code_is_coloured_and_can_be_read(ada: Windows, house: Database, me: User, scheme: str, width: int) -> None:
    written(house, me, "Some code?", RICH)
    visitor = ada(width, scheme=scheme).open()
    tokens = visitor.locate("#chat pre .token")
    expect(tokens.first).to_be_attached()
    found = tokens.evaluate_all(CONTRASTS) + visitor.locate("#chat pre code").evaluate_all(CONTRASTS)
    assert len({colour for colour, _ in found}) >= 5
    assert min(contrast for _, contrast in found) >= 4.5


def test_arabic_stands_to_the_right_and_what_is_beside_it_to_the_left(ada: Windows, house: Database, me: User) -> None:
    reply = written(house, me, ARABIC, RICH)[-1]
    correct(house, me, reply, ARABIC)
    visitor = ada().open()
    gaps = """element => {  // left and right of the text, in its paragraph
        const range = new Range(), box = element.getBoundingClientRect();
        range.selectNodeContents(element);
        const text = range.getClientRects()[0];
        return [text.left - box.left, box.right - text.right];
    }"""
    for _ in widths(visitor):
        for to_the_right, name in (
            (True, "p:has-text('مرحبا')"),
            (True, "li:has-text('اثنان')"),
            (False, "p:has-text('That was')"),
        ):
            left, right = visitor.locate(f"#chat [data-testid=bot] {name}").first.evaluate(gaps)
            assert (name, right < 2, left < 2) == (name, to_the_right, not to_the_right)
    visitor.locate("#chat").get_by_text("Your correction").click()
    visitor.locate("#correct").click()
    box = visitor.locate("#box textarea")
    box.fill(ARABIC)
    direction = "element => getComputedStyle(element).direction"
    for name in ("#box textarea", "#corrected-text textarea", "#chat [data-testid=user]", "#chats label.selected span"):
        assert (name, visitor.locate(name).last.evaluate(direction)) == (name, "rtl")
    assert visitor.locate("#chat [data-testid=bot] ul").first.evaluate(direction) == "rtl"
    box.fill("English")
    assert box.evaluate(direction) == "ltr"
    visitor.sidebar(True)
    left, right = visitor.locate("#chats label.selected span").evaluate(gaps)
    assert right <= left


@pytest.mark.parametrize(("width", "touch", "least"), [(1280, False, 32), (360, True, 44)])
def test_thumbs_are_large_up_comes_first_and_focus_is_seen(
    ada: Windows, house: Database, me: User, width: int, touch: bool, least: int
) -> None:
    written(house, me, "How are you?", "Well.")
    visitor = ada(width, touch=touch).open()
    buttons = visitor.locate("#chat .message-buttons button")
    up = visitor.page.get_by_role("button", name=re.compile("^like", re.IGNORECASE)).last
    down = visitor.page.get_by_role("button", name=re.compile("^dislike", re.IGNORECASE)).last
    assert min(min(size(button)) for button in [up, down, *buttons.all()]) >= least
    first, second = up.bounding_box(), down.bounding_box()
    assert first is not None
    assert second is not None
    assert first["x"] + first["width"] <= second["x"]
    up.focus()
    visitor.page.keyboard.press("Tab")
    expect(down).to_be_focused()
    outline = "button => [getComputedStyle(button).outlineStyle, getComputedStyle(button).outlineWidth]"
    assert down.evaluate(outline) == ["solid", "2px"]
    up.click()
    expect(visitor.locate("#your-rating")).to_have_text("you: good")
    expect(up).to_have_attribute("aria-pressed", "true")
    expect(down).to_have_attribute("aria-pressed", "false")


def test_who_was_logged_out_keeps_the_chat_and_what_was_typed(
    browser: Browser, server: Server, house: Database
) -> None:
    bo = known(house, "bo")
    written(house, bo, "Where were we?", "At the older chat.")
    written(house, bo, "A newer chat", "with nothing in it")
    visitor = Visitor(browser, server.url)
    log_in(visitor, "bo")
    visitor.open()
    visitor.locate("#chats label").filter(has_text="Where were we?").click()
    expect(visitor.locate("#chat")).to_contain_text("At the older chat.")
    visitor.page.wait_for_timeout(300)

    users.set_password(house, "bo", PasswordHasher().hash(PASSWORD[::-1]))
    visitor.locate("#box textarea").fill("a thought of some length")
    visitor.locate("#send").click()
    notice = visitor.locate("#notice [role=alert]")
    expect(notice).to_contain_text("logged out", timeout=5_000)
    for width in widths(visitor):
        assert (width, in_view(visitor, "#notice [role=alert]")) == (width, True)
    expect(visitor.locate("#chat")).to_contain_text("At the older chat.")
    expect(visitor.page.get_by_text("Error", exact=True)).to_have_count(0)
    expect(visitor.locate("#box textarea")).to_have_value("a thought of some length")

    notice.get_by_role("link").click()
    log_in(visitor, "bo", PASSWORD[::-1])
    expect(visitor.locate("#box textarea")).to_have_value("a thought of some length", timeout=5_000)
    expect(visitor.locate("#chat")).to_contain_text("At the older chat.")
    visitor.close()


def test_another_person_at_the_same_window_does_not_see_what_was_typed(ada: Windows, house: Database) -> None:
    users.add_user(house, "cy", "chatter", PasswordHasher().hash(PASSWORD))
    visitor = ada().open()
    visitor.locate("#box textarea").fill("for nobody else")
    visitor.context.clear_cookies()
    visitor.page.reload()
    log_in(visitor, "cy")
    expect(visitor.locate("#main")).to_have_attribute("data-opened", "yes", timeout=30_000)
    visitor.page.wait_for_timeout(500)
    expect(visitor.locate("#box textarea")).to_have_value("")


def test_thumbs_in_a_hurry_all_land_in_order(ada: Windows, house: Database, me: User) -> None:
    reply = written(house, me, "How are you?", "Well.")[-1]
    visitor = ada().open()
    slowed(visitor)
    for name in ("up", "down", "up"):
        visitor.thumb(name)
    visitor.until(lambda: len(votes(house, reply)) == 3, "three votes", 9_000)
    assert votes(house, reply) == [1, -1, 1]
    expect(visitor.locate("#your-rating")).to_have_text("you: good")


def votes(store: Database, reply: str) -> list[int]:
    return [row["value"] for row in store.rows("SELECT value FROM votes WHERE reply = ? ORDER BY id", reply)]


@pytest.mark.soak
def test_consent_taken_back_in_a_hurry_is_taken_back(ada: Windows, house: Database, me: User) -> None:
    users.set_consent(house, me, False)
    visitor = ada().open()
    slowed(visitor)
    switch = visitor.locate("#consent-switch input")
    switch.click()
    switch.click()
    visitor.page.wait_for_timeout(3 * SLOW_MS)
    assert users.consent(house, me) is False
    expect(switch).not_to_be_checked()
    given = [row["given"] for row in house.rows("SELECT given FROM consents WHERE user = ? ORDER BY id", me.id)]
    assert given[-2:] == [1, 0]
    users.set_consent(house, me, True)


@pytest.mark.soak
def test_of_chats_opened_in_a_hurry_the_last_is_shown(ada: Windows, house: Database, me: User) -> None:
    for name in ("first", "second", "third"):
        written(house, me, f"The {name} chat", f"a {name} reply")
    visitor = ada().open()
    slowed(visitor)
    for name in ("first", "second"):
        visitor.locate("#chats label").filter(has_text=f"The {name} chat").first.click()
    expect(visitor.locate("#chat")).to_contain_text("a second reply", timeout=5_000)
    expect(visitor.locate("#chats label.selected")).to_have_text("The second chat")


def test_a_message_sent_twice_in_a_hurry_is_said_once(ada: Windows, house: Database, me: User) -> None:
    visitor = ada().open()
    visitor.write_short(4)
    visitor.new_chat()
    slowed(visitor)
    visitor.locate("#box textarea").fill("Name one colour, once.")
    visitor.locate("#box textarea").press("Enter")
    visitor.locate("#send").click()
    visitor.page.wait_for_timeout(4 * SLOW_MS)
    visitor.wait_answered("Name one colour, once.")
    assert house.row("SELECT count(*) AS n FROM messages WHERE content = 'Name one colour, once.'") == {"n": 1}
    expect(visitor.locate("#notice")).to_have_text("")
