"""Take the screenshots of the operate page in docs/: `python -m scripts.screenshots`, a few minutes on a laptop.

A real server on the embedded model; the replies, the ratings and the night are real. The rater is scripted (of two
replies it prefers the one that says "you" more often), and the feedback of a minute is dated over two weeks.
"""

import random
import re
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from playwright.sync_api import Browser, expect

from feedback.database.database import Database
from feedback.kinds.base import spoken
from feedback.records import adapters, nights
from feedback.records.nights import RUNNING
from tests.helpers.browser import Visitor, chromium, serving

DOCS = Path(__file__).parents[1] / "docs"
WIDE, PHONE = (1280, 1300), (390, 1480)  # pixels of the page that are shown
DAYS = 13
STEPS = 5  # of the night, before its screenshot is taken
LARGEST = 250_000  # bytes
ASKED = """What is a good breakfast?|How do I clean a window?|Tell me about the moon.|Why do leaves fall?
How long should I boil an egg?|Can you recommend a hobby?|What should I pack for a hike?|How do I fall asleep faster?
What is a healthy snack?|How do plants drink?|Why is the sky blue?|What makes a good friend?|How do I save water?
Tell me about whales.|How can I learn to cook?|What is a library for?|How do I keep bread fresh?|Why do cats purr?
What should I read next?|How do I write a thank-you note?|What is a good gift for a teacher?|How does a kite fly?
How do I start running?|What grows in a small garden?|Why do we yawn?|How do I make a paper boat?|What is jazz?
How do I mend a sock?|What can I do on a rainy day?|How do bees make honey?|Why is sleep important?|What is a fable?
How do I greet a new neighbour?|What is fog?|How do I choose a melon?|Why do magnets stick?|How do I plan a picnic?
What is a good song to sing?|How do I wrap a present?|Why do we need vitamins?""".replace("\n", "|").split("|")


def main() -> int:
    """Take all screenshots."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server, chromium() as browser:
        store = Database(Path(folder))
        rate(server.url)
        age(store)
        shoot(browser, server.url, "idle")
        operator = Visitor(browser, server.url).operate()
        operator.locate("#run-now").click()
        operator.until(lambda: len(nights.nights(store)) == 1, "a night")
        wait(operator, lambda: nights.nights(store)[0].step >= STEPS or nights.nights(store)[0].state != RUNNING)
        assert nights.nights(store)[0].state == RUNNING, nights.nights(store)[0].reason
        shoot(browser, server.url, "night")
        wait(operator, lambda: nights.nights(store)[0].state != RUNNING)
        shoot(browser, server.url, "after")
        print(nights.nights(store)[0], adapters.adapters(store), sep="\n")
        store.close()
    return 0


def wait(visitor: Visitor, holds: Callable[[], bool]) -> None:
    """Wait until a condition holds, which may take long."""
    while not holds():
        visitor.page.wait_for_timeout(500)


def rate(url: str) -> None:
    """Rate real replies, and set a schedule."""
    with httpx.Client(base_url=url, timeout=600) as web:

        def post(path: str, body: dict[str, Any], method: str = "POST") -> dict[str, Any]:
            answer = web.request(method, path, json=body, headers={"Idempotency-Key": uuid4().hex})
            answer.raise_for_status()
            return dict(answer.json())

        post("/api/consent", {"given": True})
        post("/api/settings", {"side_by_side_share": 0.2}, "PUT")
        schedule = {"cron": "0 3 * * *", "time_zone": "Europe/Berlin", "every_new": 100}
        post("/api/schedule", schedule, "PUT")
        with ThreadPoolExecutor(8) as pool:
            asked = [{"messages": [{"role": "user", "content": each}], "max_tokens": 48} for each in ASKED]
            pairs = list(pool.map(lambda body: post("/api/pairs", body), asked))
        for number, pair in enumerate(pairs):
            left, right = pair["left"], pair["right"]
            choice = "left" if personal(left["text"]) > personal(right["text"]) else "right"
            better, worse = (left, right) if choice == "left" else (right, left)
            post("/api/comparisons", {"left": left["reply"], "right": right["reply"], "choice": choice})
            if number % 2:
                post("/api/votes", {"reply": better["reply"], "value": 1})
            if number % 3 == 0:
                post("/api/votes", {"reply": worse["reply"], "value": -1, "reasons": ["style"]})
            if number % 5 == 0 and "." in better["text"]:
                post("/api/corrections", {"reply": worse["reply"], "text": better["text"].split(".")[0] + "."})
            if number % 9 == 0:
                post("/api/critiques", {"reply": worse["reply"], "text": "Talk to me."})


def personal(text: str) -> int:
    """The number of times a reply addresses its reader."""
    return len(re.findall(r"\byou(?:r|rs|rself)?\b", text, re.IGNORECASE))


def age(store: Database) -> None:
    """Spread the dates of the feedback over two weeks, with more of it each day."""
    chance = random.Random(7)
    with store.transaction() as db:
        for kind in spoken():
            ids = [row["id"] for row in store.rows(f"SELECT id FROM {kind.table} ORDER BY id")]
            ages = sorted((DAYS * (1 - chance.random() ** 0.5) for _ in ids), reverse=True)
            for each, days in zip(ids, ages, strict=True):
                at = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
                db.conn.execute(f"UPDATE {kind.table} SET at = ? WHERE id = ?", (at, each))


def shoot(browser: Browser, url: str, name: str) -> None:
    """Take the page as it is now, on a screen and on a phone."""
    for (width, height), kind in ((WIDE, ""), (PHONE, "-phone")):
        visitor = Visitor(browser, url, width, height).operate()
        expect(visitor.locate("#headline .title")).to_be_visible()
        visitor.page.wait_for_timeout(700)  # until the layout has settled
        path = DOCS / f"operate-{name}{kind}.png"
        visitor.page.screenshot(path=path, animations="disabled")
        assert path.stat().st_size < LARGEST, f"{path} has {path.stat().st_size:,} bytes"
        visitor.close()


if __name__ == "__main__":
    sys.exit(main())
