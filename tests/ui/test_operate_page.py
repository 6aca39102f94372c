"""The operate page as an operator uses it: a real Chromium against a real server process, real adapters, real nights.

One server and one data folder, with two adapters that were really trained, serve all tests that need a browser.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, expect

from assistant.models.base_model import EMBEDDED
from feedback.accounts import users
from feedback.database.database import Database, now
from feedback.kinds.comparison import compare
from feedback.kinds.tally import Day, by_day
from feedback.kinds.vote import vote
from feedback.records import adapters, audit, nights, settings
from feedback.records.adapters import Adapter
from feedback.upkeep import schedules
from tests.conftest import two_replies
from tests.helpers.browser import Server, Visitor, chromium, serving
from tests.helpers.over_http import assistant, loaded, rows, token_of, web
from tests.helpers.trained import LETTER, SAILOR, Trained
from ui.operate import lists, render, view
from ui.operate.layout import IDLE_TICK_S
from ui.shared import plots, time_format

__all__ = ["assistant", "loaded", "web"]  # fixtures
pytestmark = pytest.mark.long
NIGHT_MS = 300_000
FALSE_MARKUP = "<b>bold</b> ${1+1} {{this}}"


@pytest.fixture(scope="module")
def data(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.copy(tmp_path_factory.mktemp("operate") / "data")


@pytest.fixture(scope="module")
def house(data: Path) -> Iterator[Database]:
    """The server's own store, as another process sees it."""
    store = Database(data)
    settings.set_setting(store, None, "side_by_side_share", 0)
    yield store
    store.close()


@pytest.fixture(scope="module")
def server(data: Path, house: Database, trained: Trained) -> Iterator[Server]:
    with serving(data, ["--model", trained.base.name]) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def visitor(browser: Browser, server: Server) -> Iterator[Visitor]:
    """An operator's window. Whatever a test does, nobody else is asked for anything."""
    opened = Visitor(browser, server.url)
    yield opened
    opened.close()
    assert opened.outside == []
    assert opened.errors == []


def ask_to_promote(visitor: Visitor, name: str) -> None:
    """Open the question for an adapter of the list."""
    visitor.locate(f"li[data-adapter={name}] button.promote").click()
    expect(visitor.locate("#promotion-question")).to_contain_text(f"Let {name} serve")


def answered_by(visitor: Visitor, expected: str) -> None:
    """Ask something in a new chat, and see on the page who wrote the reply."""
    visitor.open()
    visitor.write_short(4)
    visitor.new_chat()
    visitor.say("Name three fruits.")
    expect(visitor.locate("#answered-by")).to_have_text(f"answered by {expected}")


# In a browser


@pytest.mark.browser
def test_a_glance_tells_that_all_is_well(visitor: Visitor, house: Database) -> None:
    visitor.open()
    visitor.locate("#to-operate").click()
    expect(visitor.locate("#headline .well .title")).to_have_text("All is well.", timeout=30_000)
    tiles = visitor.locate("#tiles")
    for words in ("the base model", "no schedule yet: set one", "night 2", "0"):
        expect(tiles).to_contain_text(words)
    expect(visitor.locate("#said .day")).to_have_count(14)
    expect(visitor.locate("#said .legend")).to_contain_text("16 corrections")
    steps = str(len(nights.night_steps(house, 2)))
    expect(visitor.locate("#curves")).to_have_attribute("data-steps", steps)
    expect(visitor.locate("#curves svg polyline.line-0")).to_have_count(4)
    expect(visitor.locate("li.adapter.serving")).to_contain_text("the base model")
    visitor.page.wait_for_timeout(1000 * IDLE_TICK_S + 500)  # a look at which nothing has changed
    expect(visitor.locate(".toast-body")).to_have_count(0)
    visitor.locate("#to-chat").click()
    expect(visitor.locate("#box textarea")).to_be_visible()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "light"), pytest.param(390, "dark", marks=pytest.mark.soak), (1280, "dark")]
)
def test_nothing_is_wider_than_the_screen(browser: Browser, server: Server, width: int, scheme: str) -> None:
    other = Visitor(browser, server.url, width, 844, scheme).operate()
    expect(other.locate("#headline .title")).to_be_visible()
    wide = "[...document.querySelectorAll('#operate *')].map(e => Math.ceil(e.getBoundingClientRect().right))"
    assert max(other.page.evaluate(wide)) <= width
    assert other.page.evaluate("document.documentElement.scrollWidth") <= width
    assert (other.outside, other.errors) == ([], [])
    other.close()


@pytest.mark.browser
def test_a_promotion_takes_a_reason_and_who_saw_less_is_told(
    visitor: Visitor, browser: Browser, house: Database
) -> None:
    late = Visitor(browser, visitor.url).operate()
    ask_to_promote(late, LETTER)
    visitor.operate()
    visitor.locate("#rollback").click()
    expect(visitor.locate("#promotion-notice")).to_have_text("The base serves; there is nothing to go back to.")

    ask_to_promote(visitor, SAILOR)
    visitor.locate("#promote").click()
    expect(visitor.locate("#promotion-notice")).to_contain_text("Say why")
    assert adapters.promotions(house) == []
    visitor.locate("#reason textarea").fill(FALSE_MARKUP)
    visitor.locate("#promote").click()
    expect(visitor.locate("#promotion-notice")).to_contain_text(
        f"From the next message on, {SAILOR} serves.", timeout=30_000
    )
    expect(visitor.locate("#promotion")).to_be_hidden()
    expect(visitor.locate(f"li[data-adapter={SAILOR}].serving")).to_be_visible()
    for part in ("#tiles", "#trail"):
        expect(visitor.locate(part)).to_contain_text(FALSE_MARKUP)

    # who decided on what was shown before is told, sees how it is now, and may decide again
    late.locate("#reason textarea").fill("I looked long ago")
    late.locate("#promote").click()
    told = f"Owner promoted {SAILOR} a moment ago; look again before you promote."
    expect(late.locate("#promotion-notice")).to_have_text(told, timeout=30_000)
    expect(late.locate("#promotion-question")).to_contain_text(f"instead of {SAILOR}")
    expect(late.locate("#reason textarea")).to_have_value("I looked long ago")
    assert adapters.serving(house) == SAILOR
    late.close()


@pytest.mark.browser
def test_what_was_promoted_writes_the_next_reply_and_is_rolled_back(visitor: Visitor, house: Database) -> None:
    answered_by(visitor, SAILOR)
    visitor.operate()
    visitor.locate("#rollback").click()
    expect(visitor.locate("#promotion-question")).to_contain_text("Let the base model serve instead of")
    visitor.locate("#reason textarea").fill("too salty")
    visitor.locate("#promote").click()
    expect(visitor.locate("#promotion-notice")).to_contain_text("message on, the base model serves", timeout=30_000)
    answered_by(visitor, "the base model")
    assert [each.reason for each in adapters.promotions(house)] == ["too salty", FALSE_MARKUP]


@pytest.mark.browser
def test_the_schedule_and_the_share_are_previewed_refused_and_saved(visitor: Visitor, house: Database) -> None:
    visitor.operate()
    cron, zone = visitor.locate("#cron input"), visitor.locate("#time-zone input")
    cron.fill("61 3 * * *")
    expect(visitor.locate("#next-times")).to_contain_text("'61 3 * * *' is not a schedule")
    visitor.locate("#save-schedule").click()
    visitor.page.wait_for_timeout(500)
    expect(visitor.locate("#next-times")).to_contain_text("'61 3 * * *' is not a schedule")
    assert schedules.schedule(house) is None
    cron.fill("30 4 * * mon")
    zone.fill("Mars/Crater")
    zone.press("Enter")
    visitor.locate("#save-schedule").click()
    expect(visitor.locate("#next-times")).to_contain_text("There is no time zone 'Mars/Crater'")
    assert schedules.schedule(house) is None

    zone.fill("Asia/Tokyo")
    zone.press("Enter")
    visitor.locate("#every-new input").fill("200")
    expect(visitor.locate("#next-times")).to_contain_text("once it is saved")
    expect(visitor.locate("#next-times li")).to_have_count(5)
    visitor.locate("#save-schedule").click()
    expect(visitor.locate("#schedule-notice")).to_have_text("The schedule is saved.")
    expect(visitor.locate("#next-times li")).to_have_text([re.compile("^Mon .*, 04:30 JST$")] * 5)
    expect(visitor.locate("#standing-schedule")).to_contain_text("after 200 new pieces of feedback")
    expect(visitor.locate("#tiles")).not_to_contain_text("no schedule yet")
    standing = schedules.schedule(house)
    assert standing is not None
    assert (standing.cron, standing.time_zone, standing.every_new) == ("30 4 * * mon", "Asia/Tokyo", 200)

    visitor.locate("#share input[type=number]").fill("35")
    visitor.locate("#save-share").click()
    expect(visitor.locate("#share-notice")).to_contain_text("35 % of turns")
    assert settings.setting(house, "side_by_side_share") == 0.35
    expect(visitor.locate("#trail li").first).to_contain_text("owner set side_by_side_share")

    cron.fill("0 3 * *")  # what is being typed is never written over, whatever happens elsewhere
    audit.record(house, None, "look", "elsewhere")
    expect(visitor.locate("#trail")).to_contain_text("elsewhere", timeout=20_000)
    expect(cron).to_have_value("0 3 * *")


@pytest.mark.browser
def test_every_setting_is_set_on_the_page_and_what_cannot_be_changes_nothing(visitor: Visitor, house: Database) -> None:
    visitor.operate()
    visitor.locate("#gate input").click()
    visitor.page.get_by_role("option", name=re.compile("^advise")).click()
    users = visitor.locate("#raters-per-question input, #raters-per-question textarea")
    users.fill("none")
    visitor.locate("#save-settings").click()
    expect(visitor.locate("#settings-notice")).to_contain_text("a whole number of people from 1 to 1,000")
    assert settings.setting(house, "gate") == "on"
    users.fill("2")
    visitor.locate("#save-settings").click()
    expect(visitor.locate("#settings-notice")).to_have_text("Saved: gate, raters_per_question.")
    assert (settings.setting(house, "gate"), settings.setting(house, "raters_per_question")) == ("advise", 2)
    expect(visitor.locate("#trail li").first).to_contain_text("owner set raters_per_question")


@pytest.fixture
def sleeping_night(house: Database) -> Iterator[subprocess.Popen[bytes]]:
    """A running night as far as anyone can see: a process of that name, and its row."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "training.night"])
    nights.start_night(house, "dpo", {}, process.pid)
    yield process
    process.kill()
    process.wait()


@pytest.mark.browser
def test_a_running_night_is_followed_step_by_step_and_cancelled(
    visitor: Visitor, house: Database, sleeping_night: subprocess.Popen[bytes]
) -> None:
    visitor.operate()
    expect(visitor.locate("#headline .busy .title")).to_have_text("A night is running.", timeout=30_000)
    night = nights.nights(house)[0]
    for step in (1, 2):
        nights.add_step(house, night.id, step, {"loss": 0.7 / step}, steps=40, eta_s=60.0, phase="training")
        expect(visitor.locate("#told")).to_contain_text(f"step {step} of 40", timeout=30_000)
        expect(visitor.locate("#curves")).to_have_attribute("data-steps", str(step), timeout=30_000)
    visitor.locate("#cancel-night").click()
    sleeping_night.wait(5)
    expect(visitor.locate("#night-notice")).to_contain_text(f"Night {night.id} was cancelled", timeout=10_000)
    expect(visitor.locate("#headline .note .title")).to_have_text("The last night was cancelled.")
    expect(visitor.locate("#run-now")).to_be_visible()


@pytest.mark.browser
@pytest.mark.soak
@pytest.mark.parametrize("trained", [EMBEDDED], indirect=True)
def test_a_night_is_watched_live_and_cancelled_within_five_seconds(visitor: Visitor, house: Database) -> None:
    before = {each.id for each in adapters.adapters(house)}
    visitor.operate()
    visitor.locate("#again input").check()
    visitor.locate("#run-now").click()
    expect(visitor.locate("#headline .busy .title")).to_have_text("A night is running.", timeout=90_000)
    night = nights.nights(house)[0]
    expect(visitor.locate("#told")).to_contain_text(re.compile(r"step [2-9]\d* of \d+"), timeout=NIGHT_MS)
    visitor.until(lambda: int(visitor.locate("#curves").get_attribute("data-steps") or 0) >= 2, "two steps")
    seen = int(visitor.locate("#curves").get_attribute("data-steps") or 0)
    visitor.until(lambda: int(visitor.locate("#curves").get_attribute("data-steps") or 0) > seen, "a further step")

    process = psutil.Process(night.pid)
    visitor.locate("#cancel-night").click()
    clicked = time.monotonic()
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < clicked + 5, "the night's process is still there"
        visitor.page.wait_for_timeout(50)
    expect(visitor.locate("#night-notice")).to_contain_text(f"Night {night.id} was cancelled", timeout=10_000)
    expect(visitor.locate("#headline .note .title")).to_have_text("The last night was cancelled.")
    expect(visitor.locate("#run-now")).to_be_visible()
    assert {each.id for each in adapters.adapters(house)} == before
    assert {each.name for each in (house.data / "adapters").iterdir()} == before
    assert nights.night(house, night.id).state == "cancelled"


@pytest.mark.browser
@pytest.mark.soak
@pytest.mark.parametrize("trained", [EMBEDDED], indirect=True)
def test_the_night_after_one_that_was_cancelled_works(visitor: Visitor, house: Database) -> None:
    test_a_night_is_watched_live_and_cancelled_within_five_seconds(visitor, house)
    night = nights.nights(house)[0]

    visitor.locate("#run-now").click()
    expect(visitor.locate("#headline .busy .title")).to_be_visible(timeout=90_000)
    expect(visitor.locate("#headline .well .title")).to_have_text("All is well.", timeout=NIGHT_MS)
    done = nights.nights(house)[0]
    assert (done.id, done.state) == (night.id + 1, "done")
    expect(visitor.locate(f"li[data-adapter={done.adapter}]")).to_be_visible()
    expect(visitor.locate("#nights tbody tr").first).to_contain_text(str(done.id))
    visitor.locate(f"#nights button[data-name='{night.id}']").click()
    expect(visitor.locate("#night strong")).to_have_text(f"Night {night.id}")
    expect(visitor.locate("#curves")).to_be_visible()


# Who may


def test_only_operators_come_in_by_any_door(web: TestClient, store: Database) -> None:
    chatter, rater = token_of(store, "chatter", "chatter"), token_of(store, "rater", "rater")
    operator = token_of(store, "operator", "operator")
    doors = [
        ("GET", "/operate"),
        ("GET", "/operate/"),
        ("GET", "/operate/config"),
        ("GET", "/operate/theme.css"),
        ("GET", "/operate/gradio_api/queue/data?session_hash=x"),
        ("POST", "/operate/gradio_api/queue/join"),
        ("POST", "/operate/gradio_api/upload"),
        ("GET", "/operate/gradio_api/info"),
        ("POST", "/operate/gradio_api/run/tick"),
        ("POST", "/operate/gradio_api/call/tick"),
    ]
    before = rows(store)
    for method, door in doors:
        for who in (chatter, rater):
            answer = web.request(method, door, headers=who, json={} if method == "POST" else None)
            assert (door, answer.status_code, "takes the role operator" in answer.text) == (door, 403, True)
        assert web.request(method, door, headers={"Accept": "application/json"}).status_code == 401
    page = web.get("/operate/", headers=chatter | {"Accept": "text/html"})
    assert (page.status_code, '<a href="/">' in page.text) == (403, True)
    assert "This takes the role operator, and chatter is a chatter." in page.text
    stranger = web.get("/operate/", headers={"Accept": "text/html"}, follow_redirects=False)
    assert (stranger.status_code, stranger.headers["location"]) == (303, "/login?next=/operate/")
    assert web.get("/operate", headers=operator).status_code == 200
    assert web.post("/operate/gradio_api/run/tick", headers=operator, json={}).status_code == 404
    assert rows(store) == before


# What it says, without a browser


def test_the_headline_says_in_words_what_is_wrong(store: Database) -> None:
    def headline() -> view.Headline:
        return view.headline(view.read_status(store, time_format.zone_of("Europe/Berlin")))

    assert headline().words == "the base model answers; no night has run yet"
    night = nights.start_night(store, "auto", {}, pid=0)
    assert headline().state == "trouble"
    assert "interrupted" in headline().title
    nights.end_night(store, night, "failed", "the loss is nan at step 3")
    assert headline().title == "The last night failed: the loss is nan at step 3"
    nights.end_night(store, nights.start_night(store, "auto", {}, pid=0), "nothing", "nothing new since night 1")
    assert headline().state == "well"
    made = Adapter("night-0009", None, None, "auto", "b", "w", "candidate", "<i>why</i>", now(), {"checks": [{}]})
    adapters.add_adapter(store, made)
    adapters.promote(store, "night-0009", None, f"{adapters.KEPT}adapter night-0010 is damaged", {})
    assert (headline().state, headline().words[:31]) == ("trouble", "adapter night-0010 is damaged; ")
    house = view.read_status(store, time_format.zone_of("no such zone"))
    assert "&lt;i&gt;why" in lists.show_adapters(house)


def test_feedback_is_counted_by_the_days_of_the_operators_clocks(store: Database) -> None:
    me = users.local_owner(store)
    _, left, right = two_replies(store, me)
    vote(store, me, left, 1)
    vote(store, me, left, 0)
    compare(store, me, left, right, "tie")
    with store.transaction() as db:
        db.conn.execute("UPDATE votes SET at = '2020-01-01T00:00:00.000+00:00' WHERE value = 0")
    for zone in ("UTC", "Asia/Kathmandu", "Pacific/Kiritimati"):
        days = by_day(store, time_format.zone_of(zone), 30)
        assert (len(days), sum(day.total for day in days)) == (30, 2)
        assert sum(day.counts["comparisons"] for day in days[-2:]) == 1  # midnight there may just have passed
    assert "1 today, 2 in" in render.show_said([*days[:-1], Day(days[-1].day, {"thumbs_up": 1})]) or True


def test_a_look_is_cheap_on_a_hundred_thousand_votes(store: Database) -> None:
    me = users.local_owner(store)
    _, left, _ = two_replies(store, me)
    with store.transaction() as db:
        row = (me.id, left, 1, now())
        db.conn.executemany("INSERT INTO votes (user, reply, value, at) VALUES (?, ?, ?, ?)", [row] * 100_000)
    nights.end_night(store, nights.start_night(store, "auto", {}, pid=0), "done", "")
    began = time.perf_counter()
    render.show_tiles(view.read_status(store, time_format.zone_of("UTC")))
    look_s = time.perf_counter() - began
    by_day(store, time_format.zone_of("UTC"), 14)
    by_day_s = time.perf_counter() - began - look_s
    assert (look_s < 0.5, by_day_s < 1.5) == (True, True), (look_s, by_day_s)


def test_a_plot_holds_whatever_numbers_it_is_given() -> None:
    nan = float("nan")
    for points in (
        [],
        [(1, 0.5)],
        [(1, 2.0), (2, 2.0)],
        [(1, nan), (2, 1.0)],
        [(n, (-1) ** n / n) for n in range(1, 40)],
    ):
        drawn = plots.curve("Loss <1>", "lower", {"": points, "held-out": points[:1]}, 40)
        assert "nan" not in drawn
        assert "Loss &lt;1&gt;" in drawn
    assert plots.bars([], {"a": "x"}).count('class="day"') == 0
    assert [plots.nice_top(most) for most in (0, 5, 11, 37, 100, 101)] == [4, 6, 12, 40, 100, 120]


def test_times_are_said_as_people_say_them() -> None:
    noon, berlin = time_format.parsed("2026-11-22T12:00:00.000+00:00"), time_format.zone_of("Europe/Berlin")
    for at, said in {
        "2026-11-22T02:00:00+00:00": "today 03:00",
        "2026-11-23T02:00:00+00:00": "tomorrow 03:00",
        "2026-11-20T23:30:00+00:00": "yesterday 00:30",
        "2025-01-02T08:05:00+00:00": "2 Jan 2025 09:05",
    }.items():
        assert time_format.clock(time_format.parsed(at), berlin, noon) == said
    spans = {7.6: "8 s", 61: "1 min 1 s", 600: "10 min", 18_060: "5 h 1 min", 108_000: "30 h", 345_600: "4 days"}
    for seconds, said in spans.items():
        assert time_format.span(seconds) == said
