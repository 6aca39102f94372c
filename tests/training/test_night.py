"""A night as a person runs it, over feedback given as the page gives it; killed where that is the point."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from assistant.models import adapter as on_disk
from assistant.models import base_model, chat_template
from feedback.accounts import users
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import Database
from feedback.example_types import Answer, Examples, PreferencePair
from feedback.kinds.comparison import compare
from feedback.kinds.correction import correct
from feedback.kinds.vote import DOWN, UP, vote
from feedback.messages import Message
from feedback.records import adapters, nights
from feedback.records.nights import Night
from tests.helpers.nights import run, start
from tests.helpers.processes import until
from training.algorithms.dpo_kto import PreferenceConfig, PreferenceTrainer
from training.data.tokenize import Encoder, tokenize
from training.loop.loop import train
from training.model.policy import Backbone
from training.night import tracking

SAID = (  # a message, a reply that is liked, a reply that is not
    ("Name a colour.", "Blue, like the sea.", "I cannot help with that."),
    ("What is two and two?", "Four!", "It depends."),
    ("Say hello to my cat.", "Hello, little cat!", "Cats cannot read."),
    ("Name a fruit.", "An apple.", "Fruit."),
    ("Is iron heavy?", "Yes, as heavy as can be.", "No."),
)
SMALL = ["min_steps=4", "epochs=1", "batch_size=4", "evals_per_epoch=1", "checkpoint_every=1"]


def say(data: Path, consent: bool = True) -> Database:
    """Four comparisons, one correction and two thumbs, given as the page gives them."""
    store = Database(data)
    me = users.local_owner(store)
    users.set_consent(store, me, consent)
    by = Provenance(adapter=None, base_sha256=None, template_sha256=None, sampling={})
    for number, (message, good, bad) in enumerate(SAID):
        parent = conversations.record_messages(store, me, "chat", [Message("user", message)])
        left, right = conversations.add_reply(store, parent, bad, by), conversations.add_reply(store, parent, good, by)
        if number < 4:
            compare(store, me, left, right, "right")
        else:
            correct(store, me, left, good)
        if number < 2:
            vote(store, me, right if number else left, UP if number else DOWN)
    return store


def last(store: Database) -> Night:
    return nights.nights(store, 1)[0]


def one_sentence(text: str) -> bool:
    return len(text.strip().splitlines()) == 1 and "Traceback" not in text


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A data folder whose night ran through without a break."""
    data = tmp_path_factory.mktemp("finished")
    store = say(data)
    store.close()
    done = run(data, model, settings=SMALL)
    assert done.returncode == 0, done.stderr
    return data


def test_a_night_makes_a_candidate_and_writes_down_how(finished):
    store = Database(finished)
    night, adapter = last(store), adapters.adapter(store, "night-0001")
    assert (night.state, night.adapter, night.step, night.steps) == ("done", "night-0001", 4, 4)
    assert night.counts == {"comparison": 4, "correction": 1, "thumbs_up": 1, "thumbs_down": 1, "left_out": {}}
    assert (adapter.verdict, adapter.night, adapters.serving(store)) == ("candidate", night.id, None)
    assert night.verdict == "candidate"
    assert "next look at 9 held-out conversations, of which there are" in night.reason
    steps = nights.night_steps(store, night.id)
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert {"loss", "rewards/margins", "rewards/accuracies", "kl", "tokens_per_s", "logps/chosen"} <= set(steps[0])
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)  # a fresh adapter is the base
    assert steps[-1]["rewards/margins"] > 0.01
    assert steps[-1]["kl"] > 0
    assert {each.name for each in (finished / "adapters").iterdir()} == {"night-0001"}
    card = on_disk.read_card(finished / "adapters" / "night-0001")
    assert (card.settings["batch_size"], card.metrics["steps"], card.counts) == (4, 4, night.counts)
    kept = (finished / "adapters" / "night-0001" / tracking.DATA).read_text().splitlines()
    assert [json.loads(each) for each in kept] == steps
    assert (finished / "adapters" / "night-0001" / tracking.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert not list((finished / "nights").iterdir())  # what people said is kept in the store alone
    store.close()


def test_the_adapter_loads_in_plain_peft_and_reproduces_its_proof(finished, tmp_path, model):
    from peft import PeftModel

    base = base_model.find_base(model)
    alone = tmp_path / "alone"
    shutil.copytree(finished / "adapters" / "night-0001", alone)
    (alone / "card.json").unlink()
    model = PeftModel.from_pretrained(base_model.load_model(base, torch.float32, "cpu"), str(alone)).eval()
    card = on_disk.read_card(finished / "adapters" / "night-0001")

    assert card.base_sha256 == base.sha256
    assert len(card.proof) == len(on_disk.PROOF_TEXTS)
    for proof in card.proof:
        ids = torch.tensor([proof.prompt_ids + proof.reply_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(proof.prompt_ids) - 1 : -1]
        mine = logits.log_softmax(-1).gather(-1, torch.tensor(proof.reply_ids)[:, None])[:, 0]
        assert (mine - torch.tensor(proof.logprobs)).abs().max() < 1e-3
    away = max(abs(a - b) for proof in card.proof for a, b in zip(proof.logprobs, proof.base_logprobs, strict=True))
    assert away > 0.01


def test_the_same_feedback_is_not_trained_on_twice(finished, tmp_path, model):
    data = tmp_path / "data"
    shutil.copytree(finished, data)
    done = run(data, model, settings=SMALL)
    store = Database(data)
    assert done.returncode == 0, done.stderr
    assert last(store).state == "nothing"
    assert "nothing new since night 1" in last(store).reason
    assert len(adapters.adapters(store)) == 1
    assert "nothing new since night 1" in run(data, model, "--dry-run", settings=SMALL).stdout
    assert last(store).id == 2  # a dry run leaves no row
    store.close()


def kill_at(data: Path, model: str, store: Database, steps: Sequence[int], settings: list[str]) -> None:
    """Begin the night, or go on with it, and kill it some time after each of these steps."""
    for step in steps:
        killed = start(data, model, settings=settings)
        until(lambda step=step: bool(nights.nights(store)) and last(store).step >= step, killed)
        time.sleep(0.3 * random.random())
        killed.kill()
        assert last(store).state == "running"
    assert adapters.adapters(store) == []


def require_same_weights(broken: Path, whole: Path) -> None:
    """Two data folders' first adapters are the same to the last bit."""
    broken, whole = broken / "adapters" / "night-0001", whole / "adapters" / "night-0001"
    if on_disk.read_card(broken).settings["precision"] != on_disk.read_card(whole).settings["precision"]:
        pytest.skip("bf16 and fp32 are equally fast here, so the two nights did not compute in the same one")
    assert (broken / on_disk.WEIGHTS).read_bytes() == (whole / on_disk.WEIGHTS).read_bytes()


def test_a_killed_night_goes_on_and_ends_as_if_nothing_had_been(finished, tmp_path, model):
    store = say(tmp_path)
    kill_at(tmp_path, model, store, (2,), SMALL)
    # The folder of a crash that came before the announcement is in the way, and is replaced.
    (tmp_path / "adapters" / "night-0001").mkdir(parents=True)

    done = run(tmp_path, model, settings=SMALL)

    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stdout
    assert (last(store).id, last(store).state, last(store).adapter) == (1, "done", "night-0001")
    store.close()
    require_same_weights(tmp_path, finished)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_night_killed_twenty_times_at_random_ends_as_if_nothing_had_been(tmp_path, model):
    long = ["min_steps=40", "kl_budget=50", *SMALL[1:]]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    say(whole).close()
    assert run(whole, model, settings=long).returncode == 0
    store = say(broken)
    kill_at(broken, model, store, sorted(random.sample(range(1, 35), 20)), long)
    done = run(broken, model, settings=long)
    assert done.returncode == 0, done.stderr
    assert (last(store).id, last(store).state) == (1, "done")
    store.close()
    require_same_weights(broken, whole)


def test_a_killed_night_is_abandoned_when_its_feedback_was_taken_back(tmp_path, model):
    store = say(tmp_path)
    killed = start(tmp_path, model, settings=SMALL)
    until(lambda: bool(nights.nights(store)) and last(store).phase != "examples", killed)
    killed.kill()
    users.set_consent(store, users.local_owner(store), False)

    done = run(tmp_path, model, settings=SMALL)

    assert done.returncode == 0, done.stderr
    nothing, abandoned = nights.nights(store)
    assert abandoned.state == "abandoned"
    assert "taken back" in abandoned.reason
    assert (nothing.state, nothing.reason) == ("nothing", "nothing to learn from; left out were no consent: 7")
    assert not list((tmp_path / "nights").iterdir())
    store.close()


def test_a_cancelled_night_keeps_nothing_and_a_second_one_does_not_start(tmp_path, model):
    store = say(tmp_path)
    night = start(tmp_path, model, settings=["min_steps=500"])
    until(lambda: bool(nights.nights(store)) and last(store).step >= 1, night)

    second = run(tmp_path, model, settings=SMALL)
    assert second.returncode == 2
    assert one_sentence(second.stderr)
    assert "running already" in second.stderr

    os.kill(night.pid, signal.SIGTERM)
    done = night.wait(60)
    assert done.returncode == 3, done.stderr
    assert (last(store).id, last(store).state) == (1, "cancelled")
    assert adapters.adapters(store) == []
    assert not list((tmp_path / "nights").iterdir())
    store.close()


def test_numbers_that_are_not_finite_fail_the_night_and_nothing_is_registered(tmp_path, model, monkeypatch):
    monkeypatch.setenv("NIGHTSCHOOL_PLUGINS", "tests.helpers.runaway")
    store = say(tmp_path)
    done = start(tmp_path, model, "--method", "runaway", settings=SMALL).wait()
    assert done.returncode == 1
    assert one_sentence(done.stderr)
    assert last(store).state == "failed"
    assert "nan" in last(store).reason or "inf" in last(store).reason
    assert adapters.adapters(store) == []
    assert not list((tmp_path / "nights").iterdir())
    store.close()


def test_training_stops_when_the_kl_budget_is_spent_and_says_so(tmp_path, model):
    store = say(tmp_path)
    done = run(tmp_path, model, settings=[*SMALL, "kl_budget=1e-9"])
    assert done.returncode == 0, done.stderr
    assert (last(store).state, last(store).step, last(store).steps) == ("done", 2, 4)
    assert "ended at step 2, being" in last(store).reason
    assert last(store).verdict == adapters.adapter(store, "night-0001").verdict == "refused"
    store.close()


def test_without_feedback_or_consent_a_night_does_nothing_and_says_why(tmp_path, model):
    store = Database(tmp_path / "empty")
    done = run(tmp_path / "empty", model, settings=SMALL)
    assert (done.returncode, last(store).state) == (0, "nothing")
    assert last(store).reason == "nothing to learn from; nobody has rated a reply yet"
    store.close()

    store = say(tmp_path / "unwilling", consent=False)
    done = run(tmp_path / "unwilling", model, settings=SMALL)
    assert (done.returncode, last(store).state) == (0, "nothing")
    assert last(store).reason == "nothing to learn from; left out were no consent: 7"
    assert not (tmp_path / "unwilling" / "adapters").exists()
    store.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "epocs=3"], "there is no setting 'epocs'"),
        (["--set", "epochs=many"], "epochs is a whole number, not 'many'"),
        (["--set", "beta=-1"], "beta must be at least 0, not -1.0"),
        (["--log", "trackio"], "--log trackio needs a package that is not here: pip install trackio"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(tmp_path, tiny, options, words):
    done = run(tmp_path, tiny.name, *options)
    assert done.returncode == 2
    assert one_sentence(done.stderr)
    assert words in done.stderr
    store = Database(tmp_path)
    assert nights.nights(store) == []
    store.close()


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    done = run(tmp_path, "no-such-model")
    assert (done.returncode, one_sentence(done.stderr)) == (2, True)
    assert "there is no model 'no-such-model'" in done.stderr


def test_an_inverted_preference_moves_the_margin_the_other_way(model):
    base = base_model.find_base(model)
    tokenizer = base_model.load_tokenizer(base)
    settings = PreferenceConfig(epochs=1, min_steps=4, batch_size=2)

    def margin_after(turned: bool) -> float:
        """The margin of the first two choices after a few steps on them, or on their opposites."""
        pairs = [PreferencePair((Message("user", text),), Answer(good), Answer(bad)) for text, good, bad in SAID[:2]]
        taught = [PreferencePair(each.messages, each.rejected, each.chosen) for each in pairs] if turned else pairs
        backbone = Backbone(base, base_model.fastest_dtype("cpu"), "cpu", settings.rank, settings.alpha, settings.seed)
        encoder = Encoder(
            tokenizer, chat_template.end_ids(tokenizer, backbone.causal), chat_template.template_sha256(tokenizer), 256
        )
        trainer = PreferenceTrainer(backbone, tokenize(Examples(tuple(taught)), encoder)[0], settings)
        list(train(trainer, trainer.begin()))
        with torch.no_grad():
            rows = [example.row() for example in tokenize(Examples(tuple(pairs)), encoder)[0]]
            margins = [backbone.log_probs(row) - backbone.log_probs(row, reference=True) for row in rows]
        return sum(float(each[0] - each[1]) for each in margins)

    assert margin_after(turned=False) > 0.1
    assert margin_after(turned=True) < -0.1
