"""Agreement, reliability and what sways people: worked by hand, and on real raters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import NotFound, Refused
from feedback.kinds.comparison import compare
from feedback.raters import reliability
from feedback.raters.agreement import add_gold, agreement, alpha, report
from feedback.raters.reliability import LEAST, Rating, reliabilities
from tests.conftest import two_replies
from tests.helpers.commands import nightschool

BAD = 12  # raters that are put among the honest: a third of them random, inverted, always up


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def area_under_curve(high: list[float], low: list[float]) -> float:
    """The chance that one of the first is above one of the second, a tie counting half."""
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in high for b in low]))


def dices(shared_data: Path, seed: int) -> tuple[list[Rating], int]:
    """50 ratings of each of the 123 real raters and of 12 bad ones; and how many are honest."""
    value = {"No": -1.0, "Unsure": 0.0, "Yes": 1.0}
    honest = np.array(
        [[value[each] for each in row["safe_votes"]] for row in lines(shared_data / "raters_dices350.jsonl")]
    )
    items, people_ = honest.shape
    chance = np.random.default_rng(seed)
    makers = (
        lambda: chance.choice([-1.0, 0.0, 1.0], size=items),
        lambda: -honest[:, chance.integers(people_)],
        lambda: np.ones(items),
    )
    said = np.column_stack([honest, *(makers[number % 3]() for number in range(BAD))])
    picked = [(user, item) for user in range(people_ + BAD) for item in chance.choice(items, 50, replace=False)]
    return [Rating(user, str(item), said[item, user]) for user, item in picked], people_


@pytest.mark.parametrize("seed", range(5))
def test_careless_raters_are_told_from_honest_ones_who_keep_a_fair_weight(shared_data: Path, seed: int) -> None:
    rated, honest = dices(shared_data, seed)
    found = reliabilities(rated)
    assert [each.user for each in found] == list(range(honest + BAD))
    means = [each.mean for each in found]
    assert area_under_curve(means[:honest], means[honest:]) >= 0.95
    weights = [each.weight for each in found]
    assert min(weights[:honest]) >= 0.25
    assert np.median(weights[:honest]) == 1.0
    assert np.mean(weights[honest:]) < 0.35


def test_people_agree_on_seven_of_ten_real_choices(shared_data: Path) -> None:
    rated = []
    numbers: dict[str, int] = {}
    for row in lines(shared_data / "raters_tulu.jsonl"):
        first, second = sorted((row["model_a"], row["model_b"]))
        for vote in row["votes"]:
            value = {"a": 1.0, "tie": 0.0, "b": -1.0}[vote["vote"]] * (1 if row["model_a"] == first else -1)
            item = json.dumps([row["prompt"], first, second])
            rated.append(Rating(numbers.setdefault(vote["rater"], len(numbers)), item, value))
    found = agreement(rated)
    assert (found.part, found.whole) == (61, 86)
    assert found.share == pytest.approx(0.709, abs=5e-4)


def test_agreement_and_alpha_of_a_table_worked_by_hand() -> None:
    said = {"one": (1, 1), "two": (1, -1), "three": (-1, -1), "four": (1, 0)}
    rated = [Rating(user, item, float(value)) for item, both in said.items() for user, value in enumerate(both)]
    found = agreement(rated)
    assert (found.part, found.whole) == (2, 3)  # the fourth has a tie
    # Krippendorff's nominal alpha without the tie: values +++--- in pairs; observed disagreement 2/6,
    # expected 2*3*3/(6*5) = 0.6; alpha = 1 - (1/3)/0.6
    assert alpha([each for each in rated if each.item != "four"]) == pytest.approx(1 - (1 / 3) / 0.6)
    assert alpha(rated[:1]) is None


def test_a_person_alone_has_full_weight_and_nobody_a_reliability(store: Database, consenting: User) -> None:
    _, left, right = two_replies(store, consenting)
    compare(store, consenting, left, right, "left")
    assert reliability.weights(store) == {}


def test_of_two_who_disagree_neither_is_condemned() -> None:
    rated = [Rating(user, str(item), value) for item in range(3) for user, value in ((1, 1.0), (2, -1.0))]
    assert {each.user: each.weight >= LEAST for each in reliabilities(rated)} == {1: True, 2: True}
    assert all(each.new for each in reliabilities(rated))


def test_the_report_names_new_raters_and_what_sways_them(store: Database, consenting: User) -> None:
    for choice in ("left", "left", "right"):
        _, left, right = two_replies(store, consenting)  # the left one is longer
        compare(store, consenting, left, right, choice)
    add_gold(store, consenting, left, right)
    found = report(store)
    assert [(each.name, each.label) for each in found.raters] == [("owner", "new")]
    assert ((found.left.part, found.left.whole), (found.longer.part, found.longer.whole)) == ((2, 3), (2, 3))
    assert (found.raters[0].gold.part, found.raters[0].gold.whole) == (0, 1)
    assert found.left.low < 2 / 3 < found.left.high
    assert found.alpha is None


def test_gold_is_for_operators_and_of_two_replies_to_one_message(store: Database, owner: User) -> None:
    _, left, right = two_replies(store, owner)
    _, elsewhere, _ = two_replies(store, owner)
    with pytest.raises(Refused, match="the same message"):
        add_gold(store, owner, left, elsewhere)
    with pytest.raises(NotFound):
        add_gold(store, owner, left, "nothing")
    with pytest.raises(Refused, match="only an operator"):
        add_gold(store, users.add_user(store, "chatter", "chatter", None), left, right)


def test_the_order_of_imported_replies_is_no_side_of_a_screen(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "chosen": f"a long reply {n}", "rejected": f"no {n}"} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = str(tmp_path / "data")
    assert nightschool("import", str(tmp_path / "pairs.jsonl"), "--data", data).returncode == 0
    done = nightschool("raters", "--data", data)
    assert f"{'the left reply was chosen':<30}nothing yet\n" in done.stdout
    assert f"{'the longer reply was chosen':<30}nothing yet\n" in done.stdout
    store = Database(tmp_path / "data")
    me = users.local_owner(store)
    users.set_consent(store, me, True)
    _, left, right = two_replies(store, me)
    compare(store, me, left, right, "right")
    found = report(store)
    assert ((found.left.part, found.left.whole), (found.longer.part, found.longer.whole)) == ((0, 1), (0, 1))
    store.close()
