"""Strengths against choix, intervals against the truth, ties and sides and lengths taken out."""

import json
from pathlib import Path

import numpy as np
import pytest

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.formats import load
from feedback.kinds.comparison import compare
from feedback.messages import Message
from feedback.raters import leaderboard
from feedback.raters.leaderboard import Board, Choice, board
from tests.conftest import BY_BASE


def simulated(
    seed: int, count: int, adapters: int, tie: float = 0.0, side: float = 0.0, length: float = 0.0
) -> tuple[np.ndarray, list[Choice]]:
    """Choices drawn from Davidson's model: the true strengths, and what was chosen."""
    chance = np.random.default_rng(seed)
    truth = chance.normal(0, 0.7, adapters)
    truth -= truth.mean()
    made = []
    for number in range(count):
        left, right = chance.choice(adapters, 2, replace=False)
        longer = chance.normal(0, 0.5) + 0.5 * (truth[left] - truth[right])
        margin = truth[left] - truth[right] + side + length * longer
        shares = np.exp([margin / 2, -margin / 2, np.log(tie) if tie else -np.inf])
        result = (1.0, 0.0, 0.5)[chance.choice(3, p=shares / shares.sum())]
        made.append(Choice(f"a{left}", f"a{right}", result, longer if length else 0.0, f"c{number // 2}"))
    return truth, made


def strengths(of: Board) -> dict[str, float]:
    return {each.name: each.strength for each in of.standings}


def test_without_ties_the_strengths_are_those_of_choix() -> None:
    choix = pytest.importorskip("choix")
    for seed in range(3):
        _, made = simulated(seed, 2000, 5)
        won = [(c.left, c.right) if c.result else (c.right, c.left) for c in made]
        reference = choix.ilsr_pairwise(5, [(int(a[1:]), int(b[1:])) for a, b in won])
        found = strengths(board(made, draws=0, covariates=False))
        for number in range(5):
            assert found[f"a{number}"] == pytest.approx(reference[number] - reference.mean(), abs=1e-3)


def test_the_intervals_cover_the_truth_as_often_as_they_say() -> None:
    hits = []
    for seed in range(500):
        truth, made = simulated(seed, 150, 3, tie=0.4 * (seed % 2))
        for each in board(made, draws=0, covariates=False).standings:
            hits.append(each.analytic[0] <= truth[int(each.name[1:])] <= each.analytic[1])
    assert 0.93 <= np.mean(hits) <= 0.97


def test_the_bootstrap_agrees_with_the_curvature_where_choices_are_independent() -> None:
    _, made = simulated(1, 600, 3, tie=0.3)
    for each in board(made, draws=100, covariates=False).standings:
        assert each.bootstrap is not None
        assert each.bootstrap[1] - each.bootstrap[0] == pytest.approx(each.analytic[1] - each.analytic[0], rel=0.3)


def test_side_and_length_are_told_from_strength() -> None:
    truth, made = simulated(3, 6000, 3, tie=0.3, side=0.6, length=0.8)
    found = board(made, draws=0)
    assert found.left_side[0] == pytest.approx(0.6, abs=0.15)
    assert found.length[0] == pytest.approx(0.8, abs=0.25)
    assert found.length[1] > 0  # surely
    for each in found.standings:
        assert each.strength == pytest.approx(truth[int(each.name[1:])], abs=0.15)
    swayed = strengths(board(made, draws=0, covariates=False))
    best = f"a{truth.argmax()}"
    assert swayed[best] > strengths(found)[best] + 0.2  # longer replies made it look better than it is


def test_an_adapter_that_never_lost_has_a_finite_strength_and_a_wide_interval() -> None:
    found = board([Choice("new", "old", 1.0)] * 3, draws=20).standings
    assert [each.name for each in found] == ["new", "old"]
    assert np.isfinite(found[0].strength)
    assert found[0].analytic[1] - found[0].analytic[0] > 2
    assert [each.rank for each in found] == [(1, 2), (1, 2)]
    assert board([]).standings == ()


def test_the_ledgers_choices_are_those_of_people_who_consent_between_different_adapters(
    store: Database, consenting: User
) -> None:
    def reply(parent: str, text: str, model: str) -> str:
        by = BY_BASE.__class__(None, None, None, {"model": model}) if model else BY_BASE
        return conversations.add_reply(store, parent, text, by)

    for choice in ("left", "tie", "both_bad"):
        parent = conversations.record_messages(store, consenting, "chat", [Message("user", "hello")])
        left, right = reply(parent, "good day", "kind"), reply(parent, "go", "")
        compare(store, consenting, left, right, choice)
        compare(store, consenting, left, reply(parent, "hm", "kind"), "left")
    found = leaderboard.choices(store)
    assert [(each.left, each.right, each.result) for each in found] == [("kind", "base", 1.0), ("kind", "base", 0.5)]
    assert found[0].longer == pytest.approx(np.log(108 / 102))
    users.set_consent(store, consenting, False)
    assert leaderboard.choices(store) == []


def test_the_order_of_imported_replies_says_nothing_of_a_side(store: Database, tmp_path: Path) -> None:
    rows = [
        {"model_a": first, "model_b": second, "prompt": [f"q {n}"], "response_a": [f"a {n}"], "response_b": [f"b {n}"]}
        | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
        for n in range(60)
        for first, second in (("kind", "rude"), ("rude", "kind"))
    ]
    (tmp_path / "arena.jsonl").write_text("\n".join(json.dumps(row | {"id": n}) for n, row in enumerate(rows)))
    assert load.import_file(store, tmp_path / "arena.jsonl").kept == len(rows)
    made = leaderboard.choices(store)
    assert len(made) == len(rows)
    assert not any(each.shown for each in made)
    found = board(made, draws=0)
    assert found.left_side[0] == pytest.approx(0, abs=1e-6)  # though the first always won
    assert all(each.strength == pytest.approx(0, abs=1e-3) for each in found.standings)
