"""The plan of a night: which method and why, what it learns from, and about how long it takes."""

import re
from collections import Counter
from pathlib import Path

import pytest

from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.example_types import Answer, Demonstration, Examples, PreferencePair, UnpairedExample
from feedback.examples.split import Places, places
from feedback.messages import Message
from feedback.raters.agreement import share
from feedback.records import adapters, nights, settings
from feedback.records.adapters import Adapter
from tests.helpers.nights import run
from tests.training.test_night import SMALL, last, say
from training.algorithms import registry
from training.night.plan import choice, manifest, pace
from training.night.plan.choice import Found, Known, decided

LIMITS = {name: each.default for name, each in settings.SETTINGS.items()}
MANY = {"pairs": 2400, "comparisons": 2400.0}
SOME = {"pairs": 812, "comparisons": 812.0}


def known(right: int, of: int, pairs: int = 2000) -> Known:
    return Known(7, pairs, share(right, of))


@pytest.mark.parametrize(
    ("found", "method", "words"),
    [
        (Found(), "auto", ""),
        (Found(demonstrations=3), "sft", "by imitation: 3 demonstrations, and nothing that prefers a reply"),
        (Found(demonstrations=9, pairs=4, comparisons=4), "sft", "9 demonstrations, and 4 preferences"),
        (Found(demonstrations=9, pairs=9, comparisons=9), "auto", "by DPO and KTO: RLOO waits: 9 of 2,000 comparisons"),
        (Found(demonstrations=2, ups=5), "sft", "nothing that prefers a reply"),  # of ups alone nothing says how good
        (Found(demonstrations=2, ups=5, downs=1), "auto", "DPO and KTO"),
        (Found(ups=5), "auto", ""),
        (Found(pairs=90, comparisons=45), "auto", "online DPO waits: 45 of 500 comparisons"),
        (Found(**SOME), "reward", "by reward models: RLOO waits: 812 of 2,000"),
        (Found(**SOME, models=known(75, 122, 600)), "reward", "know 600 of 812 pairs"),
        (
            Found(**SOME, models=known(75, 122, 700)),
            "online-dpo",
            "by online DPO: 812 comparisons, reward models right on 61",
        ),
        (Found(**SOME, models=known(75, 122, 700)), "online-dpo", "RLOO waits: 812 of 2,000 comparisons"),
        (Found(**SOME, models=known(61, 122, 700)), "auto", "right on 50 % (41 % to 59 %), not surely more than 50 %"),
        (Found(**MANY, models=known(200, 320)), "rloo", "by RLOO: 2,400 comparisons, reward models right on 62"),
        (Found(**MANY, models=known(185, 320)), "online-dpo", "(52 % to 63 %), not surely more than 55 %"),
        (Found(**MANY, models=known(200, 320), agreed=share(11, 20)), "auto", "people agree on 55 % of what several"),
        (Found(**MANY, models=known(200, 320), agreed=share(5, 10)), "rloo", "RLOO"),
        (Found(**MANY, models=Known(7, 2400, share(0, 0))), "auto", "reward models not judged"),
    ],
)
def test_the_plan_decides_the_method_and_says_why(found: Found, method: str, words: str) -> None:
    chosen = decided(found, LIMITS)
    assert chosen.method == method
    assert words.replace(" %", "%") in chosen.why


def test_every_threshold_is_a_setting() -> None:
    found = Found(**SOME, agreed=share(14, 20), models=known(75, 122, 700))
    assert decided(found, LIMITS | {"policy_comparisons": 800, "policy_accuracy": 0.5}).method == "rloo"
    ppo = LIMITS | {"policy_comparisons": 800, "policy_accuracy": 0.5, "policy_method": "ppo"}
    assert decided(found, ppo).method == "ppo"
    assert "PPO waits: 812 of 900 comparisons" in decided(found, ppo | {"policy_comparisons": 900}).why
    assert decided(found, LIMITS | {"online_dpo_comparisons": 813}).method == "auto"
    assert decided(found, LIMITS | {"policy_agreement": 0.71}).method == "auto"


def test_several_processes_do_what_several_processes_can() -> None:
    found = Found(**MANY, models=known(200, 320))
    chosen = decided(found, LIMITS, lambda method: registry.find(method).distributed)
    assert chosen.method == "auto"
    assert "RLOO waits: it is for one process" in chosen.why


def test_the_plan_knows_the_newest_reward_models(tmp_path: Path, tiny: Base) -> None:
    store = say(tmp_path)
    assert choice.newest_models(store, tiny) is None
    small = ["min_steps=1", "batch_size=4", "samples=2", "sample_tokens=2", "ensemble_size=1", "rank=2"]
    done = run(tmp_path, tiny.name, "--method", "reward", settings=small)
    assert done.returncode == 0, done.stderr
    found = choice.newest_models(store, tiny)
    assert found is not None
    assert (found.night, found.pairs) == (1, 5)
    assert choice.newest_models(store, Base("other", tiny.path, "0" * 64)) is None
    assert "reward models not judged" in run(tmp_path, tiny.name, "--dry-run").stdout or found.accuracy.whole


def test_a_night_that_nobody_named_a_method_for_takes_that_of_the_settings(tmp_path: Path, tiny: Base) -> None:
    store = say(tmp_path)
    settings.set_setting(store, None, "night_method", "sft")
    done = run(tmp_path, tiny.name, "--asked-by", "clock", "--gate", "off")
    assert done.returncode == 0, done.stderr
    assert last(store).method == "sft"
    settings.set_setting(store, None, "night_method", "plan")
    told = run(tmp_path, tiny.name, "--dry-run").stdout
    assert "by DPO and KTO: RLOO waits: 5 of 2,000 comparisons; online DPO waits: 5 of 500 comparisons" in told
    settings.set_setting(store, None, "night_method", "ppo")
    assert "method sft" in run(tmp_path, tiny.name, "--dry-run", "--method", "sft").stdout
    assert "method ppo" in run(tmp_path, tiny.name, "--dry-run").stdout
    assert "there is no setting 'epoch'" in run(tmp_path, tiny.name, settings=["epoch=1"]).stderr


def test_a_dry_run_tells_the_plan_what_it_takes_and_the_minutes(tmp_path: Path, tiny: Base) -> None:
    store = say(tmp_path)
    told = run(tmp_path, tiny.name, "--dry-run").stdout
    assert re.search(r"^would train on 4 comparisons, 1 correction, ", told, re.M)
    assert re.search(r"^new: 7; older: none$", told, re.M)
    assert re.search(r"^parts: \d to train on, \d to stop by, \d held out$", told, re.M)
    assert re.search(r"^minutes: about \d+ \(30 may be\)$", told, re.M)
    assert "minutes: not known before the first" in run(tmp_path, tiny.name, "--dry-run", "--method", "rloo").stdout
    done = run(tmp_path, tiny.name, settings=SMALL)
    assert done.returncode == 0, done.stderr
    assert "RLOO waits" not in last(store).reason  # settings were asked for, so the method was, too
    again = run(tmp_path, tiny.name, "--again", "--gate", "off")
    assert again.returncode == 0, again.stderr
    assert "; by DPO and KTO: RLOO waits: 5 of 2,000 comparisons" in last(store).reason


# What a night takes of what is older

NEW = "2026-11-02T00:00:00+00:00"


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def in_months(counts: dict[str, int]) -> Examples:
    """So many pairs of each month, every fourth of them a ranking of three, all about as long."""
    pairs = []
    for month, count in counts.items():
        for number in range(count):
            of = 3 if number % 4 == 0 else 1
            for each in range(of):
                better, worse = Answer(f"better {each} " + "word " * 20), Answer(f"worse {each} " + "word " * 20)
                pairs.append(PreferencePair(asked(f"{month} {number}"), better, worse, at=f"{month}-10T12:00:00+00:00"))
    thumbs = tuple(UnpairedExample(asked("thumb"), Answer("so"), up, at="2026-08-01") for up in (True, False))
    shown = (Demonstration(asked("thumb"), Answer("so"), at="2026-08-01"),)
    return Examples(tuple(pairs), thumbs, demonstrations=shown)


@pytest.fixture
def taught(tmp_path: Path, tiny: Base) -> Database:
    """A ledger whose last night trained a hundred tokens a second, and took a minute for all else."""
    store = Database(tmp_path)
    settings.set_setting(store, None, "night_minutes", 5)
    night = nights.start_night(store, "auto", {"base_sha256": tiny.sha256}, 1, "2026-11-01T00:00:00+00:00")
    for number in range(1, 4):
        nights.add_step(store, night, number, {"tokens_per_s": 100.0})
    end_with_adapter(store, night)
    with store.transaction() as db:
        db.conn.execute("UPDATE nights SET ended_at = '2026-11-01T00:02:00+00:00' WHERE id = ?", (night,))
        for step in range(1, 4):
            at = f"2026-11-01T00:00:{20 * step}+00:00" if step < 3 else "2026-11-01T00:01:00+00:00"
            db.conn.execute("UPDATE night_steps SET at = ? WHERE night = ? AND step = ?", (at, night, step))
    return store


def end_with_adapter(store: Database, night: int) -> None:
    name = f"night-{night:04d}"
    adapters.add_adapter(store, Adapter(name, None, night, "auto", "b", "w", "candidate", "so", f"{night}"))
    nights.end_night(store, night, "done", "so", adapter=name)


def take(store: Database, tiny: Base, examples: Examples, where: Places | None = None) -> manifest.Taken:
    method = registry.find("dpo")
    return manifest.taken(store, tiny, method, method.config(), examples, where or places(store))


def test_the_pace_is_that_of_the_last_night(taught: Database, tiny: Base) -> None:
    speed = pace.of_training(taught, tiny)
    assert speed.tokens_per_s == pytest.approx(100)
    assert speed.rest_s == pytest.approx(60)  # two minutes less three steps of twenty seconds
    unknown = pace.of_training(taught, Base("other", tiny.path, "0" * 64))
    assert unknown.tokens_per_s > 1000  # a tiny model, on any machine
    assert pace.of_last(taught, tiny, "auto") == pytest.approx(2)
    assert pace.of_last(taught, tiny, "rloo") is None


def test_a_night_takes_all_that_is_new_and_as_much_older_of_every_month_as_it_has_time_for(taught, tiny) -> None:
    examples = in_months({"2026-08": 80, "2026-09": 200, "2026-10": 40, "2026-11": 30})
    found = take(taught, tiny, examples)
    where = places(taught)
    kept, there = (
        Counter(each.at[:7] for each in some.pairs if where.part_of(each) != "held_out")
        for some in (found.examples, examples)
    )
    assert kept["2026-11"] == there["2026-11"]  # whatever is new
    shares = [kept[month] / there[month] for month in ("2026-08", "2026-09", "2026-10")]
    assert 0.1 < min(shares) <= max(shares) < 0.9
    assert max(shares) - min(shares) < 0.15
    assert 4 < found.minutes <= 5
    held_out = [each for each in examples.pairs if where.part_of(each) == "held_out"]
    assert held_out
    assert set(held_out) < set(found.examples.pairs)  # what judges is all there
    of_prompts = Counter(each.messages for each in examples.pairs)
    assert all(
        count == of_prompts[prompt] for prompt, count in Counter(e.messages for e in found.examples.pairs).items()
    )
    assert found.examples.thumbs == examples.thumbs  # which DPO does not learn from, so they take no time
    count = len(examples.pairs) - len(found.examples.pairs)
    assert found.examples.left_out == {"left for another night": count}
    assert found.words.endswith("older pieces of feedback, from 3 months, as 5 minutes allow")
    assert found.all_sha256 == examples.sha256
    assert list(found.examples.pairs) == [each for each in examples.pairs if each in set(found.examples.pairs)]
    assert take(taught, tiny, examples) == found  # the same, as long as nothing has been learned from it


def test_in_other_nights_others_of_the_older_feedback_come_up(taught, tiny) -> None:
    examples = in_months({"2026-08": 80, "2026-09": 200})
    first = take(taught, tiny, examples)
    night = nights.start_night(taught, "auto", {}, 1, "2026-11-02T00:00:00+00:00")
    end_with_adapter(taught, night)
    second = take(taught, tiny, examples)
    both = set(first.examples.pairs) & set(second.examples.pairs)
    assert 0.1 < len(both) / len(first.examples.pairs) < 0.8


def test_with_time_for_all_a_night_takes_all(taught, tiny) -> None:
    settings.set_setting(taught, None, "night_minutes", 60)
    examples = in_months({"2026-08": 80, "2026-09": 200})
    found = take(taught, tiny, examples)
    assert (found.examples, found.words, found.all_sha256) == (examples, "", "")
    assert 5 < found.minutes < 60


def test_all_that_is_new_is_taken_even_if_there_is_no_time_for_it(taught, tiny) -> None:
    examples = in_months({"2026-08": 80, "2026-11": 400})
    found = take(taught, tiny, examples)
    new = [each for each in examples.pairs if each.at[:7] == "2026-11"]
    assert set(new) <= set(found.examples.pairs)
    assert found.minutes > 5


def test_a_night_that_took_a_part_is_not_run_again_for_the_rest(tmp_path: Path, tiny: Base) -> None:
    store = say(tmp_path)
    assert run(tmp_path, tiny.name, settings=SMALL).returncode == 0
    settings.set_setting(store, None, "night_minutes", 1)
    with store.transaction() as db:  # the last night was slow
        db.conn.execute("UPDATE night_steps SET metrics = json_set(metrics, '$.tokens_per_s', 2.0)")
    done = run(tmp_path, tiny.name, "--again", "--gate", "off", settings=SMALL)
    assert done.returncode == 0, done.stderr
    took = last(store)
    assert "older pieces of feedback, from 1 month, as 1 minute allow" in took.reason
    assert took.counts["left_out"]["left for another night"] > 0
    assert "nothing new since night 2" in run(tmp_path, tiny.name, settings=SMALL).stdout
