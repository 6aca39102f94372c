"""How far a policy is from the base: the one KL of budgets, gate, cards, rehearsals and plots.

It is the exact KL(policy || base) of the next token over the whole vocabulary, at temperature 1, in nats; the mean over
the reply tokens of some texts. Half of the texts are samples of the models' own, the other half replies that people
judged. Its error is over prompts, as the tokens of replies to one prompt are alike; replies to one prompt are read in
one go.
"""

import math
from collections import Counter
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
TO_A_PROMPT = 2  # replies of either half that are taken before other prompts have been
STAGE = 2 * TO_A_PROMPT  # replies that are read before it is asked whether they tell enough
SURE = 0.95  # confidence that a KL is on one side of the budget, for no more replies to be read
TOLERATED = 2.0  # standard errors by which the KL of a trained adapter may be beyond its budget
T = TypeVar("T")


@dataclass(frozen=True)
class Kl:
    """A measured KL from the base."""

    mean: float  # nats per token
    error: float = math.nan  # its standard error; NaN where a single prompt cannot tell
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
        self._backbone, self._stages = backbone, list[Texts]()
        halves = by_prompt([own, judged_rows(examples)])
        least, stage = min(map(len, halves)), TO_A_PROMPT
        if least:
            halves = [half[: min(least, AT_THE_END // 2)] for half in halves]
        else:
            halves, stage = [half[:AT_THE_END] for half in halves], STAGE
        for at in range(0, max(map(len, halves)), stage):
            ours, judged = (half[at : at + stage] for half in halves)
            self._stages.append(Texts([*ours, *judged], len(ours)))

    def measure(self) -> Kl:
        """The KL of the policy as it is now, on all texts; 0 if there are none."""
        return self._measured(self._stages)

    def look(self, budget: float) -> Kl:
        """The same on `AT_LOOKS` of them, or on fewer if these tell surely whether it is within the budget."""
        return self._measured(self._stages[: AT_LOOKS // STAGE], budget)

    @torch.no_grad()
    def _measured(self, stages: Sequence[Texts], budget: float | None = None) -> Kl:
        of_prompts: dict[tuple[int, ...], Tensor] = {}  # KL summed over reply tokens, and their number
        replies, own, found = 0, 0, Kl(0.0)
        for texts in stages:
            for rows, kls in zip(texts.packs, self._per_token(texts), strict=True):
                for row, part in zip(rows, kls.cpu().split([row.reply_tokens for row in rows]), strict=True):
                    prompt, told = tuple(row.prompt_ids), torch.tensor([float(part.double().sum()), len(part)])
                    of_prompts[prompt] = of_prompts.get(prompt, torch.zeros(2)) + told
            replies, own = replies + len(texts.rows), own + texts.own
            sums, tokens = torch.stack(list(of_prompts.values())).T
            mean, error = mean_and_error(sums / tokens, tokens)
            found = Kl(mean, error, replies, own)
            # A NaN, of one prompt or of a broken policy, is never sure.
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


def by_prompt(halves: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """The rows of each half in an order that chance decides, always the same, but for what makes them cheap to read.

    Rows with one prompt follow each other, `TO_A_PROMPT` at most before it is another's turn, and prompts that all
    halves have come first and in the same order.
    """
    prompts = [dict.fromkeys(tuple(row.prompt_ids) for row in half) for half in halves]
    every = list(dict.fromkeys(prompt for half in prompts for prompt in half))
    place = {prompt: at for at, prompt in enumerate(spread(every, len(every)))}
    ordered = []
    for half in halves:
        seen: Counter[tuple[int, ...]] = Counter()
        keys = []
        for number, row in enumerate(half):
            prompt = tuple(row.prompt_ids)
            shared = all(prompt in each for each in prompts)
            keys.append((seen[prompt] // TO_A_PROMPT, not shared, place[prompt], number))
            seen[prompt] += 1
        ordered.append([half[number] for *_, number in sorted(keys)])
    return ordered


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
