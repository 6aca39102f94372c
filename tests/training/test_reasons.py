"""Why a night learned nothing, or less than one might think, in words that are true."""

import math
from datetime import UTC
from pathlib import Path

import pytest

from assistant.models import adapter as on_disk
from feedback.accounts import users
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import Database
from feedback.kinds.comparison import compare
from feedback.kinds.ranking import rank
from feedback.kinds.vote import DOWN, UP, vote
from feedback.messages import Message
from feedback.records import adapters, nights
from tests.conftest import PLACES
from tests.feedback.test_split import QUESTIONS, pair
from tests.helpers.commands import nightschool
from tests.helpers.nights import run, start
from tests.helpers.processes import until
from tests.training.test_night import last
from tests.training.test_policy_night import REWARD
from ui.operate import render
from ui.operate.view import read_status

BY_NOBODY = Provenance(adapter=None, base_sha256=None, template_sha256=None, sampling={})
SMALL = ["min_steps=2", "epochs=1", "batch_size=8", "evals_per_epoch=1", "kl_budget=50"]
GOOD, BAD = "It is number {}.", "No, not {} at all."


def question_in(part: str) -> str:
    """A question whose feedback is in that part of the split."""
    return next(each for each in QUESTIONS if PLACES.part_of(pair(each)) == part)


def comparisons(data: Path, question: str, choices: list[str]) -> Database:
    """That many comparisons of different replies to one question."""
    store = Database(data)
    me = users.local_owner(store)
    users.set_consent(store, me, True)
    for number, choice in enumerate(choices):
        parent = conversations.record_messages(store, me, "chat", [Message("user", question)])
        both = [conversations.add_reply(store, parent, text.format(number), BY_NOBODY) for text in (GOOD, BAD)]
        compare(store, me, *both, choice)
    return store


def thumbs(data: Path, values: list[int]) -> Database:
    """That many thumbs on replies to different questions."""
    store = Database(data)
    me = users.local_owner(store)
    users.set_consent(store, me, True)
    for number, value in enumerate(values):
        parent = conversations.record_messages(store, me, "chat", [Message("user", QUESTIONS[number])])
        vote(store, me, conversations.add_reply(store, parent, GOOD.format(number), BY_NOBODY), value)
    return store


# Where all that was said is in one part of the split


@pytest.mark.parametrize("count", [1, 40])
def test_what_all_fell_to_early_stopping_is_trained_on(tmp_path, tiny, count) -> None:
    store = comparisons(tmp_path, question_in("stopping"), ["left"] * count)
    done = run(tmp_path, tiny.name, settings=SMALL)
    assert done.returncode == 0, done.stderr
    assert (last(store).state, last(store).adapter) == ("done", "night-0001")
    assert f"trained on {count} comparison{'s' if count > 1 else ''}" in last(store).reason
    assert "validation_gain" not in nights.night_steps(store, 1)[-1]  # nothing is left to stop by
    store.close()


def test_early_stopping_never_has_more_than_the_training(tmp_path, tiny) -> None:
    store = comparisons(tmp_path, question_in("stopping"), ["left"] * 12)
    comparisons(tmp_path, question_in("training"), ["left"]).close()
    run(tmp_path, tiny.name, "--gate", "off", settings=SMALL)
    assert "trained on 13 comparisons" in last(store).reason
    store.close()


def test_reward_models_learn_from_what_fell_to_early_stopping(tmp_path, tiny) -> None:
    store = comparisons(tmp_path, question_in("stopping"), ["left"])
    done = run(tmp_path, tiny.name, "--method", "reward", settings=["ensemble_size=1", *REWARD[2:]])
    assert done.returncode == 0, done.stderr
    assert last(store).reason == "1 reward models: no pair was held out to judge them by"
    store.close()


@pytest.mark.parametrize("method", ["auto", "dpo", "reward", "rloo"])
def test_what_is_kept_for_judging_is_never_trained_on(tmp_path, tiny, method) -> None:
    store = comparisons(tmp_path, question_in("held_out"), ["left"] * 3)
    done = run(tmp_path, tiny.name, "--method", method)
    assert (done.returncode, last(store).state) == (0, "nothing")
    assert last(store).reason == "nothing to learn from yet; all feedback so far (3 comparisons) is kept for judging"
    assert adapters.adapters(store) == []
    store.close()


def test_what_cannot_do_without_pairs_says_where_they_are(tmp_path, tiny) -> None:
    store = comparisons(tmp_path, question_in("held_out"), ["left"])
    comparisons(tmp_path, question_in("training"), ["tie"]).close()
    done = run(tmp_path, tiny.name, "--method", "reward", "--dry-run")
    assert "all that reward can learn from (1 comparison) is kept for judging" in done.stdout
    store.close()


# Where nothing says what is better


@pytest.mark.parametrize(
    ("choices", "method", "words"),
    [
        (["tie"] * 4, "auto", "all 4 comparisons are ties, and auto learns from preferences and thumbs"),
        (["tie"] * 4, "dpo", "all 4 comparisons are ties, and dpo learns from preferences"),
        (["tie"] * 4, "kto", "all 4 comparisons are ties, and kto learns from thumbs"),
        (
            ["tie"] * 4,
            "reward",
            "all 4 comparisons are ties, and reward learns from preferences and thumbs of both kinds",
        ),
        (["tie"] * 4, "ppo", "all 4 comparisons are ties, and ppo learns from preferences and thumbs of both kinds"),
        (["both_bad"] * 3, "dpo", "all 3 comparisons are “both bad”, and dpo learns from preferences"),
        (["tie"], "dpo", "the one comparison is a tie, and dpo learns from preferences"),
        (
            ["tie", "both_bad", "tie", "cannot_tell"],
            "dpo",
            "none of 4 comparisons prefers a reply (2 ties, 1 “both bad”, 1 “can't tell”), and dpo learns from",
        ),
    ],
)
def test_comparisons_without_a_preference_are_named(tmp_path, tiny, choices, method, words) -> None:
    comparisons(tmp_path, question_in("training"), choices).close()
    assert f"nothing to learn from: {words}" in run(tmp_path, tiny.name, "--method", method, "--dry-run").stdout


def test_feedback_of_another_kind_is_named(tmp_path, tiny) -> None:
    thumbs(tmp_path, [UP, DOWN, UP]).close()
    done = run(tmp_path, tiny.name, "--method", "dpo", "--dry-run")
    assert "nothing to learn from: dpo learns from preferences; left out were not used by dpo: 3" in done.stdout
    done = run(tmp_path, tiny.name, "--method", "sft", "--dry-run")
    assert "nothing to learn from: sft learns from demonstrations; left out were not used by sft: 3" in done.stdout


@pytest.mark.parametrize("method", ["reward", "rloo", "ppo"])
@pytest.mark.parametrize(("values", "words"), [([UP] * 3, "all 3 thumbs are up"), ([DOWN], "the only thumb is down")])
def test_thumbs_of_one_kind_alone_teach_no_reward_model(tmp_path, tiny, method, values, words) -> None:
    thumbs(tmp_path, values).close()
    done = run(tmp_path, tiny.name, "--method", method, "--dry-run")
    assert (
        f"nothing to learn from: {words}, and {method} learns from preferences and thumbs of both kinds" in done.stdout
    )


def test_thumbs_of_both_kinds_alone_teach_reward_models(tmp_path, tiny) -> None:
    store = thumbs(tmp_path, [UP, DOWN] * 4)
    done = run(tmp_path, tiny.name, "--method", "reward", settings=["ensemble_size=1", *REWARD[2:]])
    assert done.returncode == 0, done.stderr
    assert last(store).reason == "1 reward models: no pair was held out to judge them by"
    assert nights.night_steps(store, 1)[-1]["reward_loss"] > 0
    store.close()


def test_thumbs_of_one_kind_beside_what_is_kept_for_judging_are_named(tmp_path, tiny) -> None:
    store = Database(tmp_path)
    me = users.local_owner(store)
    users.set_consent(store, me, True)
    for part, value in (("training", UP), ("held_out", DOWN)):
        parent = conversations.record_messages(store, me, "chat", [Message("user", question_in(part))])
        vote(store, me, conversations.add_reply(store, parent, GOOD.format(part), BY_NOBODY), value)
    store.close()
    done = run(tmp_path, tiny.name, "--method", "reward", "--dry-run")
    told = (
        "beside what is kept for judging, the only thumb is up, and reward learns from preferences and thumbs of both"
    )
    assert f"nothing to learn from yet: {told}" in done.stdout


def test_only_what_is_too_long_is_called_so(tmp_path, tiny) -> None:
    store = Database(tmp_path)
    me = users.local_owner(store)
    users.set_consent(store, me, True)
    parent = conversations.record_messages(store, me, "chat", [Message("user", question_in("training"))])
    left, right = (conversations.add_reply(store, parent, f"{each} word " * 60, BY_NOBODY) for each in ("one", "two"))
    compare(store, me, left, right, "left")
    run(tmp_path, tiny.name, settings=[*SMALL, "max_length=64"])
    assert last(store).state == "nothing"
    assert last(store).reason == "no example fits into 64 tokens (1 comparison (left out: too long: 1))"
    store.close()


# Where there is no contrast


@pytest.mark.parametrize(("value", "kind", "rate"), [(UP, "up", "1e-2"), (DOWN, "down", "1e-2"), (UP, "up", "1")])
def test_thumbs_of_one_kind_alone_are_said_to_be_so_and_move_little(tmp_path, tiny, value, kind, rate) -> None:
    store = thumbs(tmp_path, [value] * 12)
    strong = ["epochs=6", "batch_size=4", "evals_per_epoch=3", f"learning_rate={rate}", "beta=0.1"]
    done = run(tmp_path, tiny.name, "--gate", "off", settings=strong)
    assert done.returncode == 0, done.stderr
    told = f"thumbs are {kind} and nothing says what is"
    assert told in done.stdout
    assert told in last(store).reason
    assert "stays within 0.05 nats per token of the base" in last(store).reason
    assert told in adapters.adapter(store, "night-0001").reason
    assert on_disk.read_card(tmp_path / "adapters" / "night-0001").metrics["kl"] <= 0.05
    assert nights.night_steps(store, 1)[-1]["kl"] > 0
    store.close()


def test_an_operator_sees_the_warning_while_the_night_runs(tmp_path, tiny) -> None:
    store = thumbs(tmp_path, [UP] * 4)
    night = start(tmp_path, tiny.name, settings=["min_steps=5000", "one_sided_kl_budget=900", "patience=5000"])
    until(lambda: bool(nights.nights(store)) and last(store).step >= 1, night)
    try:
        running = last(store)
        assert "thumbs are up" in nightschool("status", "--data", str(tmp_path)).stdout
        assert "thumbs are up" in render.show_night(read_status(store, UTC), running, [])
    finally:
        night.kill()
    store.close()


def test_who_wants_one_kind_of_thumbs_to_move_more_may_say_so(tmp_path, tiny) -> None:
    store = thumbs(tmp_path, [UP] * 4)
    run(tmp_path, tiny.name, "--gate", "off", settings=[*SMALL, "one_sided_kl_budget=2"])
    assert "stays within 2 nats per token of the base" in last(store).reason
    store.close()


@pytest.mark.parametrize("others", [[DOWN], []])
def test_with_contrast_nothing_is_said(tmp_path, tiny, others) -> None:
    store = thumbs(tmp_path, [UP, UP, *others])
    if not others:
        comparisons(tmp_path, question_in("training"), ["left"]).close()
    run(tmp_path, tiny.name, "--gate", "off", settings=SMALL)
    assert last(store).state == "done"
    assert "contrast" not in last(store).reason
    store.close()


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_rankings_are_trained_on_and_judged_by(tmp_path, tiny, method) -> None:
    store = Database(tmp_path)
    me = users.local_owner(store)
    users.set_consent(store, me, True)
    apart = [each for each in QUESTIONS if PLACES.part_of(pair(each)) == "held_out"][:10]
    asked = apart + [each for each in QUESTIONS if each not in apart][:14]
    for number, question in enumerate(asked):
        parent = conversations.record_messages(store, me, "chat", [Message("user", question)])
        texts = (GOOD.format(number), "Hm.", BAD.format(number), "No.")
        rank(store, me, [conversations.add_reply(store, parent, text, BY_NOBODY) for text in texts], [1, 2, 2, 3])
    settings = SMALL if method == "dpo" else ["ensemble_size=2", *REWARD[2:]]
    done = run(tmp_path, tiny.name, "--method", method, settings=settings)
    assert done.returncode == 0, done.stderr
    steps = nights.night_steps(store, 1)
    if method == "dpo":  # five pairs and a tie in each ranking, which is one example
        assert last(store).counts["ranking"] == 24 * 5
        learned = sum(PLACES.part_of(pair(each)) != "held_out" for each in asked)
        assert last(store).steps == math.ceil(learned / 8)
        assert "it sides with people in" in last(store).reason
    else:
        assert "held-out pairs" in last(store).reason
        assert steps[-1]["reward_loss"] > 0
    store.close()
