"""What the reference says is computed once: in a night, and over nights."""

import sqlite3

import pytest
import sqlite_utils
import torch

from feedback.database.database import Database
from feedback.database.migrations import steps
from feedback.records import reference_logprobs as kept
from tests.feedback.test_split import QUESTIONS
from tests.training.test_early_stopping import examples_of
from training.algorithms.dpo_kto import PreferenceConfig, PreferenceTrainer
from training.loop.loop import train
from training.model.packing import Row
from training.model.policy import Backbone
from training.model.reference import References

ROWS = [Row([1, 5, 6], [[7, 8], [9]]), Row([1, 5], [[7, 8, 4]])]


@pytest.fixture(scope="module")
def backbone(tiny) -> Backbone:
    return Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)


def test_what_a_night_computed_the_next_takes_from_the_ledger(store, backbone):
    first = References(backbone, "template")
    computed = first.each_token_of(ROWS)
    first.keep(store)

    second = References(backbone, "template")
    second.recall(store, ROWS)

    assert (first.computed, second.computed) == (3, 0)
    for ours, theirs in zip(second.each_token_of(ROWS), computed, strict=True):
        assert torch.equal(ours, theirs)
    assert second.computed == 0
    assert torch.equal(second.of(ROWS[0]), ROWS[0].summed(computed[0]))


def test_another_template_or_number_format_or_prompt_is_another_number(store, backbone):
    first = References(backbone, "template")
    first.each_token_of(ROWS)
    first.keep(store)
    other = References(backbone, "another template")
    other.recall(store, ROWS)
    other.each_token_of(ROWS)
    assert other.computed == 3
    same = References(backbone, "template")
    moved = Row([1, 5, 6, 7], [[8]])  # the same token ids, the reply beginning later
    same.recall(store, [moved])
    same.each_token_of([moved])
    assert same.computed == 1
    assert kept.known(store, first.reference.replace("float32", "bfloat16"), "template", ["x"]) == {}


def test_a_second_training_on_the_same_lessons_computes_no_reference_again(store, backbone, monkeypatch):
    examples = examples_of(backbone, QUESTIONS[:6])
    config = PreferenceConfig(epochs=1, min_steps=1, batch_size=4)
    first = References(backbone, "template")
    trainer = PreferenceTrainer(backbone, examples, config, examples[:2], first)
    list(train(trainer, trainer.begin()))
    first.keep(store)
    second = References(backbone, "template")
    second.recall(store, [example.row() for example in examples])

    trainer = PreferenceTrainer(backbone, examples, config, examples[:2], second)
    list(train(trainer, trainer.begin()))

    assert first.computed == 12
    assert second.computed == 0


def test_a_ledger_of_before_gets_the_table_and_keeps_what_it_has(tmp_path):
    path = tmp_path / "nightschool.db"
    old = sqlite_utils.Database(path)
    steps.apply(old, stop_before="m0004_reference_logprobs")
    old.conn.execute("INSERT INTO users (name, role, created_at) VALUES ('ada', 'chatter', 'now')")
    old.conn.commit()
    with pytest.raises(sqlite3.OperationalError):
        old.conn.execute("SELECT * FROM reference_logprobs")
    old.close()
    store = Database(tmp_path)
    kept.keep(store, "base float32", "template", {"reply": b"1234"})
    assert kept.known(store, "base float32", "template", ["reply", "other"]) == {"reply": b"1234"}
    assert store.row("SELECT name FROM users WHERE name = 'ada'")
    store.close()
