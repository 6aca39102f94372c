"""The best of n by a rehearsal's reward models: the estimator by hand, and the whole of it as a user runs it."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from feedback.database.database import Database
from tests.training.test_rehearse import KNOWN, rehearse
from training.rehearsal.best_of import best_weights, figures, promised_by, won


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_every_subset_of_the_samples_counts_once(n: int) -> None:
    values = [0.3, -1.0, 2.5, 0.7, 0.1]  # in the order of their scores
    expected = np.mean([values[max(some)] for some in itertools.combinations(range(5), n)])
    assert np.dot(best_weights(5, n), values) == pytest.approx(expected)
    assert sum(best_weights(64, n)) == pytest.approx(1)


def test_models_that_know_the_taste_promise_what_comes_true() -> None:
    chance = np.random.default_rng(0)
    scores = chance.normal(size=(300, 16))
    true = np.array([promised_by(each) for each in scores])
    points, (slope, low, high) = figures(scores, true, true)
    assert [each.n for each in points] == [1, 2, 4, 8, 16]
    assert [each.kl for each in points[:2]] == [0, round(math.log(2) - 0.5, 4)]
    assert points[0].true[0] == pytest.approx(0.5, abs=0.01)
    rising = [each.true[0] for each in points]
    assert rising == sorted(rising)
    assert all(each.promised == each.true for each in points)
    assert low <= slope == 0 <= high


def test_models_that_know_nothing_promise_what_does_not_come_true() -> None:
    chance = np.random.default_rng(0)
    scores = chance.normal(size=(300, 12))
    promised, true = (
        np.array([promised_by(each) for each in some]) for some in (scores, chance.normal(size=(300, 12)))
    )
    points, (slope, low, _) = figures(scores, promised, true)
    assert [each.n for each in points] == [1, 2, 4, 8, 12]
    assert all(abs(each.true[0] - 0.5) < 0.05 for each in points)
    assert points[-1].promised[0] > 0.7
    assert slope > low > 0.1


def test_a_sample_is_never_compared_with_itself() -> None:
    texts = ["Boil it for 6 minutes.", "Boil it.", "Boil it for 6 minutes and then 7."]
    known = KNOWN + Counter(["boil", "it", "for", "minutes", "and", "then"])
    assert won(lambda _prompt, a, b: len(a) - len(b), "?", texts, known) == [0.5, 0, 1]
    assert promised_by(np.array([0.0, 0.0, math.log(3)])) == pytest.approx([(0.5 + 0.25) / 2] * 2 + [0.75])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--best-of", "1"], "--best-of is from 2 to 256, not 1"),
        (["--best-of", "4", "--method", "dpo"], "--best-of trains reward models alone, so it takes no --method dpo"),
        (["--wrong", "0.5"], "--wrong is a share from 0 to below 0.5, not 0.5"),
        (["--best-of", "4", "--set", "loss=ipo"], "there is no setting 'loss'"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence_and_leaves_nothing(tmp_path: Path, options, words) -> None:
    done = rehearse(tmp_path / "data", *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.soak
def test_a_rehearsal_measures_the_best_of_n(tmp_path: Path, tiny) -> None:
    data = tmp_path / "data"
    small = ["--comparisons", "60", "--prompts", "3", "--max-tokens", "8", "--model", tiny.name, "--wrong", "0.25"]
    asked = [part for each in ("ensemble_size=2", "samples=2", "min_steps=1") for part in ("--set", each)]
    done = rehearse(data, "--best-of", "4", "--json", *small, *asked)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [each["n"] for each in found["points"]] == [1, 2, 4]
    assert (found["prompts"], found["comparisons"], found["wrong"]) == (3, 60, 0.25)
    for each in found["points"]:
        for mean, low, high in (each["promised"], each["true"]):
            assert 0 <= low <= mean <= high <= 1
    assert (data / "rehearsal.png").stat().st_size > 5_000
    store = Database(data)
    assert store.row("SELECT method, adapter FROM nights") == {"method": "reward", "adapter": None}
    store.close()
