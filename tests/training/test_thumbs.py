"""KTO in a training: its own beta, a reference point that lasts from batch to batch, thumbs that come together."""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from assistant.models.base_model import Base
from feedback.database.database import Database
from training.algorithms import dpo_kto
from training.algorithms.dpo_kto import PreferenceConfig, PreferenceTrainer
from training.data.scoring import references_of
from training.data.tokenize import TokenizedExample
from training.loop import checkpoint
from training.loop.loop import Report, train
from training.loop.optim import stratified_batch
from training.loop.state import TrainState
from training.losses import preference
from training.model.policy import Backbone
from training.model.reference import References

CONFIG = PreferenceConfig(epochs=2, min_steps=1, batch_size=8, evals_per_epoch=1, kl_budget=50, learning_rate=5e-3)


def backbone_of(tiny: Base) -> Backbone:
    return Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)


def thumb(number: int, wanted: bool = True) -> TokenizedExample:
    return TokenizedExample("thumb", [1, 2, 20 + number], ([300 + number, 5], [400 + number, 6]), 1.0, wanted)


def pair(number: int) -> TokenizedExample:
    return TokenizedExample("comparison", [1, 3, 20 + number], ([300 + number, 5], [400 + number, 6]), 1.0)


MIXED = [pair(each) for each in range(24)] + [thumb(each, wanted=each % 2 == 0) for each in range(9)]


# Batches


@pytest.mark.parametrize(
    ("thumbs", "others", "size", "fewest"),
    [
        (9, 24, 8, 4),
        (40, 7, 8, 6),
        (8, 0, 8, 8),
        (9, 0, 8, 4),
        (7, 2, 8, 7),
        (3, 30, 8, 3),  # there are no more
        (1, 0, 8, 1),
        (50, 50, 4, 3),  # no batch holds more than four, and 50 are not a multiple
        (20, 20, 3, 2),
    ],
)
def test_thumbs_come_four_together_where_there_are_so_many(thumbs, others, size, fewest):
    marked = [True] * thumbs + [False] * others
    steps = -(-len(marked) // size)
    for epoch in range(3):
        batches = [stratified_batch(marked, size, epoch * steps + at, 0, least=4) for at in range(steps)]
        assert Counter(at for each in batches for at in each) == Counter(range(len(marked)))  # each once an epoch
        assert all(1 <= len(each) <= size for each in batches)
        found = [sum(marked[at] for at in each) for each in batches]
        assert min(filter(None, found)) == fewest
    assert stratified_batch(marked, size, 0, 0, 4) == stratified_batch(marked, size, 0, 0, 4)


def test_at_random_a_mixed_batch_would_have_hardly_a_thumb(tiny):
    trainer = PreferenceTrainer(backbone_of(tiny), MIXED, CONFIG)
    found = [sum(each.kind == "thumb" for each in trainer.batch(step)) for step in range(trainer.steps)]
    assert sorted(set(found)) == [0, 4, 5]
    at_random = [sum(each.kind == "thumb" for each in super(PreferenceTrainer, trainer).batch(at)) for at in range(10)]
    assert min(filter(None, at_random)) < 4


# beta


def test_thumbs_have_a_beta_of_their_own(tiny):
    backbone, lesson = backbone_of(tiny), [thumb(0)]
    with torch.no_grad():
        for each in backbone.parameters().values():
            each.add_(0.05)
    reference = references_of(References(backbone), lesson)
    ratio = float(backbone.log_probs(lesson[0].own_row())[0].detach() - reference[0, 0])
    assert abs(ratio) > 0.1

    def margin(config: PreferenceConfig) -> float:
        tally = dpo_kto.gradients(backbone, lesson, reference, torch.zeros(()), (1.0, 1.0), config, 1024)
        return tally.sums["rewards/margins"]

    assert margin(PreferenceConfig()) == pytest.approx(0.1 * ratio, rel=1e-4)
    assert margin(PreferenceConfig(beta=0.5)) == pytest.approx(0.1 * ratio, rel=1e-4)
    assert margin(PreferenceConfig(thumb_beta=0.4)) == pytest.approx(0.4 * ratio, rel=1e-4)


def test_at_the_default_the_reference_point_matters():
    # Slope of the loss at a log-ratio of 0, by beta, with z0 at 0 and at 5 nats: beta sigmoid'(beta z0).
    def changed(beta: float) -> float:
        slopes = []
        for z0 in (0.0, 5.0):
            ratio = torch.zeros(1, requires_grad=True)
            wanted = torch.tensor([True])
            margin = preference.kto_margin(ratio, torch.zeros(1), torch.tensor(z0), wanted, beta)
            slopes.append(torch.autograd.grad(preference.kto_loss(margin, wanted).sum(), ratio)[0].item())
        return 1 - slopes[1] / slopes[0]

    assert changed(0.02) < 0.003  # as beta was: KTO was plain likelihood
    assert changed(CONFIG.thumb_beta) > 0.05


# z0


def test_the_reference_point_is_of_this_and_earlier_batches(tiny):
    backbone = backbone_of(tiny)
    trainer = PreferenceTrainer(backbone, MIXED, CONFIG)
    state, total, count, seen = trainer.begin(), 0.0, 0.0, []
    for step in range(trainer.steps):
        rows = [each.row(1) for each in trainer.batch(step) if each.kind == "thumb"]
        with torch.no_grad():
            ratios = [float(backbone.log_probs(each)[0] - backbone.log_probs(each, reference=True)[0]) for each in rows]
        if ratios:
            total, count = 0.9 * total + sum(ratios), 0.9 * count + len(ratios)
            seen.append(total / count)
        metrics = trainer.step(state)
        state.step += 1
        assert ("z0" in metrics) == bool(ratios)
        assert metrics.get("z0", 0.0) == pytest.approx(max(0.0, total / count) if ratios else 0.0, abs=1e-4)
        assert state.numbers.get("z0_sum", 0.0) == pytest.approx(total, abs=1e-3)
        assert state.numbers.get("z0_count", 0.0) == pytest.approx(count)
    assert len(set(seen)) == len(seen) == 4
    assert abs(seen[-1]) > 0.1


def test_a_training_on_thumbs_that_is_cut_off_goes_on_to_the_same_bits(tiny, tmp_path):
    def begin() -> tuple[TrainState, Iterator[Report]]:
        """A training as a night has it, which keeps the reference's log-probs in the ledger step by step."""
        backbone, store = backbone_of(tiny), Database(tmp_path)
        references = References(backbone)
        references.recall(store, [each.row() for each in MIXED])
        trainer = PreferenceTrainer(backbone, MIXED, CONFIG, (), references)
        state = trainer.begin()
        checkpoint.load(tmp_path / "kept", state)

        def reports() -> Iterator[Report]:
            for report in train(trainer, state):
                references.keep(store)
                yield report

        return state, reports()

    whole, reports = begin()
    seen = [each.metrics for each in reports]
    cut, reports = begin()
    before = [next(reports).metrics for _ in range(5)]
    checkpoint.save(tmp_path / "kept", cut)
    resumed, reports = begin()
    after = [each.metrics for each in reports]

    assert [each["loss"] for each in before + after] == [each["loss"] for each in seen]
    assert resumed.numbers == whole.numbers
    assert whole.numbers["z0_count"] > 9  # more than one batch holds
    assert all(torch.equal(each, resumed.parameters[name]) for name, each in whole.parameters.items())
