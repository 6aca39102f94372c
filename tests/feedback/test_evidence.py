"""The tests that decide about adapters: against values computed otherwise, and against what they promise."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from benchmarks import year
from feedback.raters import evidence
from feedback.raters.evidence import EACH, GAINS, MANY, NIGHTS, Votes


def votes_of(*people: list[float], weights: tuple[float, ...] = ()) -> Votes:
    """Votes of people who each said these units: 1 for the newer adapter, 0 against it, 1/2 neither."""
    said = [np.array(each) - 0.5 for each in people]
    return Votes(
        np.array([float(len(each)) for each in said]),
        np.array([each.sum() for each in said]),
        np.array([(each**2).sum() for each in said]),
        np.array(weights or (1.0,) * len(said)),
    )


# One person alone


@pytest.mark.parametrize(("won", "lost", "drawn"), [(5, 0, 0), (10, 3, 0), (10, 3, 7), (0, 4, 1), (26, 14, 0)])
def test_one_person_is_an_exact_test_of_a_fair_coin_without_draws(won, lost, drawn):
    votes = votes_of([1.0] * won + [0.0] * lost + [0.5] * drawn)
    tosses = won + lost
    exact = Fraction(sum(math.comb(tosses, wins) for wins in range(won, tosses + 1)), 2**tosses)
    assert float(evidence.p_value(votes)) == pytest.approx(float(exact), abs=1e-12)


@pytest.mark.parametrize(("won", "lost"), [(1, 0), (7, 2), (60, 20), (1650, 1350)])
def test_the_e_value_is_the_mean_of_likelihood_ratios(won, lost):
    """Of one person: each gain g tilts every toss by exp(4 g (x - 1/2)), which costs exp(8 g^2 (x - 1/2)^2)."""
    units = [1.0] * won + [0.0] * lost
    of_each = []
    for gain in GAINS:
        powers = [4 * Fraction(gain) * (Fraction(x) - Fraction(1, 2)) for x in units]
        costs = [8 * Fraction(gain) ** 2 * (Fraction(x) - Fraction(1, 2)) ** 2 for x in units]
        of_each.append(math.exp(float(sum(powers) - sum(costs))))
    found = evidence.e_value(evidence.preference(votes_of(units)))
    assert float(found) == pytest.approx(math.fsum(of_each) / len(of_each), rel=1e-9)


def test_the_e_value_of_a_fair_coin_is_at_most_1_in_expectation():
    tosses = 12
    expected = Fraction(0)
    for won in range(tosses + 1):
        value = evidence.e_value(evidence.preference(votes_of([1.0] * won + [0.0] * (tosses - won))))
        expected += Fraction(math.comb(tosses, won), 2**tosses) * Fraction(float(value))
    assert 0.5 < expected <= 1


# Several people


def test_the_mean_is_over_people_by_their_reliability_and_the_error_that_of_their_units():
    votes = votes_of([1.0] * 30 + [0.0] * 10, [1.0, 0.0], [0.0, 0.0, 0.5], weights=(1.0, 1.0, 0.5))
    found = evidence.preference(votes)
    share = np.array([0.4, 0.4, 0.2])
    assert float(found.gain) == pytest.approx(share @ [0.25, 0.0, -1 / 3])
    assert float(found.error) == pytest.approx(math.sqrt(share**2 @ [0.25 / 40, 0.25 / 2, 0.5 / 9]))
    assert (int(found.people), float(found.decisive)) == (3, 44.0)


def test_someone_who_says_much_is_known_better_and_counts_no_more():
    few, much = ([1.0, 0.0, 0.0, 0.0], [1.0] * 8), ([1.0, 0.0, 0.0, 0.0], [1.0] * 800)
    assert float(evidence.preference(votes_of(*few)).gain) == float(evidence.preference(votes_of(*much)).gain)
    # 800 clicks of one among four people with as many for either side promote nothing.
    one = votes_of([1.0] * 800, [0.0] * 9 + [1.0], [0.0] * 9 + [1.0], [1.0] * 9 + [0.0])
    assert not evidence.promotes(one, 0.05)


def test_above_twenty_people_are_a_sample():
    chance = np.random.default_rng(1)
    rates = chance.uniform(0.2, 0.9, 30)
    people = [list((chance.random(40) < rate).astype(float)) for rate in rates]
    means = np.array([np.mean(each) for each in people])
    found = evidence.preference(votes_of(*people))
    assert int(found.odd) == 0
    theirs = stats.ttest_1samp(means, 0.5)
    assert float(found.gain) == pytest.approx(means.mean() - 0.5)
    assert float(found.error) == pytest.approx(math.sqrt(evidence.COST) * means.std(ddof=1) / math.sqrt(30))
    assert float(evidence.p_value(votes_of(*people))) == pytest.approx(theirs.pvalue / 2, rel=0.5)


def test_no_more_is_decided_by_ten_than_when_all_have_been_heard():
    nine, ten = [[1.0] * 5] * (MANY - 1), [[1.0] * (EACH - 1)] * MANY
    assert evidence.promotes(votes_of(*nine), 0.001)
    assert not evidence.promotes(votes_of(*ten), 0.5)
    assert evidence.promotes(votes_of(*([[1.0] * EACH] * MANY)), 0.001)


def test_records_that_chance_does_not_explain_are_left_out_on_either_side():
    chance = np.random.default_rng(5)
    honest = [list(chance.permutation([1.0, 0.0] * 10)) for _ in range(18)]
    found = evidence.preference(votes_of(*honest, [1.0] * 20, [1.0] * 20))
    assert (int(found.odd), float(found.gain)) == (2, 0.0)
    found = evidence.preference(votes_of(*honest, [0.0] * 20, [0.0] * 20))
    assert (int(found.odd), float(found.gain)) == (2, 0.0)


def test_people_who_differ_in_taste_are_all_counted():
    likes, dislikes = [1.0] * 17 + [0.0] * 3, [0.0] * 17 + [1.0] * 3
    found = evidence.preference(votes_of(*[likes] * 6, *[dislikes] * 6))
    assert (int(found.odd), float(found.gain)) == (0, pytest.approx(0.0, abs=1e-12))


def test_a_mean_just_above_one_half_is_not_clear_where_many_judge():
    slightly = [[1.0] * 51 + [0.0] * 49]
    many, few = votes_of(*slightly * 10), votes_of(*slightly * 9)
    assert (bool(evidence.preference(many).clear), bool(evidence.preference(few).clear)) == (False, True)


def test_many_ledgers_at_once_are_as_each_by_itself():
    chance = np.random.default_rng(2)
    people = [[list(chance.integers(0, 3, 14) / 2) for _ in range(count)] for count in (1, 3, 12, 30)]
    alone = [votes_of(*each) for each in people]
    wide = max(map(len, people))
    padded = [[np.pad(getattr(each, name), (0, wide - len(each.units))) for each in alone] for name in vars(alone[0])]
    together = Votes(*map(np.stack, padded))
    assert evidence.p_value(together) == pytest.approx([float(evidence.p_value(each)) for each in alone])
    found = evidence.e_value(evidence.preference(together))
    assert found == pytest.approx([float(evidence.e_value(evidence.preference(each))) for each in alone])


def test_nothing_said_decides_nothing():
    nothing = votes_of([])
    assert float(evidence.p_value(nothing)) == 1.0
    assert float(evidence.e_value(evidence.preference(nothing))) == 1.0
    draws = votes_of([0.5] * 9, [0.5] * 3)
    assert not evidence.promotes(draws, 0.5)
    assert not evidence.refuses(draws, 0.5)
    assert not evidence.harms(draws)
    assert not evidence.loses(evidence.preference(draws), 1)
    assert evidence.loses(evidence.preference(draws), NIGHTS)


# The account


def test_a_year_of_looks_never_spends_more_than_its_risk():
    spent, took = 0.0, []
    for _ in range(500):
        took.append(float(evidence.allowed(0.05, spent, evidence.LOOK)))
        spent += took[-1]
    assert spent <= 0.05
    assert took[0] == pytest.approx(0.0465 * 0.05)
    assert took == sorted(took, reverse=True)
    assert took[-1] > 0  # it never stops altogether
    assert float(evidence.allowed(0.05, 0.06, evidence.LOOK)) == 0.0


def test_looks_are_a_quarter_apart_and_begin_where_there_can_be_an_answer():
    assert float(evidence.next_look(0, 0.0465)) == 9
    assert 2.0 ** -float(evidence.next_look(0, 0.0465)) < 0.0465
    assert float(evidence.next_look(150, 0.002)) == 188


# What is promised, by the simulation at a size for a test


def test_the_simulation_decides_by_the_very_functions_of_the_program():
    from training.evaluation import held_out
    from training.night import pipeline

    assert year.evidence is evidence is held_out.evidence is pipeline.evidence


def test_no_better_candidates_are_hardly_ever_promoted():
    every = [year.Scenario(people, 15, kept=kept) for people in (1, 4, 12) for kept in (None, 0.9)]
    found = [year.offline(each, 150, np.random.default_rng(1)).figures()["false"] for each in every]
    assert np.mean(found) <= 0.05
    assert max(found) <= 0.1  # 150 years each
    met = [year.live(year.Scenario(people, 15), 60, np.random.default_rng(1)).figures()["false"] for people in (1, 12)]
    assert np.mean(met) <= 0.05


def test_better_ones_are_promoted_and_harm_is_taken_back():
    chance = np.random.default_rng(0)
    assert year.met(4, 450, 0.6, year.ACCOUNTS, 400, chance) > 0.8
    assert year.met(1, 13, 0.8, year.ALONE, 400, chance) > 0.6
    assert year.challenged(year.Scenario(1, 4, risk=1.0, rate=0.75, nights=20), 200, chance) > 0.8
    assert np.median(year.taken_back(0.3, 300, 200, chance, 5)) <= 60


def test_a_tenth_of_bought_accounts_promotes_nothing():
    found = year.offline(year.Scenario(20, 20, bought=0.1), 100, np.random.default_rng(3)).figures()
    assert found["false"] <= 0.12  # 100 years; one in two with a plain mean
