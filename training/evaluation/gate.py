"""The gate: may a new adapter answer people? Its first door, which opens or not on what was said by then.

The candidate is compared with what serves now, on feedback that no training has seen: has it made the tokens of the
reply that people preferred likelier, more than those of the other one? Its replies to a few fixed prompts must be
sound, its distance from the base within budget, and the server's log-probs must be the trainer's. The verdict:
- promoted: the 95 % interval of the held-out share lies above one half, and every check is passed
- refused: the interval lies below one half, or a check of soundness, distance or proof is failed
- candidate: neither; an operator may promote it
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy.stats import binomtest

from assistant.engine.engine import Engine
from assistant.engine.sampling.params import Sampling
from assistant.models import chat_template
from assistant.models.adapter import LoadedAdapter
from feedback.example_types import Examples, UnpairedExample
from feedback.examples.caps import Bounds
from feedback.examples.split import opening
from feedback.messages import Message
from training.data.scoring import gains_of
from training.data.tokenize import Encoder, TokenizedExample, tokenize
from training.evaluation.text_quality import flaw, words
from training.model.policy import Backbone

PROMOTED, CANDIDATE, REFUSED = "promoted", "candidate", "refused"
FEWEST = 6  # conversations: with fewer, not even agreement on all of them puts the interval above one half
LENGTHS = (0.5, 2.0)  # replies to the canary prompts, in words, over those of what serves
FLAWED_AT_MOST = 2  # more canary replies with a flaw than what serves has
CANARY_TOKENS = 64
STRANGE = 5.0  # nats a token under the base: no such reply is language (people's own replies have 2 to 4)
CANARIES = (
    "What is the capital of France?",
    "How do I boil an egg?",
    "Tell me a fact about whales.",
    "I had a bad day. Say something kind.",
    "Give me three ideas for a cheap dinner.",
    "Why do we have seasons?",
    "Write two sentences about the sea.",
    "What should I think about before I get a dog?",
)


@dataclass(frozen=True)
class HeldOut:
    """Of `count` conversations that tell the two apart, those in which the candidate sides more with the people."""

    count: int
    preferred: int
    rate: float
    low: float  # of the exact 95 % interval (Clopper and Pearson, 1934)
    high: float
    left_out: int = 0  # votes of people who would have had a say in more conversations than their share


Votes = dict[str, dict[tuple[int, ...], float]]  # conversation -> who judged it -> how much rather for the candidate


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what was seen, in words."""

    name: str
    passed: bool
    words: str
    refuses: bool = True  # failed, it refuses the candidate; otherwise it leaves the decision to an operator


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, why in words, and what it measured."""

    verdict: str
    reason: str
    evidence: dict[str, Any]


def held_out(examples: Examples, gains: "Gains", encoder: Encoder, bounds: Bounds | None = None) -> HeldOut:
    """Compare on what people preferred; each conversation counts once, by the majority of the people who judged it.

    `caps` says how many of the conversations one person may have a say in; without them all are newcomers.
    """
    votes: Votes = {}
    for pair in examples.pairs:
        for made in tokenize(Examples((pair,)), encoder)[0]:
            chosen, rejected = gains.of(made)
            _vote(votes, opening(pair), (pair.user,), chosen - rejected)
    for up, down in _matched(examples.thumbs):
        tokenized = [made for each in (up, down) for made in tokenize(Examples((), (each,)), encoder)[0]]
        if len(tokenized) == 2:
            liked, disliked = (gains.of(made)[0] for made in tokenized)
            _vote(votes, f"{opening(up)} | {opening(down)}", (up.user, down.user), liked - disliked)
    return decided(votes, bounds or Bounds(len({each.user for each in examples})))


def _vote(votes: Votes, conversation: str, people: tuple[int, ...], side: float) -> None:
    of_each = votes.setdefault(conversation, {})
    of_each[people] = of_each.get(people, 0) + (side > 0) - (side < 0)


def decided(votes: Votes, bounds: Bounds) -> HeldOut:
    """A sign test over conversations, in which nobody has a say in more of them than their share.

    Feedback in one conversation is of one mind; conversations are taken as independent. Whose share is exceeded loses
    votes in an order that only the conversations' names decide, and how many depends on who voted where and whether
    that was a draw: all this stays the same when every vote in a conversation is turned round. So under the null
    hypothesis each conversation that is counted is still a fair coin, and the interval is exact.
    """
    kept = {name: dict(of_each) for name, of_each in votes.items()}
    loads: Counter[int] = Counter()  # in how many of the conversations that count each has a say
    said: dict[int, list[str]] = {}
    for name in sorted(kept, key=lambda name: hashlib.sha256(name.encode()).digest()):
        loads.update(_deciders(kept[name], bounds))
        for who in {bounds.carrier(who) for people in kept[name] for who in people}:
            said.setdefault(who, []).append(name)
    first, count, left_out = dict(loads), sum(majority(each) != 0 for each in kept.values()), 0
    while loads:
        over = {who: load - _allowed(who, count, first.get(who, 0), bounds) for who, load in loads.items()}
        worst = max(over, key=lambda who: (over[who], who))
        if over[worst] <= 1e-9:
            break
        last = next(name for name in reversed(said[worst]) if worst in _deciders(kept[name], bounds))
        said[worst].remove(last)
        before = kept[last]
        kept[last] = {each: side for each, side in before.items() if worst not in map(bounds.carrier, each)}
        loads.subtract(_deciders(before, bounds))
        loads.update(_deciders(kept[last], bounds))
        count += (majority(kept[last]) != 0) - (majority(before) != 0)
        left_out += len(before) - len(kept[last])
    balance = [majority(each) for each in kept.values()]
    found = counted(sum(each > 0 for each in balance), sum(each != 0 for each in balance))
    return replace(found, left_out=left_out)


def majority(of_each: Mapping[tuple[int, ...], float]) -> int:
    """How many more people side with the candidate than against it."""
    return sum((side > 0) - (side < 0) for side in of_each.values())


def _deciders(of_each: Mapping[tuple[int, ...], float], bounds: Bounds) -> set[int]:
    """Those who have a say in a conversation that counts; nobody where it is a draw."""
    if not majority(of_each):
        return set()
    return {bounds.carrier(who) for people, side in of_each.items() if side for who in people}


def _allowed(who: int, conversations: int, own: int, bounds: Bounds) -> float:
    """In how many of the conversations that count somebody may have a say, who had one in `own`; in one, always."""
    return max(1.0, bounds.share(who) * conversations, bounds.kept(who) * own)


def counted(preferred: int, count: int) -> HeldOut:
    """So many of so many, with the interval."""
    if not count:
        return HeldOut(0, 0, 0.5, 0.0, 1.0)
    interval = binomtest(preferred, count).proportion_ci(0.95, method="exact")
    return HeldOut(count, preferred, preferred / count, float(interval.low), float(interval.high))


def _matched(thumbs: Sequence[UnpairedExample]) -> list[tuple[UnpairedExample, UnpairedExample]]:
    """Each thumbs-up with a thumbs-down, while there are both: single thumbs have nothing to be compared with."""
    ups = [each for each in thumbs if each.wanted]
    downs = [each for each in thumbs if not each.wanted]
    return list(zip(ups, downs, strict=False))


class Gains:
    """How much likelier the candidate makes the tokens of a reply than what serves does (`scoring.gains_of`)."""

    def __init__(self, backbone: Backbone, serving: Path | None) -> None:
        self._backbone = backbone
        self._serving = serving
        if serving:
            backbone.hold(serving)

    @torch.no_grad()
    def of(self, made: TokenizedExample) -> list[float]:
        """One number for each of a tokenized example's replies, from -1 to 1."""
        row = made.row()
        (ours,) = self._backbone.each_token_of([row])
        if self._serving:
            with self._backbone.as_serving():
                (theirs,) = self._backbone.each_token_of([row])
        else:
            (theirs,) = self._backbone.each_token_of([row], reference=True)
        return [float(each) for each in gains_of(row, ours, theirs)]


def canaries(
    engine: Engine, tokenizer: Any, candidate: LoadedAdapter, serving: LoadedAdapter | None
) -> tuple[list[Check], float]:
    """What both say to the fixed prompts: the checks, and how long the candidate's replies are beside the others'."""
    asked = [chat_template.encode_prompt(tokenizer, [Message("user", each)], engine.window // 2) for each in CANARIES]
    sampling = [Sampling(max_tokens=CANARY_TOKENS, seed=number) for number in range(len(asked))]
    begun = [
        [engine.submit(ids, how, adapter) for ids, how in zip(asked, sampling, strict=True)]
        for adapter in (candidate, serving)
    ]
    written = [[[token.id for token in each] for each in side] for side in begun]
    ours, theirs = ([chat_template.decode(tokenizer, ids) for ids in side] for side in written)
    flaws = [[flaw(text) for text in side] for side in (ours, theirs)]
    surprise = _surprise(engine, asked, written[0])
    flaws[0] = [
        found or ("not language" if nats > STRANGE else "") for found, nats in zip(flaws[0], surprise, strict=True)
    ]
    bad, usual = (sum(map(bool, side)) for side in flaws)
    kinds = ", ".join(sorted(set(filter(None, flaws[0]))))
    seen = f"{len(ours) - bad} of {len(ours)} canary prompts answered soundly" + (f" (others: {kinds})" if bad else "")
    length = sum(len(words(text)) for text in ours) / max(1, sum(len(words(text)) for text in theirs))
    shortest, longest = LENGTHS
    return [
        Check("canaries", bad <= usual + FLAWED_AT_MOST, f"{seen}; what serves: {len(theirs) - usual}"),
        Check("length", shortest <= length <= longest, f"replies are {length:.2f} times as long", refuses=False),
    ], length


def _surprise(engine: Engine, asked: Sequence[list[int]], written: Sequence[list[int]]) -> list[float]:
    """How unlikely the base finds each reply, in nats a token."""
    read = [engine.score(ids, reply, None) for ids, reply in zip(asked, written, strict=True) if reply]
    values = iter([fmean(-token.logprob for token in each) for each in read])
    return [next(values) if reply else 0.0 for reply in written]


def judge(found: HeldOut, kl: float, kl_budget: float, checks: Sequence[Check], length: float) -> Verdict:
    """The verdict on what was measured."""
    within = Check("kl", kl <= kl_budget, f"{kl:.3f} of {kl_budget:g} nats a token from the base")
    checks = [within, *checks]
    said = f"it sides with people in {found.preferred} of {found.count} held-out conversations"
    said += f" ({found.low:.0%} to {found.high:.0%})" if found.count else ""
    said += f", {found.left_out} votes beyond a person's share left out" if found.left_out else ""
    failed = [each for each in checks if not each.passed]
    reasons = [each.words for each in failed] + [said]
    if any(each.refuses for each in failed) or found.high < 0.5:
        verdict = REFUSED
    elif failed:
        verdict = CANDIDATE
        reasons += ["an operator should look"]
    elif found.low > 0.5:
        verdict = PROMOTED
    else:
        verdict = CANDIDATE
        few = f"too little held-out feedback to tell, which takes {FEWEST}"
        reasons += [few if found.count < FEWEST else "which may be chance"]
    evidence = {
        "verdict": verdict,
        "held_out": asdict(found),
        "kl_per_token": kl,
        "length_ratio": length,
        "checks": [{"name": each.name, "passed": each.passed, "words": each.words} for each in checks],
    }
    return Verdict(verdict, "; ".join(reasons), evidence)
