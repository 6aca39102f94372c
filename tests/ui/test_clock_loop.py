"""The operator sets a time and goes home: from clicks in a browser to the next reply, with nobody's help between."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import expect

from feedback.database.database import Database
from feedback.examples.split import places
from feedback.kinds.tally import counts
from feedback.records import adapters, nights
from feedback.upkeep import schedules
from tests.feedback.test_split import QUESTIONS, pair
from tests.helpers.browser import Visitor, chromium, serving

AHOY = "Ahoy, matey! Arr, that is a fine thing to ask."
NIGHT_MS = 420_000


def questions(store: Database, part: str, count: int) -> list[str]:
    """Questions whose conversations will belong to one part."""
    where = places(store)
    of_it = [each for each in QUESTIONS if where.part_of(pair(each)) == part]
    return of_it[:count]


def correct(visitor: Visitor, question: str) -> None:
    """Ask in a new chat, and write the reply as it should have been."""
    visitor.new_chat()
    visitor.say(question)
    visitor.locate("#correct").click()
    box = visitor.locate("#corrected-text textarea")
    expect(box).not_to_have_value("")
    visitor.page.wait_for_timeout(300)
    box.fill(AHOY)
    visitor.locate("#save-correction").click()
    expect(visitor.locate("#your-correction")).to_be_visible()


def answered_by(visitor: Visitor) -> tuple[str, str]:
    """A fresh question in a new chat: the reply, and its author."""
    visitor.open()
    visitor.write_short(8)
    visitor.new_chat()
    visitor.say(QUESTIONS[-1])
    return visitor.locate("#chat [data-testid=bot]").last.inner_text(), visitor.locate("#answered-by").inner_text()


@pytest.mark.browser
@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_a_cron_due_in_a_minute_trains_judges_promotes_and_the_next_reply_is_the_new_adapters(tmp_path: Path) -> None:
    with serving(tmp_path / "data", ["--side-by-side", "0"]) as server, chromium() as browser:
        visitor = Visitor(browser, server.url, width=1400).open()
        store = Database(server.data)

        # 1. people say what they would have liked to read; some of it is kept for judging
        visitor.locate("#consent-yes").click()
        visitor.write_short(4)
        for question in questions(store, "training", 10) + questions(store, "held_out", 10):
            correct(visitor, question)
        assert counts(store)["corrections"] == 20
        before = answered_by(visitor)
        assert "base" in before[1]

        # 2. the operator sets a time that is due in a minute, and leaves
        visitor.operate()
        due = datetime.now(UTC) + timedelta(seconds=65)
        visitor.locate("#enabled input").check()
        visitor.locate("#cron input").fill(f"{due.minute} {due.hour} * * *")
        visitor.locate("#time-zone input").fill("UTC")
        visitor.page.wait_for_timeout(600)
        visitor.locate("#save-schedule").click()
        visitor.until(lambda: schedules.schedule(store) is not None, "the schedule is saved")
        assert nights.nights(store) == []

        # 3. a night starts by itself, and is over by itself
        visitor.until(lambda: bool(nights.nights(store)), "a night has begun", NIGHT_MS)
        visitor.until(lambda: nights.night(store, 1).ended_at is not None, "the night is over", NIGHT_MS)
        night = nights.night(store, 1)
        assert (night.state, night.verdict) == ("done", "promoted"), night.reason
        (occurrence,) = schedules.occurrences(store)
        assert (occurrence.cause, occurrence.outcome, occurrence.night) == ("clock", "started", 1)
        (promotion,) = adapters.promotions(store)
        assert (promotion.adapter, promotion.user) == ("night-0001", None)
        expect(visitor.locate("#tiles")).to_contain_text("night-0001", timeout=30_000)

        visitor.until(lambda: server.answers_by() == "night-0001", "the server has loaded it", 60_000)

        # 4. the next reply is the new adapter's
        after = answered_by(visitor)
        assert "night-0001" in after[1]
        assert after[0] != before[0]
        assert visitor.outside == []
        store.close()
