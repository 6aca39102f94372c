"""A data folder that version 0.1 made, adapters included, opens, chats, promotes, rolls back and trains."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from assistant.chat.assistant import Assistant, open_assistant
from assistant.chat.chat import add_user_message, start_reply
from assistant.engine.sampling.params import Sampling
from assistant.models.adapter import read_card
from feedback.accounts import users
from feedback.database.database import Database
from feedback.kinds import tally
from feedback.records import adapters, nights
from tests.helpers.nights import run

KEPT = Path(__file__).parents[1] / "kept" / "v0_1"
BASE = str(KEPT / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    with sqlite3.connect(folder / "nightschool.db") as database:
        database.executescript((KEPT / "nightschool.sql").read_text())
    shutil.copytree(KEPT / "adapters", folder / "adapters")
    return folder


@pytest.fixture
def assistant(data: Path) -> Iterator[Assistant]:
    store = Database(data)
    opened = open_assistant(store, BASE, dtype="float32")
    yield opened
    opened.close()
    store.close()


def say(assistant: Assistant, text: str) -> tuple[str | None, str]:
    """What answers, and what it says."""
    owner = users.local_owner(assistant.store)
    message = add_user_message(assistant, owner, None, None, text)
    reply = start_reply(assistant, owner, message, Sampling(temperature=0, max_tokens=12, ignore_end=True))
    for _ in reply:
        pass
    return reply.adapter, reply.text


def test_it_chats_promotes_and_rolls_back(assistant: Assistant) -> None:
    store = assistant.store
    assert tally.counts(store) == {
        "votes": 2, "comparisons": 4, "rankings": 0, "corrections": 1, "critiques": 0, "labels": 0
    }  # fmt: skip
    assert {each.id for each in adapters.adapters(store)} == {"night-0001", "night-0002"}
    assert assistant.adapters.get("night-0002") is not None  # read and proved
    assert say(assistant, "Hello there.")[0] == "night-0002"  # what served, serves
    assert assistant.adapters.promote(None, adapters.before_serving(store), "rolled back") is not None
    assert say(assistant, "Hello there.")[0] == "night-0001"
    assistant.adapters.promote(None, None, "the base")
    assert say(assistant, "Hello there.")[0] is None
    assistant.adapters.promote(None, "night-0002", "promoted again")
    assert say(assistant, "Hello there.")[0] == "night-0002"


def test_what_it_wrote_down_is_read_by_todays_names(data: Path) -> None:
    store = Database(data)
    assert nights.night(store, 1).settings["max_length"] == 512
    step = nights.night_steps(store, 1)[0]
    assert {"loss", "kl", "rewards/margins", "rewards/accuracies", "grad_norm"} <= set(step)
    card = read_card(data / "adapters" / "night-0001")
    assert (card.settings["evals_per_epoch"], "kl" in card.metrics) == (1, True)
    store.close()


def test_it_trains(data: Path) -> None:
    done = run(data, BASE, "--gate", "off", "--again", settings=["longest=512", "epochs=1"])
    assert done.returncode == 0, done.stderr
    store = Database(data)
    assert (nights.nights(store, 1)[0].state, nights.nights(store, 1)[0].adapter) == ("done", "night-0003")
    assert adapters.serving(store) == "night-0003"  # proved, for without the gate that is all it takes
    store.close()
