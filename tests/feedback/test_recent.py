"""A large import is not read whole for a night, and the night trains on what it would if it were."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from feedback.accounts import users
from feedback.database.database import Database
from feedback.example_types import KINDS, Examples
from feedback.examples import build, filtering, recent
from feedback.formats import load
from feedback.kinds import current
from feedback.kinds.vote import UP, vote
from feedback.records import settings
from tests.conftest import two_replies
from tests.feedback.test_imports import write

NAMED = ("", "ann", "ben", "cy")


def odd_rows(chance: random.Random, count: int) -> list[dict[str, Any]]:
    """Rows that repeat, contradict and resemble each other, of every kind that teaches."""
    rows = []
    for number in range(count):
        topic = chance.randrange(count // 3)
        # Some share their first 200 characters and differ behind them.
        asked = f"question {topic} " + ("very long " * 30 + str(number % 2) if topic % 4 == 0 else "")
        texts = chance.sample(["yes", "no", "perhaps", "  ", f"of {topic}"], 3)
        every = [{"text": text, "model": "m", "id": f"{number}-{at}"} for at, text in enumerate(texts)]
        said = chance.choice([
            {"kind": "comparison", "of": [0, 1], "choice": chance.choice(["left", "right", "tie", "both_bad"])},
            {"kind": "thumb", "of": [0], "value": chance.choice([1, -1])},
            {"kind": "ranking", "of": [0, 1, 2], "ranks": [1, 2, 2], "all_wrong": chance.random() < 0.3},
            {"kind": "correction", "of": [0], "text": chance.choice(["yes", "better"])},
            {"kind": "label", "of": [1], "label": chance.choice(["demonstration", "unsafe"])},
        ])  # fmt: skip
        said |= {"rater": chance.choice(NAMED), "at": f"2026-0{chance.randrange(1, 9)}-01"}
        message = str(number if chance.random() < 0.8 or not rows else int(rows[-1]["message"]))
        if message != str(number):
            rows.append(rows[-1] | {"said": said})
        else:
            messages = [{"role": "user", "content": asked}]
            rows.append({"message": message, "messages": messages, "replies": every, "said": said})
    return rows


def straightforward(store: Database, monkeypatch: pytest.MonkeyPatch) -> Examples:
    """What is gathered when every row is read."""
    with monkeypatch.context() as patch:
        patch.setattr(recent, "MANY", 10**9)
        return build.gather(store)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("imported", [3, 5_000])
@pytest.mark.parametrize("raters", [1, 5])
def test_the_same_is_gathered_as_if_every_row_were_read(
    store: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, raters: int, imported: int
) -> None:
    settings.set_setting(store, None, "imported_prompts", imported)
    chance = random.Random(seed)
    for number in range(2):
        load.import_file(store, write(tmp_path / f"{number}.jsonl", odd_rows(chance, 150)))
    for number in range(raters):
        user = users.add_user(store, f"rater {number}", "rater", None)
        users.set_consent(store, user, True)
        _, left, _ = two_replies(store, user, f"hello {number}")
        vote(store, user, left, UP)
    monkeypatch.setattr(filtering, "MOST_PROMPTS", 7)
    monkeypatch.setattr(recent, "AT_ONCE", 4)
    whole = straightforward(store, monkeypatch)
    monkeypatch.setattr(recent, "MANY", 20)
    found = build.gather(store)
    for kind in KINDS:
        assert getattr(found, kind) == getattr(whole, kind)
    assert (found.sha256, found.people()) == (whole.sha256, whole.people())
    assert len(found) > 5
    assert bool(whole.left_out.get(filtering.OVER_CAP)) == bool(found.left_out.get(filtering.OVER_CAP))


@pytest.mark.parametrize("raters", [1, 5])
def test_little_of_a_large_import_is_read(
    store: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raters: int
) -> None:
    rows = [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(2000)]
    load.import_file(store, write(tmp_path / "a.jsonl", rows))
    settings.set_setting(store, None, "imported_prompts", filtering.MOST_PROMPTS)
    for number in range(raters):
        user = users.add_user(store, f"rater {number}", "rater", None)
        users.set_consent(store, user, True)
        _, left, _ = two_replies(store, user, f"hello {number}")
        vote(store, user, left, UP)
    monkeypatch.setattr(recent, "MANY", 1000)
    monkeypatch.setattr(recent, "AT_ONCE", 250)
    read: Counter[str] = Counter()
    texts = current.texts

    def counting(store: Database, replies: Any) -> Any:
        found = texts(store, replies)
        read["replies"] += len(found)
        return found

    monkeypatch.setattr(current, "texts", counting)
    found = build.gather(store)
    assert (len(found.pairs), len(found.thumbs)) == (filtering.MOST_PROMPTS, raters)
    assert found.pairs[-1].messages[0].content == "question 1999"
    assert found.left_out == {filtering.OVER_CAP: 1800}
    assert read["replies"] < 1500


def test_an_import_of_an_older_version_is_read_whole(
    store: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = odd_rows(random.Random(1), 150)
    load.import_file(store, write(tmp_path / "a.jsonl", rows))
    monkeypatch.setattr(filtering, "MOST_PROMPTS", 7)
    monkeypatch.setattr(recent, "MANY", 20)
    monkeypatch.setattr(recent, "AT_ONCE", 4)
    before = build.gather(store)
    with store.transaction() as db:
        db.conn.execute("UPDATE imported_rows SET beginning = NULL")
        db.conn.execute("UPDATE imports SET next_row = NULL")
    assert build.gather(store).sha256 == before.sha256
    load.import_file(store, write(tmp_path / "b.jsonl", rows[:1]))  # notes how the older rows begin
    assert build.gather(store).sha256 == before.sha256
