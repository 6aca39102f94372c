"""Reward models: how they begin, learn, are normalised, judged, kept and read back."""

import itertools
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from assistant.models.base_model import Base
from feedback.errors import Refused
from feedback.example_types import TIE, Answer, Examples, PreferencePair
from feedback.messages import Message
from tests.feedback.test_split import QUESTIONS
from tests.training.test_gate import KIND, RUDE
from training.algorithms import reward_model
from training.algorithms.base import TrainingContext
from training.algorithms.dpo_kto import PreferenceConfig
from training.algorithms.reward_model import EnsembleTrainer, Member, RaterBias, RewardConfig
from training.data import tokenize
from training.data.judged import JudgedPair, JudgedReply, RewardExample, group_by_prompt, has_contrast
from training.data.tokenize import NothingFits, TokenizedExample
from training.evaluation import calibration
from training.loop import checkpoint
from training.loop.loop import train
from training.model import reward_heads
from training.model.packing import Row
from training.model.policy import Backbone
from training.model.reference import References
from training.model.reward_heads import RewardCard, RewardModels, ScoreHead
from training.night.learning import make_encoder

SETTINGS = RewardConfig(ensemble_size=2, learning_rate=5e-3, epochs=3, batch_size=4, rank=4, alpha=8)


def backbone_of(tiny: Base) -> Backbone:
    return Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)


def tokenized(backbone: Backbone, questions: list[str]) -> list[TokenizedExample]:
    pairs = tuple(PreferencePair((Message("user", each),), Answer(KIND), Answer(RUDE)) for each in questions)
    encoder = make_encoder(backbone.base, backbone, PreferenceConfig())
    return tokenize.tokenize(Examples(pairs), encoder)[0]


def examples_of(backbone: Backbone, questions: list[str]) -> list[RewardExample]:
    return group_by_prompt(tokenized(backbone, questions))


def trained(backbone: Backbone, examples: list[RewardExample], config: RewardConfig = SETTINGS) -> RewardModels:
    trainer = EnsembleTrainer(backbone, examples, config)
    list(train(trainer, trainer.begin()))
    return trainer.models


def member_of(
    width: int, examples: list[RewardExample], ties: bool = False, opinion: bool = True, seed: int = 0
) -> Member:
    """A reward model in training; without `opinion` its head begins at 0."""
    member = Member("reward-0", ScoreHead(width, seed), RaterBias(examples), ties)
    if not opinion:
        torch.nn.init.zeros_(member.head.weight)
    return member


UNCENTRED = RewardConfig(center_rewards_coefficient=0.0)
RELIABLE, SABOTEUR = 1.0, 0.25


def disagreed(*weights: float) -> list[TokenizedExample]:
    """One prompt, on which the first person prefers one reply and all others the other."""
    first, *others = weights
    return [
        TokenizedExample("comparison", [1, 2], ([3, 9], [4, 9]), weight=first),
        *[TokenizedExample("comparison", [1, 2], ([4, 9], [3, 9]), weight=each) for each in others],
    ]


def test_where_people_disagree_on_a_prompt_the_one_who_weighs_more_is_learned_from():
    (example,) = group_by_prompt(disagreed(RELIABLE, SABOTEUR, SABOTEUR))
    (pair,) = example.pairs
    assert (pair.first, pair.second, pair.ties) == (0, 1, 0.0)
    assert (pair.wins, pair.weight) == pytest.approx((1 / 1.5, (1 + 2 / 16) / 1.5))

    scores = torch.zeros(2, requires_grad=True)
    reward_model.lesson_loss(scores, example, member_of(4, [example]), UNCENTRED).backward()
    # The slope at 0 is sigmoid(0) - 1 / 1.5 = -1/6, times the weight 0.75.
    assert scores.grad.tolist() == pytest.approx([-1 / 8, 1 / 8])


def test_a_saboteur_does_not_cancel_a_reliable_person_in_a_fitted_head():
    states = torch.eye(2, 6)
    apart = []
    for weights in ((RELIABLE, RELIABLE), (RELIABLE, SABOTEUR), (RELIABLE,)):
        examples = group_by_prompt(disagreed(*weights))
        member = member_of(6, examples, opinion=False)
        reward_model.fit(member, examples, [states], UNCENTRED)
        apart.append((member.head(states[0]) - member.head(states[1])).item())
    assert apart[0] == pytest.approx(0, abs=1e-4)
    assert 0.3 * apart[2] < apart[1] < apart[2]


def test_several_peoples_judgements_of_two_replies_are_one_pair_with_their_share_as_its_label():
    said = [
        TokenizedExample(kind, [1, 2], replies, weight=1.0)
        for kind, replies in (
            ("comparison", ([3, 9], [4, 9])),
            ("comparison", ([3, 9], [4, 9])),
            ("comparison", ([4, 9], [3, 9])),
            ("tie", ([4, 9], [3, 9])),
            ("comparison", ([5, 9], [4, 9])),
        )
    ]
    (example,) = group_by_prompt(said)
    assert example.pairs == (JudgedPair(0, 1, wins=0.5, ties=0.25, weight=1.0), JudgedPair(2, 1))
    # Two of four wins and a tie are a share of 5/8: with nu = 1, P(left) + P(tie) / 2 at 0 is 1/2.
    scores = torch.zeros(3, requires_grad=True)
    reward_model.lesson_loss(scores, example, member_of(4, [example], ties=True), UNCENTRED).backward()
    assert scores.grad.tolist() == pytest.approx([1 / 2 - 5 / 8, -(1 / 2 - 5 / 8) + 1 / 2, -1 / 2])


@pytest.mark.parametrize("ties", [False, True])
def test_the_stronger_a_preference_the_further_apart_a_reward_model_puts_its_replies(ties):
    states = torch.eye(2, 6)
    apart = []
    for strength, strength_margin in ((0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1.0, 2.0), (1.0, 0.0)):
        said = [TokenizedExample("comparison", [1, 2], ([3, 9], [4, 9]), 1.0, strength=strength)]
        tied = [TokenizedExample("tie", [5], ([3, 9], [4, 9]), 1.0)] if ties else []
        examples, settings = group_by_prompt([*said, *tied]), RewardConfig(strength_margin=strength_margin)
        member = member_of(6, examples, ties)
        reward_model.fit(member, examples, [states, torch.zeros(2, 6)][: 1 + ties], settings)
        apart.append((member.head(states[0]) - member.head(states[1])).item())
    assert apart[:4] == sorted(apart[:4])
    assert apart[1] - apart[0] > 0.01
    assert apart[4] == pytest.approx(apart[0], abs=1e-4)


def test_strengths_of_opposite_preferences_are_set_off_against_each_other():
    said = [(([3, 9], [4, 9]), 0.5), (([3, 9], [4, 9]), 1.0), (([4, 9], [3, 9]), 0.75)]
    (example,) = group_by_prompt([TokenizedExample("comparison", [1], each, 1.0, strength=by) for each, by in said])
    assert example.pairs[0].strength == pytest.approx((0.5 + 1.0 - 0.75) / 3)
    (example,) = group_by_prompt([TokenizedExample("comparison", [1], *each) for each in ((said[0][0], 1.0),)])
    assert example.pairs[0].strength == 0


def thumb(prompt: int, reply: int, wanted: bool, user: int, weight: float = 1.0) -> TokenizedExample:
    return TokenizedExample("thumb", [prompt], ([reply],), weight, wanted, user=user)


def test_a_thumb_is_a_score_above_or_below_what_its_rater_asks_for():
    (example,) = group_by_prompt([thumb(1, 5, True, user=7), thumb(1, 5, False, user=8, weight=0.5)])
    assert example.thumbs == (JudgedReply(0, True, 7), JudgedReply(0, False, 8, 0.5))
    member = member_of(4, [example])
    with torch.no_grad():
        member.bias.value.copy_(torch.tensor([-1.0, 2.0]))
    # A score of 0.5 is 1.5 above what the first asks for, and 1.5 below the second: log(1 + e^-1.5) = 0.201413 twice.
    loss = reward_model.lesson_loss(torch.tensor([0.5]), example, member, UNCENTRED)
    assert loss.item() == pytest.approx(1.5 * 0.201413, abs=1e-6)
    twice = UNCENTRED.model_copy(update={"thumb_weight": 2.0})
    assert reward_model.lesson_loss(torch.tensor([0.5]), example, member, twice).item() == pytest.approx(
        2 * loss.item()
    )
    assert reward_model.told_right(torch.tensor([0.5]), example, member) == [True, True]


def test_a_head_fitted_to_thumbs_tells_good_replies_from_bad_and_raters_from_each_other():
    """Two people, one of whom says yes to nearly all: which replies are better is learned from both."""
    noise = torch.Generator().manual_seed(0)
    truth = torch.randn(6, generator=noise)
    said, states = [], []
    for at in range(300):
        state, user = torch.randn(1, 6, generator=noise), at % 2
        chance = torch.sigmoid(state[0] @ truth + (3.0 if user else -1.0))
        said.append(thumb(at, at, bool(torch.rand((), generator=noise) < chance), user))
        states.append(state)
    examples = group_by_prompt(said)
    member = member_of(6, examples)
    reward_model.fit(member, examples, states, UNCENTRED)
    weight = member.head.weight.detach()
    assert torch.nn.functional.cosine_similarity(weight, truth, dim=0) > 0.9
    asked = {user: member.bias.value[number].item() for user, number in member.bias.number.items()}
    assert asked[0] - asked[1] > 1.5


def test_the_bias_of_a_rater_who_only_says_yes_stays_in_bounds():
    states = [torch.zeros(1, 4) for _ in range(50)]
    examples = group_by_prompt([thumb(at, at, True, user=1) for at in range(49)] + [thumb(49, 49, False, user=2)])
    member = member_of(4, examples)
    reward_model.fit(member, examples, states, UNCENTRED)
    assert member.bias.value.abs().max() < 4


def test_reward_models_learn_from_thumbs_alone_and_keep_no_rater(tiny, tmp_path):
    backbone = backbone_of(tiny)
    pairs = tokenized(backbone, QUESTIONS[:12])
    thumbs = [
        TokenizedExample("thumb", each.prompt_ids, (each.replies[1 - wanted],), 1.0, wanted, user=at % 3)
        for at, each in enumerate(pairs[:8])
        for wanted in (True, False)
    ]
    trainer = EnsembleTrainer(backbone, group_by_prompt(thumbs), SETTINGS)
    state = trainer.begin()
    reports = list(train(trainer, state))
    assert {"bias.reward-0", "bias.reward-1"} <= state.parameters.keys()
    assert reports[-1].metrics["accuracy"] == 1
    assert all(each > 0 for each in reward_model.margins(trainer.models, pairs[8:])[0])

    samples = [Row([1, 5 + at], [[20 + at, 30], [40 + at]]) for at in range(4)]
    reward_model.normalise(trainer.models, samples)
    reward_heads.save(
        trainer.models, tmp_path / "rm", RewardCard("rm", tiny.sha256, "t", "float32", {}, 1.0, {}), samples
    )
    kept = load_file(tmp_path / "rm" / "reward-0" / "head.safetensors")
    assert kept.keys() == {"weight", "bias", "log_tie", "gain", "shift"}
    assert kept["bias"].ndim == 0
    reward_heads.load(backbone_of(tiny), tmp_path / "rm")


@pytest.mark.parametrize(
    ("said", "enough"),
    [
        ([("thumb", True), ("thumb", False)], True),
        ([("thumb", True), ("thumb", True)], False),
        ([("thumb", False)], False),
        ([("tie", True)], False),
        ([("tie", True), ("thumb", True)], False),
        ([("tie", True), ("ranking", True)], True),
        ([("thumb", True), ("correction", True)], True),
    ],
)
def test_a_reward_model_needs_a_pair_or_thumbs_of_both_kinds(tiny, said, enough):
    replies = {"thumb": ([3],)}
    examples = [
        TokenizedExample(kind, [1, at], replies.get(kind, ([3], [4])), 1.0, wanted)
        for at, (kind, wanted) in enumerate(said)
    ]
    assert has_contrast(examples) is enough
    backbone = backbone_of(tiny)
    context = TrainingContext(backbone, examples, (), References(backbone))
    if enough:
        assert reward_model.build(context, SETTINGS).examples
    else:
        with pytest.raises(NothingFits, match="preferences and from thumbs of both kinds"):
            reward_model.build(context, SETTINGS)


def test_a_ranking_weighs_in_a_reward_model_as_one_comparison_less_than_its_replies(tiny):
    encoder = make_encoder(tiny, backbone_of(tiny), PreferenceConfig())
    hello, replies = (Message("user", "Hello"),), [Answer(each) for each in ("Hi!", "Hm.", "No.", "Go away.")]
    ranked = [
        PreferencePair(hello, a, b, "ranking", 2 / 4, group="ranking 1") for a, b in itertools.combinations(replies, 2)
    ]
    (example,) = group_by_prompt(tokenize.tokenize(Examples(tuple(ranked)), encoder)[0])
    assert sum(each.weight for each in example.pairs) == 3
    loss = reward_model.lesson_loss(torch.zeros(4), example, member_of(4, [example]), UNCENTRED)
    assert float(loss) == pytest.approx(3 * math.log(2))


def test_ties_alone_leave_the_share_of_ties_in_bounds():
    states = [torch.randn(2, 4, generator=torch.Generator().manual_seed(at)) for at in range(40)]
    examples = [RewardExample([1], ([2], [3]), (JudgedPair(0, 1, wins=0.0, ties=1.0),)) for _ in states]
    member = member_of(4, examples, ties=True)
    reward_model.fit(member, examples, states, UNCENTRED)
    # At margins of 0 the maximum of 40 log(nu / (nu + 2)) - log(nu)^2 / 2 is where 80 / (nu + 2) = log nu, at 3.15.
    assert member.head.log_tie.item() == pytest.approx(3.15, abs=0.3)


def test_lessons_that_weigh_little_move_a_reward_model_little_in_whatever_batch_they_come(tiny):
    norms = []
    for weight in (1.0, 0.1):
        backbone = backbone_of(tiny)
        examples = group_by_prompt([replace(each, weight=weight) for each in tokenized(backbone, QUESTIONS[:2])])
        trainer = EnsembleTrainer(backbone, examples, SETTINGS)
        reward_model.gradients(backbone, trainer.members[0], examples, SETTINGS, len(examples), 4096)
        moved = [each.grad for each in trainer.begin().parameters.values() if each.grad is not None]
        norms.append(sum(float(each.norm() ** 2) for each in moved))
    assert norms[1] == pytest.approx(norms[0] / 100, rel=1e-3)


@pytest.fixture(scope="module")
def taught(tiny):
    """A trained ensemble, normalised on replies that are other than its examples."""
    backbone = backbone_of(tiny)
    models = trained(backbone, examples_of(backbone, QUESTIONS[:8]))
    samples = [Row([1, 5 + at], [[20 + at, 30], [40 + at]]) for at in range(16)]
    reward_model.normalise(models, samples)
    return models, samples


def test_a_head_begins_as_in_the_paper():
    head = ScoreHead(4096, seed=3)
    assert 0.95 < float(head.weight.detach().std()) * math.sqrt(4097) < 1.05
    assert head.bias.item() == 0
    assert not torch.equal(head.weight, ScoreHead(4096, seed=4).weight)


def test_scores_are_normalised_on_the_references_replies(taught):
    models, samples = taught
    every = torch.cat(models.scores(samples), dim=1)
    assert every.mean(1).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert every.std(1, correction=0).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_score_is_read_from_the_mean_state_of_a_replys_tokens(tiny):
    backbone, head = backbone_of(tiny), ScoreHead(64, seed=1)
    backbone.add("reward-0", 4, 8, seed=2)
    with torch.no_grad():
        for name, each in backbone.parameters("reward-0").items():
            each.add_(torch.randn(each.shape, generator=torch.Generator().manual_seed(len(name))) / 10)
        row = Row([5, 6, 7], [[8, 9, 10], [8], [11, 12]])
        found = reward_heads.raw_scores(backbone, "reward-0", head, [Row([3], [[4]]), row])[1]
        with backbone.using("reward-0"):
            for score, reply in zip(found, row.replies, strict=True):
                ids = torch.tensor([[*row.prompt_ids, *reply]])
                states = backbone.causal.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, 3:]
                assert float(score) == pytest.approx(float(head(states.mean(0))), abs=1e-5)


def test_a_fitted_head_is_the_best_under_its_prior():
    noise = torch.Generator().manual_seed(0)
    truth = torch.randn(6, generator=noise)
    examples, states = [], []
    for _ in range(200):
        replies = torch.cat([torch.randn(2, 6, generator=noise), torch.ones(2, 2)], 1)  # the last two say nothing
        better = int(replies[1, :6] @ truth > replies[0, :6] @ truth)
        examples.append(RewardExample([1], ([2], [3]), (JudgedPair(better, 1 - better),)))
        states.append(replies)
    began, member = ScoreHead(8, seed=5), member_of(8, examples, seed=5)
    reward_model.fit(member, examples, states, UNCENTRED)
    head = member.head

    apart = torch.stack(
        [of[each.pairs[0].first] - of[each.pairs[0].second] for of, each in zip(states, examples, strict=True)]
    )
    weight = head.weight.detach().clone().requires_grad_()
    precision = apart.square().sum(1).mean()
    loss = (
        -torch.nn.functional.logsigmoid(apart @ weight).sum()
        + precision / 2 * (weight - began.weight.detach()).square().sum()
    )
    (slope,) = torch.autograd.grad(loss, weight)
    assert slope.norm() < 0.01 * loss
    assert ((apart @ weight) > 0).float().mean() > 0.9 > ((apart @ began.weight) > 0).float().mean()
    assert head.weight[6:].tolist() == pytest.approx(began.weight[6:].tolist(), abs=1e-5)


def test_each_model_learns_from_prompts_drawn_with_replacement_by_its_seed(tiny):
    examples = examples_of(backbone_of(tiny), QUESTIONS[:12])
    ensemble = EnsembleTrainer(backbone_of(tiny), examples, SETTINGS)
    first, second = (list(each.learned) for each in ensemble.members)
    assert len(first) == len(second) == 12
    assert first != second
    assert len(set(first)) < 12 > len(set(second))
    again = EnsembleTrainer(backbone_of(tiny), examples, SETTINGS)
    assert [list(each.learned) for each in again.members] == [first, second]
    for told in ({"bootstrap": 0}, {"ensemble_size": 1}):  # alone, a model would only lose a third of what was said
        whole = EnsembleTrainer(backbone_of(tiny), examples, SETTINGS.model_copy(update=told))
        assert all(list(each.learned) == list(range(12)) for each in whole.members)


@pytest.mark.parametrize("what", ["pairs", "thumbs"])
def test_no_model_loses_the_only_contrast(what):
    pair, ups = RewardExample([1], ([2], [3]), (JudgedPair(0, 1),)), [thumb(at, 5, True, 1) for at in range(2, 9)]
    only = [pair] if what == "pairs" else group_by_prompt([thumb(1, 5, False, 1)])
    examples = [*only, *group_by_prompt(ups)]
    assert {
        reward_model.contrast(examples[at] for at in reward_model.bootstrap(examples, seed)) for seed in range(50)
    } == {what}
    assert reward_model.bootstrap([pair], 0) == [0]


def test_models_learn_what_was_preferred_and_disagree_by_their_seeds(taught):
    models, _ = taught
    apart, _ = reward_model.margins(models, tokenized(models.backbone, QUESTIONS[8:18]))
    assert sum(each > 0 for each in apart) == 10
    (scores,) = models.scores([examples_of(models.backbone, QUESTIONS[8:9])[0].row()])
    assert scores.shape == (2, 2)
    expected = scores.mean(0) - scores.std(0, correction=0)
    assert torch.equal(models.pessimistic([examples_of(models.backbone, QUESTIONS[8:9])[0].row()])[0], expected)
    assert (reward_heads.disagreement(scores) > 0).all()


def test_models_read_back_score_as_they_were_written_and_the_policy_is_untouched(taught, tiny, tmp_path):
    models, samples = taught
    card = RewardCard("rm", tiny.sha256, "template", "float32", {}, 1.0, {})
    reward_heads.save(models, tmp_path / "rm", card, samples)
    other = backbone_of(tiny)
    before = [each.detach().clone() for each in other.parameters().values()]

    read, told = reward_heads.load(other, tmp_path / "rm")

    for ours, theirs in zip(read.scores(samples), models.scores(samples), strict=True):
        assert torch.equal(ours, theirs)
    assert len(told.proof) == len(samples)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters().values(), strict=True))
    assert not list(tmp_path.glob(".*.making"))


def test_a_head_that_was_lost_or_belongs_to_another_base_is_refused(taught, tiny, tmp_path):
    models, samples = taught
    card = RewardCard("rm", tiny.sha256, "template", "float32", {}, 1.0, {})
    reward_heads.save(models, tmp_path / "rm", card, samples)
    shutil.copytree(tmp_path / "rm", tmp_path / "swapped")
    shutil.copy(tmp_path / "rm" / "reward-1" / "head.safetensors", tmp_path / "swapped" / "reward-0")
    with pytest.raises(Refused, match="score otherwise than when they were written"):
        reward_heads.load(backbone_of(tiny), tmp_path / "swapped")
    raw = json.loads((tmp_path / "rm" / "card.json").read_text())
    (tmp_path / "rm" / "card.json").write_text(json.dumps(raw | {"base_sha256": "other"}))
    with pytest.raises(Refused, match="made for another base model"):
        reward_heads.load(backbone_of(tiny), tmp_path / "rm")


def test_all_that_was_said_of_one_prompt_is_one_lesson(tiny):
    backbone = backbone_of(tiny)
    encoder = make_encoder(tiny, backbone, PreferenceConfig())
    hello, best, middle, worst = (Message("user", "Hello"),), Answer("Hi there!"), Answer("Hm."), Answer("Go away.")
    ranked = [PreferencePair(hello, a, b, "ranking") for a, b in ((best, middle), (best, worst), (middle, worst))]
    tied = PreferencePair(hello, middle, Answer("Well."), TIE)
    examples, _ = tokenize.tokenize(Examples(tuple(ranked), ties=(tied,)), encoder)
    (example,) = group_by_prompt(examples)
    assert len(example.replies) == 4
    judged = [(each.first, each.second, each.wins, each.ties) for each in example.pairs]
    assert judged == [(0, 1, 1, 0), (0, 2, 1, 0), (1, 2, 1, 0), (1, 3, 0, 1)]
    # scores 2, 1, 0, 1 and nu = 1: by hand from P ~ e^a : e^b : e^((a+b)/2)
    scores = torch.tensor([2.0, 1.0, 0.0, 1.0])
    one_apart = math.log(1 + math.exp(-1) + math.exp(-0.5))
    two_apart = math.log(1 + math.exp(-2) + math.exp(-1))
    expected = 2 * one_apart + two_apart + math.log(3)
    found = reward_model.lesson_loss(scores, example, member_of(4, [example], ties=True), UNCENTRED)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_ties_draw_scores_together(tiny):
    backbone = backbone_of(tiny)
    pairs = tokenized(backbone, QUESTIONS[:8])
    tied = [replace(each, kind=TIE) for each in pairs]

    def apart(examples: list[TokenizedExample]) -> float:
        models = trained(backbone_of(tiny), group_by_prompt(examples), SETTINGS.model_copy(update={"ensemble_size": 1}))
        return sum(map(abs, reward_model.margins(models, pairs)[0])) / 8

    assert apart(tied) < 0.2 * apart(pairs)


@pytest.mark.parametrize("stop", [5, 12, 17])  # in the first member, between the two, in the second
def test_an_ensemble_that_goes_on_ends_as_if_nothing_had_been(tiny, tmp_path, stop):
    def ensemble(stop: int | None) -> dict[str, torch.Tensor]:
        backbone = backbone_of(tiny)
        trainer = EnsembleTrainer(backbone, examples_of(backbone, QUESTIONS[:6]), SETTINGS)
        state = trainer.begin()
        checkpoint.load(tmp_path / "ensemble", state)
        for report in train(trainer, state):
            if report.step == stop:
                checkpoint.save(tmp_path / "ensemble", state)
                return {}
        return {name: each.detach().clone() for name, each in state.parameters.items()}

    whole = ensemble(None)
    assert ensemble(stop) == {}
    broken = ensemble(None)
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_what_models_can_be_believed_by_hand():
    # margins 1, 2, -1, 0.5; longer by 10, 20, 10, -10 tokens
    found = calibration.believed([1.0, 2.0, -1.0, 0.5], [10, 20, 10, -10], temperature=1.0)
    assert (found.pairs, found.accuracy, found.longer_wins) == (4, 0.75, 0.75)
    # slope (10 + 40 - 10 - 5) / 700 = 0.05 a token
    assert found.length_bias == pytest.approx(5.0)
    assert found.length_correlation == pytest.approx(35 / math.sqrt(6.25 * 700))
    # sure of 1: 0.7311 twice, right once; of 2: 0.8808; of 0.5: 0.6225
    expected = (2 * abs(0.731059 - 0.5) + (1 - 0.880797) + (1 - 0.622459)) / 4
    assert found.calibration_error == pytest.approx(expected, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((0.1941, 0.9937), abs=1e-4)  # Clopper and Pearson, 3 of 4


def test_pairs_that_were_not_drawn_evenly_are_weighed_in_what_models_can_be_believed():
    margins, longer_by = [1.0, 2.0, -1.0, 0.5], [10, 20, 10, -10]
    even = calibration.believed(margins, longer_by, 1.0)
    assert calibration.believed(margins, longer_by, 1.0, [0.5] * 4) == even
    found = calibration.believed(margins, longer_by, 1.0, [1.0, 1.0, 2.0, 1.0])  # the wrong one was drawn half as often
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.longer_wins == pytest.approx(4 / 5)
    # As many as 25 / 7 even pairs: a wider interval than of four.
    assert found.high - found.low > 0.75
    assert calibration.exact_interval(0.75, 4) == pytest.approx((even.low, even.high))
    # The same pairs, the wrong one twice, have the same figures but for the interval.
    twice = calibration.believed([*margins, -1.0], [*longer_by, 10], 1.0)
    for name in ("calibration_error", "length_bias", "length_correlation"):
        assert getattr(found, name) == pytest.approx(getattr(twice, name))


def test_the_temperature_makes_the_margins_say_how_often_they_are_right(tmp_path):
    # margins of 4, right three times in four: the log-odds are log 3, so the temperature is 4 / log 3
    margins = [4.0, 4.0, 4.0, -4.0] * 25
    temperature = calibration.temperature_of(margins)
    assert temperature == pytest.approx(4 / math.log(3), rel=1e-3)
    found = calibration.believed(margins, [1] * 100, temperature)
    assert found.calibration_error < 0.001
    assert calibration.temperature_of([1.0, -1.0]) == 1.0  # too few to tell
    calibration.draw(found, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
