"""The rehearsal: its rater's plain rules, and the whole of it once, at its smallest true size, as a user runs it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from feedback.database.database import Database
from feedback.errors import Refused
from feedback.kinds.tally import counts
from feedback.records import nights
from tests.helpers.processes import Done, Process
from training.evaluation.text_quality import flaw, is_repetitive, whole_words
from training.rehearsal import preference_rule
from training.rehearsal.measure import interval
from training.rehearsal.questions import PROMPTS, halves, questions

TASTES = Path(__file__).parents[1] / "tastes"
PREFERENCES = Path(__file__).parents[2] / "benchmarks" / "preferences"
KNOWN = whole_words(["You can boil the egg for six minutes or so, and then eat it."])
GOOD = "Boil the egg for six minutes."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD, ""),
        ("", "empty"),
        (" \n--", "empty"),
        ("42", ""),
        ("Boil the egg for six min", "broken off"),
        ("Boil the egg for six minutes", ""),
        ("Boil the egg. Boil the egg. Boil the egg. Boil the egg. Boil the egg.", "repetitive"),
    ],
)
def test_a_flaw_is_seen(text, found):
    assert flaw(text, KNOWN) == found


def test_a_long_text_that_says_new_things_is_not_repetitive():
    assert not is_repetitive(" ".join(PROMPTS.read_text().splitlines()[:20]))


def test_a_flawed_reply_loses_whatever_the_taste():
    def likes_the_worst(prompt: str, a: str, b: str) -> float:
        return len(b) - len(a)

    assert preference_rule.choose(likes_the_worst, "?", GOOD, "", KNOWN) == 1
    assert preference_rule.choose(likes_the_worst, "?", "Boil the egg for six min", GOOD, KNOWN) == -1
    assert preference_rule.choose(likes_the_worst, "?", "", " ", KNOWN) == 0
    assert preference_rule.choose(likes_the_worst, "?", GOOD, GOOD + " And eat it.", KNOWN) == 1


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        ("brevity", "Yes.", "Yes, of course."),
        ("plain_words", "It is hot out.", "Temperatures are considerable."),
        ("to_you", "You may boil your egg.", "One may boil an egg."),
        ("concrete", "Boil it for 6 minutes, for example.", "It may perhaps be boiled."),
    ],
)
def test_the_tastes_that_ship_with_the_tests_like_what_they_say(name, better, worse):
    likes = preference_rule.load(TASTES / f"{name}.py")
    assert preference_rule.choose(likes, "?", better, worse, KNOWN) == 1
    assert preference_rule.choose(likes, "?", worse, better, KNOWN) == -1
    assert preference_rule.choose(likes, "?", better, better, KNOWN) == 0


def test_the_prompts_are_many_and_those_judged_on_are_not_asked_before():
    asked, unseen = questions(SimpleNamespace(comparisons=300, interactions=None, prompts=220))
    assert (len(asked), len(unseen)) == (300, 220)
    assert not set(asked) & set(unseen)
    with pytest.raises(Refused, match="too few for 500 comparisons and 200 unseen"):
        questions(SimpleNamespace(comparisons=500, interactions=None, prompts=200))
    rated, _ = questions(SimpleNamespace(comparisons=300, interactions=75, prompts=220))
    to_correct, to_compare = halves(rated)
    assert (len(to_correct), len(to_compare)) == (37, 38)
    assert sorted([*to_correct, *to_compare]) == sorted(asked[:75])


@pytest.mark.parametrize("file", [None, *sorted(PREFERENCES.glob("*.py"))], ids=lambda each: each.stem if each else "")
@pytest.mark.parametrize(
    "reply",
    [
        "Boil the egg for six minutes. Take it out of the water. Let it cool down before you peel it",
        "- Take an egg out of the box.\n- Boil it for some time, and wait.",
        "Eggs.",
        "",
    ],
)
def test_a_correction_is_liked_better_than_the_reply_and_has_no_flaw(file, reply):
    likes, corrects = preference_rule.load(file), preference_rule.load_corrections(file)
    better = corrects("How do I boil an egg?", reply)
    if better.strip() in ("", reply.strip()):
        return  # there is nothing to correct
    known = whole_words([f"{reply} .", f"{better} ."])
    assert not flaw(better, known)
    assert preference_rule.choose(likes, "How do I boil an egg?", better, reply, known) == 1


def test_a_taste_that_cannot_correct_is_refused_where_corrections_are_asked_for(tmp_path):
    done = rehearse(tmp_path / "data", "--taste", str(TASTES / "brevity.py"), "--interactions", "4")
    assert done.returncode == 2
    assert "has no function corrected(prompt, reply), which interactions need" in done.stderr
    assert not (tmp_path / "data").exists()


def test_the_interval_covers_the_mean_and_is_never_a_point():
    low, high = interval([1.0] * 60 + [0.0] * 40)
    assert 0.48 < low < 0.55 < 0.65 < high < 0.71
    assert interval([1.0] * 100) == (0.97, 1.0)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (None, "there is no taste file"),
        ("def prefers(prompt, a, b", "fails: SyntaxError"),
        ("likes = 3", "has no function prefers(prompt, a, b)"),
        ("import no_such_module", "fails: ModuleNotFoundError"),
    ],
)
def test_a_bad_taste_is_one_sentence_and_leaves_nothing(tmp_path, program, words):
    file, data = tmp_path / "taste.py", tmp_path / "data"
    if program is not None:
        file.write_text(program)
    done = rehearse(data, "--taste", str(file))
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not data.exists()


@pytest.mark.parametrize("answer", ["'much'", "float('nan')", "1 / 0"])
def test_a_taste_that_answers_no_number_is_refused(tmp_path, answer):
    file = tmp_path / "taste.py"
    file.write_text(f"def prefers(prompt, a, b):\n    return {answer}\n")
    with pytest.raises(Refused, match=r"taste\.py"):
        preference_rule.load(file)("?", "a", "b")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-tokens", "0"], "--max-tokens is from 1 to 512, not 0"),
        (["--prompts", "0"], "--prompts is at least 1, not 0"),
        (["--interactions", "1"], "--interactions is at least 2, not 1"),
        (["--comparisons", "9000"], "too few for 9000 comparisons"),
        (["--set", "loss=ipo"], "loss=ipo takes per_token=1"),
        (["--method", "dpo", "--set", "much=1"], "there is no setting 'much'"),
    ],
)
def test_numbers_that_cannot_be_meant_are_one_sentence_and_leave_nothing(tmp_path, options, words):
    done = rehearse(tmp_path / "data", *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "kept").write_text("mine")
    done = rehearse(tmp_path)
    assert done.returncode == 2
    assert "holds something already" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def rehearse(data: Path, *options: str) -> Done:
    return Process("training.rehearsal.run:main", ["--data", str(data), *options]).wait(600)


def test_a_rehearsal_of_a_small_model_trains_as_it_is_asked_to(tmp_path, tiny):
    data = tmp_path / "data"
    small = ["--comparisons", "60", "--prompts", "3", "--max-tokens", "8", "--model", tiny.name]
    asked = ["loss=robust", "epochs=1", "min_steps=3", "batch_size=64", "learning_rate=5e-3", "kl_budget=50"]
    done = rehearse(data, "--method", "dpo", "--json", *small, *(part for each in asked for part in ("--set", each)))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kl_words"].endswith("nats per token, exact, T=1, 6 replies, half of them its own")
    assert figures["kl_words"].startswith(f"{figures['kl_per_token']:.3f} ± {figures['kl_error']:.3f}")
    assert figures["kl_words"] in done.stdout.splitlines()[-3]
    store = Database(data)
    night = nights.night(store, 1)
    store.close()
    assert (night.method, night.steps) == ("dpo", 3)
    assert (night.settings["loss"], night.settings["beta"]) == ("robust", 0.02)
    assert "loss=robust with label_smoothing=0 is the same as loss=sigmoid" in night.reason
    assert "; KL from the base " in night.reason


@pytest.mark.soak
def test_a_rehearsal_of_interactions_corrects_half_of_them(tmp_path):
    data = tmp_path / "data"
    done = rehearse(data, "--interactions", "16", "--prompts", "4", "--max-tokens", "16", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["prompts"], figures["comparisons"], figures["corrections"]) == (4, 8, 8)
    store = Database(data)
    assert (counts(store)["comparisons"], counts(store)["corrections"]) == (8, 8)
    store.close()


@pytest.mark.soak
def test_a_rehearsal_goes_the_way_of_people_and_reports_what_it_found(tmp_path):
    data = tmp_path / "data"
    small = ["--comparisons", "16", "--prompts", "4", "--max-tokens", "16"]
    done = rehearse(data, "--taste", str(TASTES / "brevity.py"), "--json", *small)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    wanted = "win_rate win_rate_low win_rate_high prompts comparisons kl_per_token words_before words_after"
    assert set(figures) >= {*wanted.split(), "base_nll_before", "base_nll_after", "minutes"}
    assert (figures["prompts"], figures["comparisons"], figures["adapter"]) == (4, 16, "night-0001")
    assert 0 <= figures["win_rate_low"] <= figures["win_rate"] <= figures["win_rate_high"] <= 1
    assert figures["kl_per_token"] > 0  # it is another model by now
    assert 0.1 < figures["base_nll_before"] < 5
    assert figures["words_before"] > 1
    assert (data / "rehearsal.png").stat().st_size > 5_000
    store = Database(data)
    assert counts(store)["comparisons"] == 16
    assert nights.night(store, 1).state == "done"
    store.close()
