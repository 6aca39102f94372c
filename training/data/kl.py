"""How far a policy is from the base: the one KL of budgets, gate, cards, rehearsals and plots.

It is the exact KL(policy || base) of the next token over the whole vocabulary, at temperature 1, in nats; the mean over
the reply tokens of some texts. Half of the texts are samples of the models' own, the other half replies that people
judged. Its error is over replies, as the tokens of one reply are alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from scipy.stats import t as student
from torch import Tensor

from training.data.tokenize import TokenizedExample
from training.losses import policy_gradient
from training.model.packing import TOKENS_AT_ONCE, Row, together
from training.model.policy import IN_CACHE, Backbone, positions_at_once

AT_LOOKS, AT_THE_END = 32, 128  # replies, while a policy trains, and for its gate and its card
STAGE = 4  # replies that are read before it is asked whether they tell enough
SURE = 0.95  # confidence that a KL is on one side of the budget, for no more replies to be read
TOLERATED = 2.0  # standard errors by which the KL of a trained adapter may be beyond its budget
T = TypeVar("T")


@dataclass(frozen=True)
class Kl:
    """A measured KL from the base."""

    mean: float  # nats per token
    error: float = math.nan  # its standard error; NaN where a single reply cannot tell
    replies: int = 0
    own: int = 0  # of the replies, those that are samples of the models' own

    @property
    def words(self) -> str:
        """What it is, in words: "0.210 ± 0.020 nats per token, exact, T=1, 128 replies, half of them its own"."""
        error = f" ± {self.error:.3f}" if math.isfinite(self.error) else ""
        replies = f"{self.replies} {'reply' if self.replies == 1 else 'replies'}"
        own = "half" if 2 * self.own == self.replies else "all" if self.own == self.replies else str(self.own or "none")
        return f"{self.mean:.3f}{error} nats per token, exact, T=1, {replies}, {own} of them its own"

    def within(self, budget: float) -> bool:
        """Whether it is within a budget, as far as its error tells."""
        return self.mean - (TOLERATED * self.error if math.isfinite(self.error) else 0.0) <= budget

    def metrics(self) -> dict[str, float]:
        """The figure as metrics of a step or a card."""
        error = {"kl_error": self.error} if math.isfinite(self.error) else {}
        return {"kl": self.mean, **error, "kl_replies": self.replies, "kl_own": self.own}


@dataclass
class Texts:
    """Replies that are read in one go, in packs, and the base's last hidden states at their tokens."""

    rows: Sequence[Row]
    own: int  # of the rows
    packs: list[list[Row]] = field(init=False)
    base: list[Tensor] | None = None  # (N, d) for each pack; None: not computed yet

    def __post_init__(self) -> None:
        self.packs = [[self.rows[at] for at in group] for group in together(self.rows, TOKENS_AT_ONCE)]


class KlFromBase:
    """Measures the KL of a backbone's policy, whichever it is then, on the same texts each time.

    `own` are rows of one sampled reply each. Of examples, each reply counts that people judged. Of both the same number
    is taken, at most half of `AT_THE_END`; where there is only one kind, that many of it.
    """

    def __init__(self, backbone: Backbone, own: Sequence[Row], examples: Sequence[TokenizedExample]) -> None:
        self._backbone = backbone
        judged = judged_rows(examples)
        each = min(len(own), len(judged), AT_THE_END // 2)
        if own and judged:
            rows = [row for both in zip(spread(own, each), spread(judged, each), strict=True) for row in both]
        else:
            rows = spread([*own, *judged], AT_THE_END)
        theirs = {id(row) for row in own}
        stages = [rows[at : at + STAGE] for at in range(0, len(rows), STAGE)]
        self._stages = [Texts(some, sum(id(row) in theirs for row in some)) for some in stages]

    def measure(self) -> Kl:
        """The KL of the policy as it is now, on all texts; 0 if there are none."""
        return self._measured(self._stages)

    def look(self, budget: float) -> Kl:
        """The same on `AT_LOOKS` of them, or on fewer if these tell surely whether it is within the budget."""
        return self._measured(self._stages[: AT_LOOKS // STAGE], budget)

    @torch.no_grad()
    def _measured(self, stages: Sequence[Texts], budget: float | None = None) -> Kl:
        sums, tokens, own, found = torch.zeros(0), torch.zeros(0), 0, Kl(0.0)
        for texts in stages:
            for rows, kls in zip(texts.packs, self._per_token(texts), strict=True):
                parts = kls.cpu().split([row.reply_tokens for row in rows])
                sums = torch.cat([sums, torch.stack([part.sum() for part in parts])])
                tokens = torch.cat([tokens, torch.tensor([float(row.reply_tokens) for row in rows])])
            own += texts.own
            mean, error = mean_and_error(sums / tokens, tokens)
            found = Kl(mean, error, len(tokens), own)
            # A NaN, of one reply or of a broken policy, is never sure.
            if budget is not None and abs(mean - budget) > student.ppf((1 + SURE) / 2, len(tokens) - 1) * error:
                break
        return found

    def _per_token(self, texts: Texts) -> list[Tensor]:
        """KL(policy || base) at every reply token of each pack: (N,) nats."""
        backbone = self._backbone
        if texts.base is None:
            with backbone.as_base():
                texts.base = [backbone.hidden(rows) for rows in texts.packs]
        found: list[Tensor] = []
        most = positions_at_once(backbone.head)
        for rows, base in zip(texts.packs, texts.base, strict=True):
            policy = backbone.hidden(rows)
            parts: list[Tensor] = []
            for at in range(0, len(policy), most):
                ours, theirs = (backbone.logits(each[at : at + most]).split(IN_CACHE) for each in (policy, base))
                parts += map(policy_gradient.kl_per_position, ours, theirs)
            found.append(torch.cat(parts))
        return found


def judged_rows(examples: Sequence[TokenizedExample]) -> list[Row]:
    """A row for each reply of the examples that somebody judged or wrote."""
    return [
        each.row(which)
        for each in examples
        for which in range(1 if each.kind == "thumb" else len(each.replies))  # a thumb's other reply is mismatched
    ]


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, chosen at random but always the same; fewer are the first ones of more."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    return [items[at] for at in order[:most]]


def mean_and_error(values: Tensor, weights: Tensor) -> tuple[float, float]:
    """The weighted mean of values (N,), and its standard error: with equal weights s / sqrt(N), NaN of one value."""
    share = weights / weights.sum()
    mean = (share * values).sum()
    alike = share.square().sum()  # 1 over the effective number of values (Kish, "Survey Sampling", 1965)
    error = ((share * (values - mean)).square().sum() / (1 - alike)).sqrt()
    return float(mean), float(error)
