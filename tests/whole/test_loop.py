"""The whole loop as people live it: rate in a browser, train, promote, and the next reply is the new adapter's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from assistant.models.base_model import EMBEDDED
from feedback.database.database import Database
from feedback.kinds.tally import counts
from feedback.records import adapters, nights
from tests.helpers.browser import Server, Visitor, chromium, serving
from tests.helpers.commands import as_process

QUESTION = "Say hello in five words."


def command(*arguments: str) -> str:
    """Run a command of the program to its end; what it printed."""
    done = as_process(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def server(model: str, tmp_path: Path) -> Iterator[Server]:
    Database(tmp_path / "data").close()  # with the tests' secret: both conversations teach
    with serving(tmp_path / "data", ["--model", model, "--side-by-side", "0", "--dtype", "float32"]) as started:
        yield started


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def last_reply(visitor: Visitor) -> tuple[str, str]:
    """The text of the newest reply on the page, and who the page says wrote it."""
    text = visitor.locate("#chat [data-testid=bot]").last.inner_text()
    return text, visitor.locate("#answered-by").inner_text()


def new_chat(visitor: Visitor) -> None:
    """An empty chat, ready to be written in."""
    visitor.locate("#new-chat").click()
    expect(visitor.locate("#chat [data-testid=bot]")).to_have_count(0)
    visitor.page.wait_for_timeout(500)  # a person's eyes and hands take longer


def ask_anew(visitor: Visitor) -> tuple[str, str]:
    """The question in a new chat; the reply and its author."""
    new_chat(visitor)
    visitor.say(QUESTION)
    return last_reply(visitor)


@pytest.mark.browser
@pytest.mark.long
def test_a_thumb_and_a_choice_go_through_a_night_to_the_next_reply_and_back(
    server: Server, browser: Browser, model: str
) -> None:
    data, rate = str(server.data), 1e-4 if model == EMBEDDED else 3e-3
    visitor = Visitor(browser, server.url, width=1400).open()
    visitor.locate("#consent-yes").click()

    # 1. a person rates: one thumbs-down, one choice between two replies
    visitor.write_short(24)
    visitor.locate("#settings > button").click()
    visitor.locate("#greedy input").check()
    visitor.say(QUESTION)
    before = last_reply(visitor)
    assert "base" in before[1]
    visitor.thumb("down")
    expect(visitor.locate("#why")).to_be_visible()
    new_chat(visitor)
    visitor.locate("#box textarea").fill("Tell me one thing about bread.")
    visitor.locate("#two-replies").click()
    visitor.locate("#left-is-better").click(timeout=90_000)
    expect(visitor.locate("#pair")).to_be_hidden()

    # 2. a night trains on exactly that
    command("night", "--data", data, "--model", model, "--set", f"learning_rate={rate}", "--set", "kl_budget=50")
    store = Database(server.data)
    (night,) = nights.nights(store)
    said = {kind: count for kind, count in counts(store).items() if count}
    assert said == {"votes": 1, "comparisons": 1}
    assert (night.state, night.counts["comparison"], night.counts["thumbs_down"]) == ("done", 1, 1)
    steps = nights.night_steps(store, night.id)
    assert {"loss", "rewards/margins", "rewards/accuracies", "kl"} <= set(steps[-1])
    assert ask_anew(visitor) == before  # a candidate does not answer

    # 3. an operator promotes it, and it answers the next message
    printed = command("promote", str(night.adapter), "--data", data, "--model", model)
    assert "proved" in printed
    visitor.until(lambda: server.answers_by() == night.adapter, "the server has loaded it", 30_000)
    after = ask_anew(visitor)
    assert str(night.adapter) in after[1]
    assert after[0] != before[0]

    # 4. one command takes it back, to the letter
    command("rollback", "--data", data, "--model", model)
    assert ask_anew(visitor) == before
    assert adapters.serving(store) is None
    assert visitor.outside == []
    store.close()
