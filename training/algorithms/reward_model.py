"""Reward models trained on pairs, rankings and ties: an ensemble, one model after the other.

All feedback on one prompt is one example, so that all its pairs are in one batch (arXiv 2203.02155, section 3.5), and
its replies share a row. First a head is fitted to the base's hidden states, then head and adapter learn together (arXiv
2202.10054: from a random head, adapters learn to fit its noise). Each model has a seed of its own, for its initial
weights and the order of its examples.
"""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from feedback.records import methods
from training.algorithms.base import Method, Metrics, Trainer, TrainingContext
from training.algorithms.registry import register
from training.data.judged import JudgedPair, RewardExample, group_by_prompt, has_pair
from training.data.tokenize import NothingFits, TokenizedExample
from training.loop.config import MOST_MODELS, STRENGTH_MARGIN, Epochs, EpochsConfig, StrengthMargin, Weight
from training.loop.optim import apply_gradients, batch, schedule, within_memory
from training.loop.state import TrainState
from training.losses import preference
from training.model.packing import TOKENS_AT_ONCE, Row, together
from training.model.policy import Backbone
from training.model.reward_heads import RewardModels, ScoreHead, raw_scores, reply_states

FIT_STEPS = 50  # L-BFGS iterations at most


class RewardConfig(EpochsConfig):
    """The settings of reward models."""

    ensemble_size: int = Field(3, ge=1, le=MOST_MODELS, description="reward models in the ensemble")
    # With more, a reward model overfits its pairs (arXiv 2203.02155, section 3.5).
    epochs: Epochs = 1
    center_rewards_coefficient: Weight = Field(0.01, description="weight of the penalty that keeps scores centred on 0")
    strength_margin: StrengthMargin = STRENGTH_MARGIN
    samples: int = Field(64, ge=2, le=4096, description="replies of the reference that scores are normalised on")
    sample_tokens: int = Field(
        0, ge=0, le=8192, description="most tokens of each of these replies; 0: as many as the ledger's median reply"
    )


def name_of(member: int) -> str:
    """The name of a member's adapter."""
    return f"reward-{member}"


@torch.no_grad()
def base_states(backbone: Backbone, examples: Sequence[RewardExample]) -> list[Tensor]:
    """The base's mean hidden states of each example's K replies, for `fit`: (K, d) each, on the CPU."""
    rows, found = [example.row() for example in examples], [torch.zeros(0)] * len(examples)
    for group in together(rows, TOKENS_AT_ONCE):
        for at, states in zip(group, reply_states(backbone, None, [rows[at] for at in group]), strict=True):
            found[at] = states.cpu()
    return found


def fit(head: ScoreHead, examples: Sequence[RewardExample], states: Sequence[Tensor], config: RewardConfig) -> None:
    """Fit the head to the states (K, d) of the examples, with a Gaussian prior around its initial weights.

    Under the prior the margins of the examples have variance 1, whatever the states' scale. Where examples say nothing,
    a head keeps its initial weights, so members disagree there (randomised priors: arXiv 1806.03335).
    """
    # 1. the pairs of all examples side by side
    beside = [(of, each) for example, of in zip(examples, states, strict=True) for each in example.pairs]
    pairs = [each for _, each in beside]
    first = torch.stack([of[each.first] for of, each in beside])
    second = torch.stack([of[each.second] for of, each in beside])
    weight = torch.tensor([each.weight for each in pairs])
    precision = (first - second).square().sum(1).mean()

    # 2. minimise their loss plus the prior's
    ties = any(each.ties for each in pairs)
    own, began = copy.deepcopy(head).cpu(), head.weight.detach().cpu().clone()
    optimizer = torch.optim.LBFGS(own.parameters(), max_iter=FIT_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        of_pairs = pair_losses(own(first), own(second), pairs, own, config, ties)
        total = weight @ of_pairs + precision / 2 * (own.weight - began).square().sum() + prior(own)
        total.backward()
        return total

    optimizer.step(loss)
    head.load_state_dict(own.state_dict())


class EnsembleTrainer(Trainer):
    """Trains one member after the other; all are in one state, and only the current one changes."""

    def __init__(self, backbone: Backbone, examples: Sequence[RewardExample], config: RewardConfig) -> None:
        self.backbone, self.examples, self.config = backbone, examples, config
        self.steps_each, self.steps = config.count_steps(len(examples)), ensemble_steps(examples, config)
        self.ties = any(each.ties for example in examples for each in example.pairs)
        self.heads: dict[str, ScoreHead] = {}
        for member in range(config.ensemble_size):
            seed = config.seed * 100_003 + member
            backbone.add(name_of(member), config.rank, config.alpha, seed)
            self.heads[name_of(member)] = ScoreHead(backbone.head.shape[1], seed).to(backbone.device)

    @property
    def models(self) -> RewardModels:
        """The reward models being trained."""
        return RewardModels(self.backbone, self.heads)

    def begin(self) -> TrainState:
        """The initial state: every adapter and head as its seed made it."""
        parameters: dict[str, nn.Parameter] = {}
        for name, head in self.heads.items():
            parameters |= self.backbone.parameters(name)
            parameters |= {f"head.{name}.{key}": each for key, each in head.named_parameters()}
        return TrainState.over(parameters, self.config.learning_rate)

    def prepare(self, state: TrainState) -> None:
        """Fit every head to the base's hidden states of the examples."""
        states = base_states(self.backbone, self.examples)
        for head in self.heads.values():
            fit(head, self.examples, states, self.config)

    def step(self, state: TrainState) -> Metrics:
        # 1. the current member, and its batch in an order that its seed alone decides
        config, (member, own_step) = self.config, divmod(state.step, self.steps_each)
        name, seed = name_of(member), config.seed + 7 * member
        chosen = [self.examples[at] for at in batch(len(self.examples), config.batch_size, own_step, seed)]

        # 2. scores and gradients, a pack of rows at a time
        head = self.heads[name]
        compute = partial(gradients, self.backbone, head, name, chosen, config, self.ties, len(self.examples))
        loss, accuracy = within_memory(state, compute)

        # 3. one step; a finished member's optimiser state is dropped
        norm = apply_gradients(state, loss, config.learning_rate * schedule(own_step, self.steps_each))
        if own_step + 1 == self.steps_each:
            state.optimizer.state.clear()
        tokens = sum(example.row().tokens for example in chosen)
        return {"loss": loss, "accuracy": accuracy, "grad_norm": norm, "tokens": tokens}


def ensemble_steps(examples: Sequence[RewardExample], config: RewardConfig) -> int:
    """The total number of steps of all members."""
    return config.ensemble_size * config.count_steps(len(examples))


def gradients(
    backbone: Backbone,
    head: ScoreHead,
    name: str,
    examples: Sequence[RewardExample],
    config: RewardConfig,
    ties: bool,
    count: int,
    tokens_at_once: int,
) -> tuple[float, float]:
    """Accumulate the gradients of a batch's mean loss, and of the prior's share in one of `count` examples.

    Returns the loss, and the share of preferences that the scores get right.
    """
    rows = [example.row() for example in examples]
    total, right, judged = 0.0, 0, 0
    for group in together(rows, tokens_at_once):
        loss = torch.zeros((), device=backbone.device)
        found = raw_scores(backbone, name, head, [rows[at] for at in group])
        for at, scores in zip(group, found, strict=True):
            loss = loss + lesson_loss(scores, examples[at], head, config, ties)
            decided = [each for each in examples[at].pairs if each.wins > 0.5 * (1 - each.ties)]
            right += sum(bool(scores[each.first] > scores[each.second]) for each in decided)
            judged += len(decided)
        (loss / len(rows)).backward()
        total += loss.item() / len(rows)
    (prior(head) / count).backward()
    return total, right / max(1, judged)


def lesson_loss(scores: Tensor, example: RewardExample, head: ScoreHead, config: RewardConfig, ties: bool) -> Tensor:
    """The loss of an example, the weighted sum over its pairs, from its replies' scores (K,): a scalar.

    If any example has a tie, all pairs use Davidson's model, of which Bradley and Terry's is the limit.
    """
    first, second = (scores[[getattr(each, side) for each in example.pairs]] for side in ("first", "second"))
    weights = torch.tensor([each.weight for each in example.pairs], device=scores.device)
    return weights @ pair_losses(first, second, example.pairs, head, config, ties)


def pair_losses(
    first: Tensor, second: Tensor, pairs: Sequence[JudgedPair], head: ScoreHead, config: RewardConfig, ties: bool
) -> Tensor:
    """The losses (P,) of pairs, unweighted, from both scores (P,); `ties`: whether any example has a tie."""
    wins, tied, strength = (
        torch.tensor([getattr(each, what) for each in pairs]).to(first) for what in ("wins", "ties", "strength")
    )
    margin = config.strength_margin * strength
    if not ties:
        return preference.bradley_terry_loss(first, second, margin, wins, config.center_rewards_coefficient)
    loss = preference.soft_davidson_loss(first, second, wins, tied, head.log_tie, margin)
    return loss + config.center_rewards_coefficient * (first + second) ** 2


def prior(head: ScoreHead) -> Tensor:
    """Minus the log-density of a unit Gaussian at `log_tie`, which ties alone would raise without bound: a scalar."""
    return head.log_tie.square() / 2


def normalise(models: RewardModels, samples: Sequence[Row]) -> None:
    """Normalise every model's scores to mean 0 and standard deviation 1 on replies of the reference model."""
    with torch.no_grad():
        for name, head in models.heads.items():
            head.normalise(torch.cat(models.raw_scores(name, samples)))


def margins(models: RewardModels, examples: Sequence[TokenizedExample]) -> tuple[list[float], list[int]]:
    """The ensemble's margin on every preference, and by how many tokens the preferred reply is longer."""
    examples = [each for each in examples if each.field == "pairs"]
    found = zip(examples, models.scores([example.row() for example in examples]), strict=True)
    apart: list[float] = []
    longer_by: list[int] = []
    for example, scores in found:
        mean = scores.mean(0)
        for each in example.preferences:
            apart.append(float(mean[each.chosen] - mean[each.rejected]))
            longer_by.append(len(example.replies[each.chosen]) - len(example.replies[each.rejected]))
    return apart, longer_by


def build(context: TrainingContext, config: RewardConfig) -> EnsembleTrainer:
    """The trainer of a night. Raises `NothingFits` without a pair."""
    if not has_pair(context.examples):
        raise NothingFits("reward models learn from comparisons, rankings and corrections, and there are none here")
    return EnsembleTrainer(context.backbone, group_by_prompt(context.examples), config)


register(Method(methods.REWARD, ("pairs", "ties"), RewardConfig, build, makes_adapter=False, needs=("pairs",)))
