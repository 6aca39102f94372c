"""PPO's KL controller in a night of default length, its value model from a reward model, and what top-p leaves out."""

import math
from collections.abc import Iterator

import pytest
import torch

from assistant.engine.sampling.params import Sampling
from assistant.models import base_model
from benchmarks import policies
from feedback.errors import Refused
from tests.feedback.test_split import QUESTIONS
from tests.training.test_early_stopping import examples_of as pairs_of
from tests.training.test_reward_model import examples_of, trained
from training.algorithms import ppo
from training.algorithms.base import PolicyContext
from training.algorithms.ppo import PpoConfig, PpoTrainer
from training.losses.policy_gradient import next_kl_coefficient
from training.model.packing import Row, pack
from training.model.policy import Backbone
from training.model.reference import References
from training.rewards.base import RewardContext
from training.rollouts.sampler import Rollout, Sampler, sampling_of

DEFAULT = PpoConfig()


@pytest.fixture(scope="module")
def sampler(tiny) -> Iterator[Sampler]:
    made = Sampler(tiny, "float32", "cpu", base_model.load_tokenizer(tiny))
    yield made
    made.close()


# The controller


@pytest.mark.parametrize(("kl", "way"), [(0.0, -1), (0.02, -1), (0.12, 1), (1.0, 1), (1e9, 1)])
def test_in_a_default_night_beta_moves_by_twice_and_never_beyond_the_formula(kl, way):
    replies = DEFAULT.prompts * DEFAULT.replies
    beta, most = DEFAULT.beta, 0.2 * replies / DEFAULT.kl_horizon
    for _ in range(DEFAULT.steps):
        new = next_kl_coefficient(beta, kl, DEFAULT.adaptive_kl_target, replies, DEFAULT.kl_horizon)
        # Ziegler et al.: beta (1 + clip(kl / target - 1, +-0.2) n / horizon)
        error = min(max(kl / DEFAULT.adaptive_kl_target - 1, -0.2), 0.2)
        assert new == pytest.approx(beta * (1 + error * replies / DEFAULT.kl_horizon), rel=1e-12)
        assert abs(new / beta - 1) <= most + 1e-12
        beta = new
    assert way * math.log(beta / DEFAULT.beta) >= math.log(2)


def test_a_trainer_steers_beta_by_what_its_rollouts_say(tiny):
    backbone = Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)
    config = PpoConfig(rank=4, alpha=8, learning_rate=1e-9, epochs=1, num_minibatches=1, prompts=2, replies=2)
    trainer = PpoTrainer(backbone, None, [], lambda _: [], config)
    state, steps = trainer.begin(), DEFAULT.steps
    rollouts = [Rollout(Row([1, 20 + at], [[30, 31], [40]]), (True, True)) for at in range(2)]
    beta = config.beta
    for _ in range(steps):
        metrics = trainer.learn(state, rollouts, [torch.tensor([1.0, -1.0])] * 2, config)
        state.step += 1
        assert metrics["beta"] == pytest.approx(beta, rel=1e-12)
        beta = next_kl_coefficient(beta, metrics["rollout_kl"], config.adaptive_kl_target, 4, 40)
        assert state.numbers["beta"] == pytest.approx(beta, rel=1e-12)
    assert metrics["rollout_kl"] == pytest.approx(0, abs=1e-3)  # it has not learned, and is far below its target
    assert beta < config.beta / 2


def test_the_horizon_is_ten_steps_unless_another_is_asked_for():
    assert DEFAULT.kl_horizon == 10 * DEFAULT.prompts * DEFAULT.replies == 160
    assert PpoConfig(prompts=4, replies=8).kl_horizon == 320
    assert PpoConfig(kl_horizon=10_000).kl_horizon == 10_000  # as nights had it before
    assert PpoConfig(**DEFAULT.model_dump()) == DEFAULT
    with pytest.raises(Refused, match="kl_horizon is 0 or at least the 16 replies of a step, not 3"):
        PpoConfig(kl_horizon=3)  # beta would more than double in a step, or become negative


# The value model


@pytest.mark.parametrize(("rank", "alpha"), [(2, 4), (8, 64)])
def test_a_value_model_begins_as_a_reward_model_whatever_the_policys_rank_and_alpha(
    tiny, sampler, tmp_path, rank, alpha
):
    backbone = Backbone(tiny, torch.float32, "cpu", rank=rank, alpha=alpha, seed=0)
    models = trained(backbone, examples_of(backbone, QUESTIONS[:4]))
    for each in models.heads.values():
        each.normalise(torch.tensor([0.5, -1.0, 2.0]))
    config = PpoConfig(rank=rank, alpha=alpha, value_from_reward=1)
    given = (backbone, pairs_of(backbone, QUESTIONS[:4]), [], References(backbone), sampler)
    rewards = RewardContext(lambda: models, lambda _: models, tmp_path)

    trainer = ppo.build(PolicyContext(*given, lambda _: rewards, lambda _: 1.0, str), config)

    rows = [Row([1, 20 + at, 30], [[50 + at, 51, 52], [60]]) for at in range(3)]
    with torch.no_grad():
        scores = [each[0] for each in models.scores(rows)]  # (R,) of the first model
        values = ppo.values_of(backbone, trainer.head, rows)
    # A score is of the mean state of a reply's tokens. Of that state, the value is the score: all weights are the same.
    name = next(iter(models.heads))
    assert backbone.rank_and_alpha(ppo.VALUE) == backbone.rank_and_alpha(name) != (rank, alpha)
    theirs = {key.replace(f".{name}.", ""): each for key, each in backbone.parameters(name).items()}
    ours = {key.replace(f".{ppo.VALUE}.", ""): each for key, each in backbone.parameters(ppo.VALUE).items()}
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    with torch.no_grad(), backbone.using(ppo.VALUE):
        states = [state_means(backbone, row) for row in rows]
    found = torch.cat([trainer.head(each) for each in states])
    assert torch.allclose(found, torch.cat(scores), atol=1e-4)
    assert all(len(each) == row.reply_tokens for each, row in zip(values, rows, strict=True))


def state_means(backbone: Backbone, row: Row) -> torch.Tensor:
    """The mean last hidden state of each reply's tokens, one text at a time: (R, d)."""
    means = []
    for reply in row.replies:
        packed = pack([Row(row.prompt_ids, [reply])])
        means.append(backbone.states(packed).index_select(0, packed.reply_at).float().mean(0))
    return torch.stack(means)


# What chats leave out


def test_the_gap_to_what_chats_sample_is_the_mass_that_top_p_leaves_out(tiny, sampler):
    backbone = Backbone(tiny, torch.float32, "cpu", rank=4, alpha=8, seed=0)
    sampler.forget()
    prompts = [[1, 20 + at, 30 + at, 40] for at in range(4)]
    served = sampler.write(prompts, 2, Sampling(temperature=policies.TEMPERATURE, top_p=0.6, max_tokens=5), seed=1)
    drawn = sampler.write(prompts, 2, sampling_of(policies.TEMPERATURE, 5), seed=1)
    scores = [[torch.tensor([2.0, 1.0])] * 4, [torch.tensor([1.0, 1.0])] * 3 + [torch.tensor([0.0, 1.0])]]

    found = policies.top_p_gap(backbone, served, drawn, scores)

    left = []
    for each in served:
        for reply in each.row.replies:
            with torch.no_grad(), backbone.as_reference():
                hidden = backbone.hidden([Row(each.row.prompt_ids, [reply])])
                whole = (backbone.logits(hidden) / policies.TEMPERATURE).softmax(-1)
            for place in whole.sort(descending=True).values:
                nucleus = int((place.cumsum(0) < 0.6).sum()) + 1  # the fewest tokens of that much mass
                left.append(-math.log(float(place[:nucleus].sum())))
    assert found["nats"] == pytest.approx(sum(left) / len(left), abs=1e-3)
    assert found["nats"] > 0.01
    assert found["reward"] == pytest.approx((0.5 * 3 + 1.0) / 4, abs=1e-3)
    assert found["replies"] == 16
    same = policies.top_p_gap(backbone, drawn, drawn, [scores[0], scores[0]])
    assert (same["nats"], same["reward"]) == (pytest.approx(0, abs=1e-4), 0)
