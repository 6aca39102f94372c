"""What held-out feedback says of a candidate: does it raise the probability of what people prefer, and of what not?

A comparison, ranking or correction sides with the candidate if that raises the token probability of the preferred reply
by more than that of the other, in comparison with the serving adapter. So does a liked reply beside a disliked one: of
the same conversation, else of the same person, else of two people. Each conversation is one vote of a person.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from feedback.database.database import Database
from feedback.example_types import Example, Examples, UnpairedExample
from feedback.examples.split import opening
from feedback.raters import evidence
from feedback.raters.evidence import Votes
from feedback.raters.reliability import PEOPLE
from feedback.records.decisions import Side
from training.data.scoring import gains_of, groups
from training.data.tokenize import Encoder, TokenizedExample, tokenize
from training.model.packing import Row
from training.model.policy import Backbone
from training.model.reference import References


@dataclass(frozen=True)
class HeldOut:
    """What the held-out conversations say of a candidate; without a look, only how many there are."""

    conversations: int  # that may judge
    next_look: int  # conversations at which a candidate is looked at next
    looked: bool = False
    people: int = 0  # who are counted
    odd: int = 0  # who are left out for an odd record
    count: float = 0.0  # conversations that are no draw, of those who are counted
    preferred: float = 0.0  # of these, in favour of the candidate
    rate: float = 0.5  # mean over people
    low: float = 0.0  # of its 95 % interval
    high: float = 1.0
    alpha: float = 0.0  # the chance of a false promotion that the look takes
    promotes: bool = False
    refuses: bool = False
    may_challenge: bool = True

    @property
    def words(self) -> str:
        """It in words, for the gate's reason."""
        if not self.looked and not self.next_look:
            return "no look before a part of this year's risk is a year old"
        if not self.looked:
            return f"next look at {self.next_look:,} held-out conversations, of which there are {self.conversations:,}"
        if not self.count:
            return f"none of {self.conversations:,} held-out conversations tells what people prefer"
        several = f" of {self.people} people, who side with it in {self.rate:.0%}" if self.people > 1 else ""
        odd = f", {self.odd} left out for an odd record" if self.odd else ""
        said = f"it sides with people in {self.preferred:g} of {self.count:g} held-out conversations{several}"
        return f"{said} ({self.low:.0%} to {self.high:.0%}{odd}), at a chance of {self.alpha:.2g}"

    def measurements(self) -> dict[str, Any]:
        """It as evidence."""
        return asdict(self)


def judging(examples: Examples, since: str) -> Examples:
    """The feedback that may judge: of people, and later than `since`, when what serves was promoted."""

    def may(each: Example) -> bool:
        return each.by in PEOPLE and each.at > since

    kinds: dict[str, Any] = {name: tuple(filter(may, getattr(examples, name))) for name in ("pairs", "thumbs", "ties")}
    return Examples(**kinds)


def conversations(examples: Examples) -> int:
    """The number of conversations that judge; one that several people judged counts for each of them."""
    return len({(each.user, opening(each)) for each in examples})


class Gains:
    """The candidate's gain in token probability over the serving adapter, or else the base (`scoring.gains_of`).

    The base's log-probs are computed once: a `store` keeps them for later nights.
    """

    def __init__(
        self, backbone: Backbone, serving: Path | None, store: Database | None = None, template: str = ""
    ) -> None:
        self._backbone, self._serving, self._store = backbone, serving, store
        self._references = References(backbone, template)
        if serving:
            backbone.hold(serving)

    @torch.no_grad()
    def of(self, made: Sequence[TokenizedExample]) -> list[Tensor]:
        """The gain on each of the replies of each tokenized example, (R,), from -1 to 1."""
        found: list[Tensor] = [torch.zeros(0)] * len(made)
        if self._store and self._recalls:
            self._references.recall(self._store, [each.own_row() for each in made])
        for group in groups(made):
            rows = [made[at].own_row() for at in group]
            both = zip(self._backbone.each_token_of(rows), self._others(rows), strict=True)
            for at, row, (ours, theirs) in zip(group, rows, both, strict=True):
                found[at] = gains_of(row, ours, theirs.to(ours.device)).cpu()
        if self._store and self._recalls:
            self._references.keep(self._store)
        return found

    @property
    def _recalls(self) -> bool:
        """Whether the other side is the base, and a training's reference too, whose log-probs are kept."""
        return not self._serving and not self._backbone.reference_sha256

    def _others(self, rows: Sequence[Row]) -> list[Tensor]:
        """The log-probs under what the candidate is compared with."""
        if self._recalls:
            return self._references.each_token_of(rows)
        with self._backbone.as_serving() if self._serving else self._backbone.as_base():
            return self._backbone.each_token_of(rows)


def sides(examples: Examples, gains: Gains, encoder: Encoder) -> list[Side]:
    """What each person's feedback on each conversation says of the candidate, in the order of people and openings.

    Of several pieces of feedback on one conversation, the majority counts; a tie, and a draw, is half a vote.
    """
    balance: dict[tuple[int, str], float] = defaultdict(float)
    made = [(each, lesson) for each in examples.pairs for lesson in tokenize(Examples((each,)), encoder)[0]]
    for (pair, _), found in zip(made, gains.of([lesson for _, lesson in made]), strict=True):
        balance[pair.user, opening(pair)] += _sign(float(found[0] - found[1]))
    for tie in examples.ties:
        balance[tie.user, opening(tie)] += 0.0
    for user, conversation, better in _of_thumbs(examples.thumbs, gains, encoder):
        balance[user, conversation] += _sign(better)
    return [Side(user, conversation, (1 + _sign(sum_)) / 2) for (user, conversation), sum_ in sorted(balance.items())]


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _of_thumbs(thumbs: Sequence[UnpairedExample], gains: Gains, encoder: Encoder) -> Iterable[tuple[int, str, float]]:
    """Each liked conversation of a person beside a disliked one: whose vote it is, its name, and by how much it wins.

    A thumb alone has nothing to be compared with, and none is compared twice. Where it takes two people, the vote is of
    the one who said more, so that somebody who dislikes much does not have a say in what each other person likes.
    """
    lessons = [(each, lesson) for each in thumbs for lesson in tokenize(Examples((), (each,)), encoder)[0]]
    of_each: dict[tuple[int, str, bool], list[float]] = defaultdict(list)
    for (thumb, _), found in zip(lessons, gains.of([lesson for _, lesson in lessons]), strict=True):
        of_each[thumb.user, opening(thumb), thumb.wanted].append(float(found[0]))
    mean = {key: fmean(values) for key, values in of_each.items()}
    said = defaultdict[int, int](int)
    for user, _, _ in mean:
        said[user] += 1

    def matched(key: Any) -> Iterable[tuple[int, str, float]]:
        """Match what is left where likes and dislikes have the same key."""
        places: dict[Any, dict[bool, list[tuple[int, str, bool]]]] = defaultdict(lambda: {True: [], False: []})
        for each in sorted(mean):
            places[key(each)][each[2]].append(each)
        for both in places.values():
            for up, down in zip(both[True], both[False], strict=False):
                name = up[1] if up[1] == down[1] else f"{up[1]} | {down[1]}"
                yield max(up[0], down[0], key=lambda user: (said[user], user)), name, mean.pop(up) - mean.pop(down)

    yield from list(matched(lambda each: each[:2]))
    yield from list(matched(lambda each: each[0]))
    yield from list(matched(lambda each: None))


def looked_at(votes: Votes, conversations: int, next_look: int, alpha: float) -> HeldOut:
    """A look at what held-out conversations say, at a chance `alpha` of a false promotion."""
    found = evidence.preference(votes)
    low, high = interval(votes)
    counted = float(found.decisive)
    rate = 0.5 + float(found.gain)
    return HeldOut(
        conversations=conversations,
        next_look=next_look,
        looked=True,
        people=int(found.people - found.odd),
        odd=int(found.odd),
        count=counted,
        preferred=counted / 2 + float(found.balance),
        rate=rate,
        low=low,
        high=high,
        alpha=alpha,
        promotes=bool(evidence.promotes(votes, alpha)),
        refuses=bool(evidence.refuses(votes, alpha)),
        may_challenge=bool(evidence.may_challenge(votes)),
    )


def interval(votes: Votes) -> tuple[float, float]:
    """The 95 % interval of the rate: of one person the exact one (Clopper and Pearson, 1934), else of the mean."""
    found = evidence.preference(votes)
    people, decisive = int(found.people - found.odd), round(float(found.decisive))
    if not decisive:
        return 0.0, 1.0
    if people == 1:
        won = round(decisive / 2 + float(found.balance))
        exact = stats.binomtest(won, decisive).proportion_ci(0.95, method="exact")
        return float(exact.low), float(exact.high)
    wide = stats.t.ppf(0.975, people - 1) if people > evidence.SAMPLE else stats.norm.ppf(0.975)
    half = float(wide * found.error) if float(found.error) < 1 else 1.0
    middle = 0.5 + float(found.gain)
    return max(0.0, middle - half), min(1.0, middle + half)
