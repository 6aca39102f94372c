"""The three stages as a person runs them: clicks, reward models, a policy that learns by them, its next reply."""

import json

import pytest
import torch

from assistant.chat.assistant import open_assistant
from assistant.chat.chat import add_user_message as say_in_chat
from assistant.chat.chat import start_reply
from assistant.engine.sampling.params import Sampling
from assistant.models import base_model
from feedback.accounts import users
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.records import adapters, nights
from tests.helpers.nights import run, start
from tests.helpers.processes import until
from tests.training.test_night import last, one_sentence, say
from training.algorithms.reward_model import RewardConfig
from training.model import reward_heads
from training.model.policy import Backbone
from training.night import learning, reward_night

FEW = ["ensemble_size=1", "checkpoint_every=1"]
REWARD = [*FEW, "min_steps=2", "samples=4", "sample_tokens=4"]
POLICY = [
    *FEW,
    "steps=2",
    "prompts=2",
    "replies=2",
    "max_completion_length=8",
    "truncated=keep",
    "learning_rate=1e-3",
    "kl_budget=50",
    "least_reward_accuracy=0",
    "precision=float32",  # in bfloat16 a tiny random model's engine and trainer are 0.1 nats apart on some processors
]


def steps_of(store: Database) -> list[dict[str, float]]:
    return nights.night_steps(store, last(store).id)


def test_a_reward_night_makes_reward_models_and_no_adapter(tmp_path, model):
    store = say(tmp_path)
    done = run(tmp_path, model, "--method", "reward", settings=[*FEW, "ensemble_size=2", *REWARD[2:]])
    assert done.returncode == 0, done.stderr
    night = last(store)
    assert (night.state, night.adapter, night.step, night.steps) == ("done", None, 4, 4)
    assert "2 reward models" in night.reason
    assert adapters.adapters(store) == []
    assert {"reward_loss", "reward_accuracy"} <= set(steps_of(store)[0])
    folder = nights.reward_models_of(store, night.id)
    card = json.loads((folder / "card.json").read_text())
    base = base_model.find_base(model)
    backbone = Backbone(base, getattr(torch, card["precision"]), "cpu", rank=16, alpha=32, seed=0)
    ensemble, _ = reward_heads.load(backbone, folder)  # proves that they score as they did
    assert list(ensemble.heads) == ["reward-0", "reward-1"]
    scores = reward_night.scores_of(ensemble, store, learning.make_encoder(base, backbone, RewardConfig()))
    kept = {
        each["reply"]: json.loads(each["members"]) for each in store.rows("SELECT reply, members FROM reward_scores")
    }
    assert len(scores) == 10
    for reply, of_each in scores.items():
        assert kept[reply] == pytest.approx(of_each, abs=1e-3)
        assert len(set(of_each)) == 2  # the models disagree
    assert not list((tmp_path / "nights").iterdir())
    store.close()


@pytest.mark.parametrize("method", ["ppo", "rloo", "online-dpo"])
def test_from_clicks_to_the_next_reply_by_reward_models_and_a_policy(tmp_path, method, model):
    store = say(tmp_path)
    # In bfloat16 the engine is about as far from the trainer of a tiny model as it may be.
    done = run(tmp_path, model, "--method", method, "--gate", "off", settings=[*POLICY, "precision=float32"])
    assert done.returncode == 0, done.stderr
    assert (last(store).state, last(store).adapter) == ("done", "night-0001")
    metrics = steps_of(store)
    assert {"reward_loss", "reward_accuracy"} <= set(metrics[0])
    assert {"score", "kl", "engine_gap", "sampled_tokens", "tokens_per_s"} <= set(metrics[-1])
    assert {"clip_fraction", "explained_variance", "beta"} <= set(metrics[-1]) or method != "ppo"
    assert adapters.adapter(store, "night-0001").method == method
    assert adapters.serving(store) == "night-0001"

    assistant = open_assistant(store, model)
    me = users.local_owner(store)
    reply = start_reply(assistant, me, say_in_chat(assistant, me, None, None, "Name a tree."), Sampling(max_tokens=4))
    for _ in reply:
        pass
    assistant.close()
    assert reply.recorded
    assert conversations.provenance(store, reply.id).adapter == "night-0001"
    store.close()


@pytest.mark.soak
def test_a_killed_policy_night_goes_on_with_its_reward_models(tmp_path, model):
    store = say(tmp_path)
    killed = start(tmp_path, model, "--method", "rloo", settings=[*POLICY, "steps=6"])
    until(lambda: bool(nights.nights(store)) and any("score" in each for each in steps_of(store)), killed)
    killed.kill()
    made = (nights.reward_models_of(store, 1) / "card.json").stat().st_mtime_ns

    done = run(tmp_path, model, "--method", "rloo", settings=[*POLICY, "steps=6"])

    assert done.returncode == 0, done.stderr
    assert (last(store).id, last(store).state, last(store).adapter) == (1, "done", "night-0001")
    assert (nights.reward_models_of(store, 1) / "card.json").stat().st_mtime_ns == made
    store.close()


def test_a_policy_night_without_contrast_says_what_it_learns_from(tmp_path, tiny):
    store = say(tmp_path)
    with store.transaction() as db:
        db.conn.execute("DELETE FROM comparisons")
        db.conn.execute("DELETE FROM corrections")
        db.conn.execute("DELETE FROM votes WHERE value = -1")
    done = run(tmp_path, tiny.name, "--method", "ppo", settings=POLICY)
    assert (done.returncode, last(store).state) == (0, "nothing")
    told = "the only thumb is up, and ppo learns from preferences and thumbs of both kinds"
    assert last(store).reason == f"nothing to learn from: {told}"
    store.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "rloo", "--set", "replies=1"], "replies must be at least 2"),
        (["--method", "ppo", "--set", "label_smoothing=0.1"], "there is no setting 'label_smoothing'"),
        (["--method", "reward", "--set", "ensemble_size=0"], "ensemble_size must be at least 1"),
    ],
)
def test_settings_are_those_of_the_method(tmp_path, tiny, options, words):
    done = run(tmp_path, tiny.name, *options)
    assert done.returncode == 2
    assert one_sentence(done.stderr)
    assert words in done.stderr
