"""Reward models trained on pairs, rankings and ties: an ensemble, one model after the other.

All feedback on one prompt is one example and weighs as one, however many pairs it holds (arXiv 2203.02155, section
3.5), and its replies share a row. First a head is fitted to the base's hidden states, then head and adapter learn
together (arXiv 2202.10054: from a random head, adapters learn to fit its noise). Each model has a seed of its own, for
its initial weights and the order of its examples.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from feedback.example_types import TIE
from feedback.records import methods
from training.algorithms.base import Method, Metrics, Trainer, TrainingContext
from training.algorithms.registry import register
from training.data.tokenize import NothingFits, TokenizedExample
from training.loop.config import MOST_MODELS, Epochs, EpochsConfig, Weight
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
    samples: int = Field(64, ge=2, le=4096, description="replies of the reference that scores are normalised on")
    sample_tokens: int = Field(
        0, ge=0, le=8192, description="most tokens of each of these replies; 0: as many as the ledger's median reply"
    )


@dataclass(frozen=True)
class RewardExample:
    """One prompt, K replies to it, and the preferences and ties among them."""

    prompt_ids: list[int]
    replies: tuple[list[int], ...]
    preferred: tuple[tuple[int, int], ...]  # indices of replies, the better one first
    tied: tuple[tuple[int, int], ...] = ()
    weight: float = 1.0
    weights: tuple[float, ...] = ()  # of the pairs, ties last; empty: all the same

    def row(self) -> Row:
        """The row of the prompt with all replies."""
        return Row(self.prompt_ids, self.replies)

    def shares(self) -> list[float]:
        """Each pair's share of the example, ties last; the shares sum to 1."""
        weights = self.weights or (1.0,) * (len(self.preferred) + len(self.tied))
        return [weight / sum(weights) for weight in weights]


def group_by_prompt(examples: Sequence[TokenizedExample]) -> list[RewardExample]:
    """Group pairs and ties by prompt, in the order of first appearance; thumbs and demonstrations are left out.

    Within a prompt each pair counts by its weight, and the prompt's weight is the mean of those weights, weighted by
    themselves: a person of little weight neither outvotes the others nor takes their weight away.
    """
    Weighed = list[tuple[tuple[int, int], float]]
    gathered: dict[tuple[int, ...], tuple[list[list[int]], Weighed, Weighed]] = {}
    for example in examples:
        if example.kind in ("thumb", "demonstration"):
            continue
        replies, preferred, equal = gathered.setdefault(tuple(example.prompt_ids), ([], [], []))
        replies += [reply for reply in example.replies if reply not in replies]
        first, second = (replies.index(reply) for reply in example.replies)
        (equal if example.kind == TIE else preferred).append(((first, second), example.weight))
    made = []
    for prompt, (replies, preferred, equal) in gathered.items():
        pairs, tied = (tuple(pair for pair, _ in each) for each in (preferred, equal))
        weights = tuple(weight for _, weight in [*preferred, *equal])
        weight = sum(each**2 for each in weights) / sum(weights)
        made.append(RewardExample(list(prompt), tuple(replies), pairs, tied, weight, weights))
    return made


def has_pair(examples: Sequence[TokenizedExample]) -> bool:
    """Whether any of these prefers a reply to another, which a reward model cannot do without."""
    return any(example.field == "pairs" for example in examples)


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
    # 1. the pairs of all examples side by side; those of one example weigh as one
    better: list[Tensor] = []
    worse: list[Tensor] = []
    tied: list[bool] = []
    weights: list[float] = []
    for example, of_replies in zip(examples, states, strict=True):
        pairs = pairs_of(example)
        better += [of_replies[a] for a, _ in pairs]
        worse += [of_replies[b] for _, b in pairs]
        tied += [at >= len(example.preferred) for at in range(len(pairs))]
        weights += [example.weight * share for share in example.shares()]
    first, second, is_tie = torch.stack(better), torch.stack(worse), torch.tensor(tied)
    weight = torch.tensor(weights) * len(examples) / sum(weights)
    precision = (first - second).square().sum(1).mean()

    # 2. minimise their loss plus the prior's
    own, began = copy.deepcopy(head).cpu(), head.weight.detach().cpu().clone()
    optimizer = torch.optim.LBFGS(own.parameters(), max_iter=FIT_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        of_pairs = pair_losses(own(first), own(second), is_tie, own, config.center_rewards_coefficient, any(tied))
        total = weight @ of_pairs + precision / 2 * (own.weight - began).square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    head.load_state_dict(own.state_dict())


class EnsembleTrainer(Trainer):
    """Trains one member after the other; all are in one state, and only the current one changes."""

    def __init__(self, backbone: Backbone, examples: Sequence[RewardExample], config: RewardConfig) -> None:
        self.backbone, self.examples, self.config = backbone, examples, config
        self.steps_each, self.steps = config.count_steps(len(examples)), ensemble_steps(examples, config)
        self.ties = any(example.tied for example in examples)
        self.full_weight = max(example.weight for example in examples)
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
        compute = partial(gradients, self.backbone, head, name, chosen, config, self.ties, self.full_weight)
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
    full_weight: float,
    tokens_at_once: int,
) -> tuple[float, float]:
    """Accumulate the gradients of a batch's mean loss, each example weighted relative to `full_weight`.

    Returns the loss, and the share of preferences that the scores get right.
    """
    rows, weight = [example.row() for example in examples], full_weight * len(examples)
    total, right, count = 0.0, 0, 0
    for group in together(rows, tokens_at_once):
        loss = torch.zeros((), device=backbone.device)
        found = raw_scores(backbone, name, head, [rows[at] for at in group])
        for at, scores in zip(group, found, strict=True):
            example = examples[at]
            loss = loss + example.weight * lesson_loss(scores, example, head, config.center_rewards_coefficient, ties)
            right += sum(bool(scores[a] > scores[b]) for a, b in example.preferred)
            count += len(example.preferred)
        (loss / weight).backward()
        total += loss.item() / weight
    return total, right / max(1, count)


def lesson_loss(
    scores: Tensor, example: RewardExample, head: ScoreHead, center_rewards_coefficient: float, ties: bool
) -> Tensor:
    """The weighted mean loss over all pairs of an example, from its replies' scores (K,): a scalar.

    If any example has a tie, all pairs use Davidson's model, of which Bradley and Terry's is the limit.
    """
    pairs = pairs_of(example)
    first, second = scores[[a for a, _ in pairs]], scores[[b for _, b in pairs]]
    tied = torch.arange(len(pairs), device=scores.device) >= len(example.preferred)
    shares = torch.tensor(example.shares(), device=scores.device)
    return shares @ pair_losses(first, second, tied, head, center_rewards_coefficient, ties)


def pair_losses(
    first: Tensor, second: Tensor, tied: Tensor, head: ScoreHead, center_rewards_coefficient: float, ties: bool
) -> Tensor:
    """The losses (P,) of pairs, from both scores and whether they tied; `ties`: whether any example has a tie."""
    if not ties:
        return preference.bradley_terry_loss(first, second, center_rewards_coefficient=center_rewards_coefficient)
    return (
        preference.davidson_loss(first, second, (~tied).long(), head.log_tie)
        + center_rewards_coefficient * (first + second) ** 2
    )


def pairs_of(example: RewardExample) -> list[tuple[int, int]]:
    """The preferences of an example, followed by its ties."""
    return [*example.preferred, *example.tied]


def normalise(models: RewardModels, samples: Sequence[Row]) -> None:
    """Normalise every model's scores to mean 0 and standard deviation 1 on replies of the reference model."""
    with torch.no_grad():
        for name, head in models.heads.items():
            head.normalise(torch.cat(models.raw_scores(name, samples)))


def margins(models: RewardModels, examples: Sequence[RewardExample]) -> tuple[list[float], list[int]]:
    """The ensemble's margin on every preference, and by how many tokens the preferred reply is longer."""
    found = zip(examples, models.scores([example.row() for example in examples]), strict=True)
    apart: list[float] = []
    longer_by: list[int] = []
    for example, scores in found:
        mean = scores.mean(0)
        apart += [float(mean[a] - mean[b]) for a, b in example.preferred]
        longer_by += [len(example.replies[a]) - len(example.replies[b]) for a, b in example.preferred]
    return apart, longer_by


def build(context: TrainingContext, config: RewardConfig) -> EnsembleTrainer:
    """The trainer of a night. Raises `NothingFits` without a pair."""
    if not has_pair(context.examples):
        raise NothingFits("reward models learn from comparisons, rankings and corrections, and there are none here")
    return EnsembleTrainer(context.backbone, group_by_prompt(context.examples), config)


register(Method(methods.REWARD, ("pairs", "ties"), RewardConfig, build, makes_adapter=False, needs=("pairs",)))
