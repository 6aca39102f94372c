"""Reward models trained on pairs, rankings, ties and thumbs: an ensemble, one model after the other.

All feedback on one prompt is one example, so that all its pairs are in one batch (arXiv 2203.02155, section 3.5), and
its replies share a row. First a head is fitted to the base's hidden states, then head and adapter learn together (arXiv
2202.10054: from a random head, adapters learn to fit its noise). Each model has a seed of its own, for its initial
weights, the prompts that it draws and the order of its examples.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from feedback.records import methods
from training.algorithms.base import Method, Metrics, Trainer, TrainingContext
from training.algorithms.registry import register
from training.data.judged import JudgedPair, JudgedReply, RewardExample, group_by_prompt, has_contrast
from training.data.tokenize import NothingFits, TokenizedExample
from training.loop.config import MOST_MODELS, STRENGTH_MARGIN, Epochs, EpochsConfig, StrengthMargin, Switch, Weight
from training.loop.optim import apply_gradients, batch, schedule, within_memory
from training.loop.state import TrainState
from training.losses import preference
from training.model.packing import TOKENS_AT_ONCE, Row, together
from training.model.policy import Backbone
from training.model.reward_heads import RewardModels, ScoreHead, raw_scores, reply_states

FIT_STEPS = 50  # L-BFGS iterations at most
LEARNED, NEEDED = ("pairs", "ties", "thumbs"), ("pairs", "thumbs")  # as `Method.learns_from` and `Method.needs`


class RewardConfig(EpochsConfig):
    """The settings of reward models."""

    ensemble_size: int = Field(3, ge=1, le=MOST_MODELS, description="reward models in the ensemble")
    bootstrap: Switch = Field(
        1, description="1: each of several models learns from as many prompts as there are, drawn with replacement"
    )
    # With more, a reward model overfits its pairs (arXiv 2203.02155, section 3.5).
    epochs: Epochs = 1
    center_rewards_coefficient: Weight = Field(0.01, description="weight of the penalty that keeps scores centred on 0")
    thumb_weight: Weight = Field(1.0, description="weight of thumbs in the objective")
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


class RaterBias(nn.Module):
    """How high a score must be for each of U raters to give a thumb up, in fp32; 0 to begin with, and never saved."""

    def __init__(self, examples: Iterable[RewardExample]) -> None:
        super().__init__()
        raters = dict.fromkeys(thumb.user for example in examples for thumb in example.thumbs)
        self.number = {user: number for number, user in enumerate(raters)}
        self.value = nn.Parameter(torch.zeros(len(raters)))

    def forward(self, thumbs: Sequence[JudgedReply]) -> Tensor:
        """The bias (T,) of each thumb's rater."""
        return self.value[[self.number[each.user] for each in thumbs]]


@dataclass(frozen=True)
class Member:
    """One reward model in training."""

    name: str  # of its adapter
    head: ScoreHead
    bias: RaterBias
    ties: bool  # whether any example has a tie: all pairs are then scored by Davidson's model
    learned: Sequence[int] = ()  # indices of the examples that it learns from, with repetitions

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained besides the adapter, by name."""
        found = {f"head.{self.name}.{key}": each for key, each in self.head.named_parameters()}
        return found | ({f"bias.{self.name}": self.bias.value} if len(self.bias.value) else {})

    def prior(self) -> Tensor:
        """Minus the log-density of unit Gaussians at `log_tie` and at the raters' biases: a scalar.

        Without it ties alone would raise the one without bound, and a rater who only says yes the other.
        """
        return (self.head.log_tie.square() + self.bias.value.square().sum()) / 2


def fit(member: Member, examples: Sequence[RewardExample], states: Sequence[Tensor], config: RewardConfig) -> None:
    """Fit head and biases to the states (K, d) of the examples, with a Gaussian prior around the initial weights.

    Under the prior the margins of the examples have variance 1, whatever the states' scale. Where examples say nothing,
    a head keeps its initial weights, so members disagree there (randomised priors: arXiv 1806.03335).
    """
    # 1. the pairs and thumbs of all examples side by side
    both = list(zip(examples, states, strict=True))
    first, second, judged = (
        stacked([of[getattr(each, side)] for example, of in both for each in getattr(example, what)])
        for what, side in (("pairs", "first"), ("pairs", "second"), ("thumbs", "reply"))
    )
    pairs = [each for example in examples for each in example.pairs]
    thumbs = [each for example in examples for each in example.thumbs]
    own = copy.deepcopy(member.head).cpu(), copy.deepcopy(member.bias).cpu()
    began, trial = own[0].weight.detach().clone(), replace(member, head=own[0], bias=own[1])
    precision = (first - second).square().sum(1).mean() if pairs else 2 * judged.var(0, correction=0).sum()

    # 2. minimise their loss plus the prior's
    parameters = [each for module in own for each in module.parameters() if each.numel()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=FIT_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = precision / 2 * (trial.head.weight - began).square().sum() + trial.prior()
        if pairs:
            total = total + pairs_loss(trial.head(first), trial.head(second), pairs, trial, config)
        if thumbs:
            total = total + thumbs_loss(trial.head(judged), thumbs, trial, config)
        total.backward()
        return total

    optimizer.step(loss)
    member.head.load_state_dict(own[0].state_dict())
    member.bias.load_state_dict(own[1].state_dict())


def stacked(states: Sequence[Tensor]) -> Tensor:
    """States (d,) as one (N, d); (0, 0) of none."""
    return torch.stack(list(states)) if states else torch.zeros(0, 0)


class EnsembleTrainer(Trainer):
    """Trains one member after the other; all are in one state, and only the current one changes."""

    def __init__(self, backbone: Backbone, examples: Sequence[RewardExample], config: RewardConfig) -> None:
        self.backbone, self.examples, self.config = backbone, examples, config
        self.steps_each, self.steps = config.count_steps(len(examples)), ensemble_steps(examples, config)
        ties = any(each.ties for example in examples for each in example.pairs)
        self.members: list[Member] = []
        for number in range(config.ensemble_size):
            seed = config.seed * 100_003 + number
            backbone.add(name_of(number), config.rank, config.alpha, seed)
            head = ScoreHead(backbone.head.shape[1], seed).to(backbone.device)
            bias = RaterBias(examples).to(backbone.device)
            drawn = bootstrap(examples, seed) if config.bootstrap and config.ensemble_size > 1 else range(len(examples))
            self.members.append(Member(name_of(number), head, bias, ties, drawn))

    @property
    def models(self) -> RewardModels:
        """The reward models being trained."""
        return RewardModels(self.backbone, {each.name: each.head for each in self.members})

    def begin(self) -> TrainState:
        """The initial state: every adapter and head as its seed made it."""
        parameters: dict[str, nn.Parameter] = {}
        for each in self.members:
            parameters |= self.backbone.parameters(each.name) | each.parameters()
        return TrainState.over(parameters, self.config.learning_rate)

    def prepare(self, state: TrainState) -> None:
        """Fit every head to the base's hidden states of the examples."""
        states = base_states(self.backbone, self.examples)
        for member in self.members:
            own = [(self.examples[at], states[at]) for at in member.learned]
            fit(member, [example for example, _ in own], [each for _, each in own], self.config)

    def step(self, state: TrainState) -> Metrics:
        # 1. the current member, and its batch in an order that its seed alone decides
        config, (number, own_step) = self.config, divmod(state.step, self.steps_each)
        member, seed = self.members[number], config.seed + 7 * number
        order = batch(len(self.examples), config.batch_size, own_step, seed)
        chosen = [self.examples[member.learned[at]] for at in order]

        # 2. scores and gradients, a pack of rows at a time
        compute = partial(gradients, self.backbone, member, chosen, config, len(self.examples))
        loss, accuracy = within_memory(state, compute)

        # 3. one step; a finished member's optimiser state is dropped
        norm = apply_gradients(state, loss, config.learning_rate * schedule(own_step, self.steps_each))
        if own_step + 1 == self.steps_each:
            state.optimizer.state.clear()
        tokens = sum(example.row().tokens for example in chosen)
        return {"loss": loss, "accuracy": accuracy, "grad_norm": norm, "tokens": tokens}


def bootstrap(examples: Sequence[RewardExample], seed: int) -> list[int]:
    """The indices of as many examples, drawn with replacement (arXiv 1706.03741, section 2.2.3).

    There is contrast among them: a pair if the examples have any, else thumbs of both kinds.
    """
    chance = torch.Generator().manual_seed(seed)
    while True:
        drawn = torch.randint(len(examples), (len(examples),), generator=chance).tolist()
        if contrast(examples[at] for at in drawn) == contrast(examples):
            return drawn


def contrast(examples: Iterable[RewardExample]) -> str:
    """What says of a reply in these that it is better than another: "pairs", or else "thumbs", or else nothing."""
    examples = list(examples)
    if any(pair.wins > pair.losses for example in examples for pair in example.pairs):
        return "pairs"
    kinds = {thumb.wanted for example in examples for thumb in example.thumbs}
    return "thumbs" if len(kinds) == 2 else ""


def ensemble_steps(examples: Sequence[RewardExample], config: RewardConfig) -> int:
    """The total number of steps of all members."""
    return config.ensemble_size * config.count_steps(len(examples))


def gradients(
    backbone: Backbone,
    member: Member,
    examples: Sequence[RewardExample],
    config: RewardConfig,
    count: int,
    tokens_at_once: int,
) -> tuple[float, float]:
    """Accumulate the gradients of a batch's mean loss, and of the prior's share in one of `count` examples.

    Returns the loss, and the share of preferences and thumbs that the scores get right.
    """
    rows = [example.row() for example in examples]
    total, right = 0.0, list[bool]()
    for group in together(rows, tokens_at_once):
        loss = torch.zeros((), device=backbone.device)
        found = raw_scores(backbone, member.name, member.head, [rows[at] for at in group])
        for at, scores in zip(group, found, strict=True):
            loss = loss + lesson_loss(scores, examples[at], member, config)
            right += told_right(scores.detach(), examples[at], member)
        (loss / len(rows)).backward()
        total += loss.item() / len(rows)
    (member.prior() / count).backward()
    return total, sum(right) / max(1, len(right))


def told_right(scores: Tensor, example: RewardExample, member: Member) -> list[bool]:
    """Whether the scores (K,) of an example get each preference and each thumb right; ties and draws are left out."""
    decided = [each for each in example.pairs if each.wins > each.losses]
    above = scores[[each.reply for each in example.thumbs]] > member.bias(example.thumbs)
    thumbs = [up == each.wanted for up, each in zip(above.tolist(), example.thumbs, strict=True)]
    return [bool(scores[each.first] > scores[each.second]) for each in decided] + thumbs


def lesson_loss(scores: Tensor, example: RewardExample, member: Member, config: RewardConfig) -> Tensor:
    """The loss of an example, the weighted sum over its pairs and thumbs, from its replies' scores (K,): a scalar."""
    loss = torch.zeros((), device=scores.device)
    if example.pairs:
        first, second = (scores[[getattr(each, side) for each in example.pairs]] for side in ("first", "second"))
        loss = loss + pairs_loss(first, second, example.pairs, member, config)
    if example.thumbs:
        judged = scores[[each.reply for each in example.thumbs]]
        loss = loss + thumbs_loss(judged, example.thumbs, member, config)
    return loss


def pairs_loss(
    first: Tensor, second: Tensor, pairs: Sequence[JudgedPair], member: Member, config: RewardConfig
) -> Tensor:
    """The weighted sum of the losses of pairs, from both scores (P,): a scalar."""
    wins, ties, strength, weight = (
        torch.tensor([getattr(each, what) for each in pairs]).to(first)
        for what in ("wins", "ties", "strength", "weight")
    )
    margin = config.strength_margin * strength
    if member.ties:
        losses = preference.soft_davidson_loss(first, second, wins, ties, member.head.log_tie, margin)
    else:
        losses = preference.bradley_terry_loss(first, second, margin, wins)
    return weight @ (losses + config.center_rewards_coefficient * (first + second) ** 2)


def thumbs_loss(scores: Tensor, thumbs: Sequence[JudgedReply], member: Member, config: RewardConfig) -> Tensor:
    """The weighted sum of the losses of thumbs, from their replies' scores (T,): a scalar."""
    wanted, weight = (
        torch.tensor([getattr(each, what) for each in thumbs]).to(scores) for what in ("wanted", "weight")
    )
    return config.thumb_weight * weight @ preference.thumb_loss(scores, member.bias(thumbs), wanted)


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
    """The trainer of a night. Raises `NothingFits` where nothing says that one reply is better than another."""
    if not has_contrast(context.examples):
        raise NothingFits("reward models learn from preferences and from thumbs of both kinds, and there are none here")
    return EnsembleTrainer(context.backbone, group_by_prompt(context.examples), config)


register(
    Method(
        methods.REWARD,
        LEARNED,
        RewardConfig,
        build,
        makes_adapter=False,
        needs=NEEDED,
        needs_contrast=True,
    )
)
