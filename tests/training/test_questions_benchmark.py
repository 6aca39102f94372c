"""The measurement of what torn questions teach, on hidden states in which a direction is better."""

import random

import pytest
import torch

from benchmarks.questions import FIRST, ROUND, WAYS, Material, asked, chosen, fitted, gain, margins


@pytest.fixture(scope="module")
def material() -> Material:
    noise = torch.Generator().manual_seed(0)
    truth = torch.randn(8, generator=noise)
    pairs = torch.randn(400, 2, 8, generator=noise)
    better = (pairs @ truth).argmax(1)
    pairs = torch.stack([torch.stack([pair[at], pair[1 - at]]) for pair, at in zip(pairs, better, strict=True)])
    return Material(pairs[:200], pairs[200:])


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_asking_begins_alike_and_learns_and_comes_to_the_same_again(material, way):
    found = asked(material, way, 50, seed=3)
    assert len(found) == 1 + 3  # rounds of 20, 20 and 10
    assert found[0] == asked(material, "random", ROUND, seed=3)[0]
    assert found[-1] > 0.8
    assert found == asked(material, way, 50, seed=3)


def test_torn_are_those_on_whose_margin_the_heads_are_furthest_apart(material):
    ensemble, left = fitted(material, range(FIRST), seed=0), list(range(FIRST, 200))
    some = chosen(ensemble, material, left, "torn", 10, random.Random(0))
    apart = margins(ensemble, material.pool).std(0, correction=0)
    assert min(apart[some]) >= max(apart[sorted({*left} - {*some})])
    for way in ("random", "drawn"):
        others = chosen(ensemble, material, left, way, 10, random.Random(0))
        assert len({*others}) == 10
        assert {*others} <= {*left}


def test_a_gain_has_the_interval_of_student():
    # mean 0.02, deviation 0.01 over 3 seeds: 4.3027 * 0.01 / sqrt(3) = 0.0248
    assert gain([0.01, 0.02, 0.03]) == {"by_seed": [0.01, 0.02, 0.03], "mean": 0.02, "low": -0.0048, "high": 0.0448}
    assert gain([0.5]) == {"by_seed": [0.5], "mean": 0.5}
