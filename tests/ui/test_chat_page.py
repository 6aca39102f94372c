"""The chat page, as a person uses it: a real Chromium against a real server process.

One server and one data folder serve the whole module; every test begins a chat of its own.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.kinds.comparison import standing_choice
from feedback.kinds.correction import correct, standing_correction
from feedback.kinds.vote import Thumb, standing_vote, vote
from feedback.records import settings
from tests.conftest import BY_BASE
from tests.helpers.browser import REPLY_MS, Server, Visitor, chromium, serving
from ui.shared.markdown import as_typed

pytestmark = [pytest.mark.browser, pytest.mark.long]
QUESTION = "Name one colour."


@pytest.fixture(scope="module")
def data(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one model's own."""
    return tmp_path_factory.mktemp("chat") / "data"


@pytest.fixture(scope="module")
def said(data: Path) -> Iterator[Database]:
    """The server's own store, as another process sees it. No side by side unless a test asks."""
    store = Database(data)
    settings.set_setting(store, None, "side_by_side_share", 0)
    yield store
    store.close()


@pytest.fixture(scope="module")
def me(said: Database) -> User:
    return users.local_owner(said)


@pytest.fixture(scope="module")
def server(data: Path, said: Database, model: str) -> Iterator[Server]:
    with serving(data, ["--model", model]) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def visitor(browser: Browser, server: Server) -> Iterator[Visitor]:
    """A new window in a new chat. Whatever a test does, nobody else is asked for anything."""
    opened = Visitor(browser, server.url).open()
    opened.write_short()
    opened.new_chat()
    yield opened
    opened.close()
    assert opened.outside == []
    assert opened.errors == []


def last_leaf(store: Database, user: User) -> conversations.Node:
    """Where the newest chat ends."""
    return conversations.node(store, conversations.conversations(store, user)[0]["leaf"])


def written(store: Database, user: User, *texts: str) -> list[str]:
    """A chat written straight into the store, person first; the ids of its messages."""
    conversation = conversations.start_conversation(store, user)
    ids: list[str] = []
    for place, text in enumerate(texts):
        parent = ids[-1] if ids else None
        if place % 2 == 0:
            ids.append(conversations.add_message(store, conversation, parent, "user", text))
        else:
            ids.append(conversations.add_reply(store, parent or "", text, BY_BASE))
    return ids


def test_consent_is_asked_for_once_kept_and_can_be_withdrawn(
    browser: Browser, server: Server, said: Database, me: User
):
    visitor = Visitor(browser, server.url).open()
    expect(visitor.locate("#consent")).to_contain_text("stay on this server")

    visitor.locate("#consent-yes").click()
    expect(visitor.locate("#consent")).to_be_hidden()
    expect(visitor.locate("#consent-switch input")).to_be_checked()
    assert users.consent(said, me) is True

    visitor.page.wait_for_timeout(300)  # the page applies an update a moment after it has come
    visitor.locate("#consent-switch input").click()
    visitor.until(lambda: users.consent(said, me) is False, "consent is withdrawn")
    visitor.open()
    expect(visitor.locate("#consent")).to_be_hidden()
    expect(visitor.locate("#consent-switch input")).not_to_be_checked()
    visitor.close()


def test_a_chat_streams_and_is_kept(visitor: Visitor, said: Database, me: User):
    visitor.write_short(tokens=1000)  # long enough to be seen being written, however busy the machine is
    visitor.locate("#box textarea").fill("Write a long story about a lighthouse.")
    visitor.page.keyboard.press("Enter")
    reply = visitor.locate("#chat [data-testid=bot]").last
    expect(reply).to_contain_text(re.compile(r"\w"), timeout=REPLY_MS)
    early = reply.inner_text()
    expect(visitor.locate("#stop")).to_be_visible()
    visitor.wait_answered()

    assert len(reply.inner_text()) > len(early)
    expect(visitor.locate("#box textarea")).to_have_value("")
    expect(visitor.locate("#answered-by")).to_have_text("answered by the base model")
    expect(visitor.locate("#chats label.selected")).to_have_text("Write a long story about a lighthouse.")
    assert last_leaf(said, me).role == "assistant"


def test_a_reply_that_is_over_before_the_page_asks_for_it_is_shown(visitor: Visitor):
    def late(route: Route) -> None:
        visitor.page.wait_for_timeout(1500)
        route.continue_()

    visitor.page.route("**/queue/join*", late)
    visitor.say(QUESTION)
    expect(visitor.locate("#chat [data-testid=bot]").last).to_contain_text(re.compile(r"\w"), timeout=5_000)
    expect(visitor.locate("#answered-by")).to_have_text("answered by the base model")
    expect(visitor.locate("#stop")).to_be_hidden()


def test_a_thumb_down_with_reason_and_words_is_changed_and_taken_back(visitor: Visitor, said: Database, me: User):
    visitor.say(QUESTION)
    reply = last_leaf(said, me).id

    visitor.thumb("down")
    visitor.page.get_by_label("Not helpful").check()
    visitor.locate("#why-words textarea").fill("too <b>vague</b>")
    visitor.locate("#save-why").click()
    expect(visitor.locate("#your-rating")).to_have_text("you: bad (Not helpful, “too <b>vague</b>”)")
    expect(visitor.locate("#why")).to_be_hidden()
    assert standing_vote(said, me, reply) == Thumb(reply, -1, ("unhelpful",), "too <b>vague</b>")

    visitor.thumb("up")
    expect(visitor.locate("#your-rating")).to_have_text("you: good")
    expect(visitor.locate("#why-question")).to_contain_text("What was good?")
    assert standing_vote(said, me, reply) == Thumb(reply, 1, (), "")

    visitor.thumb("up")
    expect(visitor.locate("#your-rating")).to_have_count(0)
    assert standing_vote(said, me, reply) is None


def test_a_correction_is_kept_shown_and_taken_back(visitor: Visitor, said: Database, me: User):
    visitor.say(QUESTION)
    reply = last_leaf(said, me)

    visitor.locate("#correct").click()
    said_words = r"\s+".join(map(re.escape, reply.content.split()))  # a text box has its own ends of lines
    expect(visitor.locate("#corrected-text textarea")).to_have_value(re.compile(rf"^\s*{said_words}\s*$"))
    visitor.locate("#save-correction").click()
    expect(visitor.locate("#notice")).to_contain_text("change it into what it should have been")
    visitor.locate("#corrected-text textarea").fill("Blue is a colour.")
    visitor.locate("#save-correction").click()
    visitor.locate("#chat").get_by_text("Your correction").click()
    expect(visitor.locate("#chat")).to_contain_text("Blue is a colour.")
    expect(visitor.locate("#notice")).to_have_text("")
    assert standing_correction(said, me, reply.id) == "Blue is a colour."

    visitor.locate("#correct").click()
    visitor.locate("#take-correction-back").click()
    expect(visitor.locate("#chat").get_by_text("Your correction")).to_have_count(0)
    assert standing_correction(said, me, reply.id) is None


def test_the_chosen_side_goes_on_and_neither_tells_who_wrote_it(visitor: Visitor, said: Database, me: User):
    visitor.say(QUESTION, two=True)
    expect(visitor.locate("#right-is-better")).to_be_visible()
    expect(visitor.locate("#answered-by")).to_be_hidden()
    pair = conversations.pair_under(said, last_leaf(said, me).parent or "")
    assert pair is not None

    visitor.locate("#right-is-better").click()
    expect(visitor.locate("#pair")).to_be_hidden()
    expect(visitor.locate("#answered-by")).to_be_visible()
    assert standing_choice(said, me, pair.left, pair.right) == "right"
    assert last_leaf(said, me).id == pair.right

    visitor.locate("#choose-again").click()
    visitor.locate("#tie").click()
    expect(visitor.locate("#pair")).to_be_hidden()
    assert standing_choice(said, me, pair.left, pair.right) == "tie"
    assert last_leaf(said, me).id == pair.left


def test_on_the_operators_share_of_turns_two_are_shown_and_typing_on_chooses_none(
    visitor: Visitor, said: Database, me: User
):
    settings.set_setting(said, None, "side_by_side_share", 1)
    visitor.say(QUESTION)
    settings.set_setting(said, None, "side_by_side_share", 0)
    expect(visitor.locate("#both-bad")).to_be_visible()
    pair = conversations.pair_under(said, last_leaf(said, me).parent or "")
    assert pair is not None

    visitor.open()  # left unanswered, and found again
    expect(visitor.locate("#both-bad")).to_be_visible()
    visitor.write_short()
    visitor.say("And another?")

    expect(visitor.locate("#pair")).to_be_hidden()
    assert standing_choice(said, me, pair.left, pair.right) is None
    assert conversations.path(said, last_leaf(said, me).id)[1].id == pair.left


def test_edit_and_retry_are_branches(visitor: Visitor, said: Database, me: User):
    visitor.say(QUESTION)
    first = last_leaf(said, me)

    visitor.page.get_by_role("button", name="Retry").click()
    visitor.until(lambda: len(conversations.children(said, first.parent or "")) == 2, "a second reply")
    visitor.wait_answered()
    visitor.locate("#older-version").click()
    expect(visitor.locate("#newer-version")).to_be_visible()
    assert last_leaf(said, me).id == first.id

    before = {node.id for node in conversations.children(said, first.parent or "")}
    visitor.page.get_by_role("button", name="Edit").first.click()
    visitor.locate("#chat textarea").fill("Name one fruit.")
    visitor.page.get_by_role("button", name="Submit").click()
    visitor.until(lambda: last_leaf(said, me).id not in before, "a new branch")
    visitor.wait_answered("Name one fruit.")
    new = last_leaf(said, me)
    assert conversations.path(said, new.id)[0].content == "Name one fruit."
    assert conversations.node(said, first.id).content == first.content
    assert new.conversation == first.conversation


def test_stop_keeps_what_was_written(visitor: Visitor, said: Database, me: User):
    visitor.write_short(tokens=1500)
    visitor.locate("#box textarea").fill("Write a long story about a lighthouse.")
    visitor.locate("#send").click()
    expect(visitor.locate("#chat [data-testid=bot]").last).to_contain_text(re.compile(r"\w{2}"), timeout=REPLY_MS)
    visitor.locate("#stop").click()
    visitor.wait_answered()

    leaf = last_leaf(said, me)
    assert conversations.provenance(said, leaf.id).finish == "cancelled"
    expect(visitor.locate("#chat [data-testid=bot]").last).to_contain_text(leaf.content.split()[0])


def test_a_message_that_cannot_be_said_changes_nothing_and_stays_in_the_box(visitor: Visitor, said: Database, me: User):
    before = said.row("SELECT count(*) AS n FROM messages")

    box = visitor.locate("#box textarea")

    visitor.locate("#send").click()
    expect(visitor.locate("#notice")).to_have_text("An empty message says nothing; write something.")
    box.fill("x" * 100_001)
    box.press("Enter")
    # The whole text: while the notice still shows its progress, another Enter is not taken.
    expect(visitor.locate("#notice")).to_have_text("A text has at most 100,000 characters, this one has 100,001.")
    assert len(box.input_value()) == 100_001
    box.fill("y " * 50_000)
    box.press("Enter")
    expect(visitor.locate("#notice")).to_contain_text("token", timeout=30_000)

    assert said.row("SELECT count(*) AS n FROM messages") == before


def test_text_is_never_markup(visitor: Visitor, said: Database, me: User):
    attack = (
        '<img src=x onerror="window.hit=1"><script>window.hit=1</script><b>bold?</b> ![i](https://example.com/i.png)'
    )
    ids = written(
        said, me, attack, attack + "\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = 1\n```\n\n\\(x^2\\) $y$"
    )
    vote(said, me, ids[1], -1, ["other"], attack)
    correct(said, me, ids[1], attack)

    visitor.open()
    visitor.locate("#chat").get_by_text("Your correction").click()
    chat = visitor.locate("#chat")
    expect(chat.locator("[data-testid=user]").last).to_contain_text("bold?")
    assert "<b>bold?</b>" in as_typed(chat.locator("[data-testid=user]").last.inner_text())
    expect(chat.locator("table td").first).to_have_text("1")
    expect(chat.locator("pre code")).to_contain_text("x = 1")
    expect(chat.locator(".katex")).to_have_count(2)
    visitor.page.wait_for_timeout(500)

    assert visitor.page.evaluate("window.hit") is None
    assert chat.locator("[data-testid] :is(img, script, b)").count() == 0
    expect(visitor.locate("#your-rating")).to_contain_text("<script>")


def test_chats_are_listed_opened_and_taken_off_the_list(visitor: Visitor, said: Database, me: User):
    written(said, me, "The older chat", "an older reply")
    written(said, me, "The newer chat", "a newer reply")

    visitor.open()
    expect(visitor.locate("#chats label.selected")).to_have_text("The newer chat")
    visitor.locate("#chats label").filter(has_text="The older chat").click()
    expect(visitor.locate("#chat")).to_contain_text("an older reply")
    visitor.page.wait_for_timeout(500)  # a person takes longer
    visitor.locate("#hide-chat").click()
    expect(visitor.locate("#chat")).to_contain_text("a newer reply")
    expect(visitor.locate("#chats label").filter(has_text="The older chat")).to_have_count(0)
    assert said.row("SELECT 1 FROM messages WHERE content = 'an older reply'")


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, server: Server, said: Database, me: User):
    written(said, me, "Show me a table", "| " + " | ".join("column" for _ in range(12)) + " |\n" + "|---" * 12 + "|\n")
    phone = Visitor(browser, server.url, width=390, height=844).open()
    phone.write_short()
    widths = [phone.page.evaluate("document.documentElement.scrollWidth")]

    phone.say(QUESTION, two=True)
    widths.append(phone.page.evaluate("document.documentElement.scrollWidth"))
    left, right = phone.locate("#left-reply").bounding_box(), phone.locate("#right-reply").bounding_box()
    assert left is not None
    assert right is not None
    assert right["y"] >= left["y"] + left["height"]
    phone.locate("#both-bad").click()
    expect(phone.locate("#answered-by")).to_be_visible()
    phone.new_chat()
    expect(phone.locate("#sidebar")).not_to_have_class(re.compile(r"\bopen\b"))

    assert widths == [390, 390]
    assert phone.outside == []
    phone.close()


@pytest.fixture
def crashed(visitor: Visitor, server: Server, said: Database, me: User) -> conversations.Node:
    """A reply rated and corrected, before the server was killed and started again."""
    visitor.say(QUESTION)
    reply = last_leaf(said, me)
    visitor.thumb("down")
    visitor.page.get_by_label("Not true").check()
    visitor.locate("#save-why").click()
    expect(visitor.locate("#your-rating")).to_contain_text("Not true")
    visitor.locate("#correct").click()
    visitor.locate("#corrected-text textarea").fill("Red.")
    visitor.locate("#save-correction").click()
    expect(visitor.locate("#your-correction")).to_be_visible()

    server.kill()
    server.start()
    return reply


@pytest.mark.soak
def test_after_a_crash_everything_is_there_and_shown(visitor: Visitor, crashed: conversations.Node):
    visitor.open()
    expect(visitor.locate("#chat [data-testid=bot]").first).to_contain_text(crashed.content.split()[0])
    expect(visitor.page.get_by_role("button", name="Disliked")).to_be_visible()
    expect(visitor.locate("#your-rating")).to_have_text("you: bad (Not true)")
    expect(visitor.locate("#your-correction")).to_be_visible()
