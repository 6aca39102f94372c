"""The gate: decides whether a new adapter may answer people.

The candidate adapter is compared with the serving adapter on feedback that no training has seen: does it raise the
probability of the preferred reply's tokens by more than that of the other's? Its replies to a few fixed prompts must be
sound, its KL from the base within budget, and the server's log-probs must equal the trainer's. The verdict:
- promoted: the 95 % interval of the held-out rate lies above one half, and every check passes
- refused: the interval lies below one half, or a check of soundness, KL or proof fails
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
from training.data.kl import Kl
from training.data.scoring import gains_of
from training.data.tokenize import Encoder, TokenizedExample, tokenize
from training.evaluation.text_quality import flaw, words
from training.model.policy import Backbone

PROMOTED, CANDIDATE, REFUSED = "promoted", "candidate", "refused"
FEWEST = 6  # conversations; with fewer, not even full agreement puts the interval above one half
LENGTHS = (0.5, 2.0)  # bounds on the length of canary replies, in words, relative to the serving adapter's
FLAWED_AT_MOST = 2  # canary replies with a flaw beyond the number that the serving adapter has
CANARY_TOKENS = 64
STRANGE = 5.0  # nats a token under the base; a reply above this is not language (people's own have 2 to 4)
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
    """The held-out comparison: in `preferred` of `count` conversations, draws left out, the candidate wins."""

    count: int
    preferred: int
    rate: float
    low: float  # of the exact 95 % interval (Clopper and Pearson, 1934)
    high: float
    left_out: int = 0  # votes dropped to keep people within their share of conversations


Votes = dict[str, dict[tuple[int, ...], float]]  # conversation -> the people of a vote -> balance for the candidate


@dataclass(frozen=True)
class Check:
    """One check of a candidate, and its finding in words."""

    name: str
    passed: bool
    words: str
    refuses: bool = True  # whether failing refuses the candidate, or leaves the decision to an operator


@dataclass(frozen=True)
class Verdict:
    """The gate's decision, its reason in words, and its measurements."""

    verdict: str
    reason: str
    evidence: dict[str, Any]


def held_out(examples: Examples, gains: "Gains", encoder: Encoder, bounds: Bounds | None = None) -> HeldOut:
    """Compare on held-out feedback; each conversation counts once, by the majority of the people who judged it.

    `bounds` limit how many of the conversations one person may have a say in; without them everyone is a newcomer.
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

    Feedback within a conversation is taken as dependent, conversations as independent of each other. A person who
    exceeds their share loses votes in an order that depends only on the conversations' names; how many depends on who
    voted where, and on which conversations are draws. None of this changes when every vote in a conversation is
    flipped. So under the null hypothesis each counted conversation is still a fair coin, and the interval is exact.
    """
    kept = {name: dict(of_each) for name, of_each in votes.items()}
    loads: Counter[int] = Counter()  # for each person, the counted conversations in which they have a say
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
    """The number of votes for the candidate minus the number against it."""
    return sum((side > 0) - (side < 0) for side in of_each.values())


def _deciders(of_each: Mapping[tuple[int, ...], float], bounds: Bounds) -> set[int]:
    """The people who have a say in a conversation; nobody if it is a draw, which does not count."""
    if not majority(of_each):
        return set()
    return {bounds.carrier(who) for people, side in of_each.items() if side for who in people}


def _allowed(who: int, conversations: int, own: int, bounds: Bounds) -> float:
    """The number of counted conversations, at least 1, in which a person who had a say in `own` may keep it."""
    return max(1.0, bounds.share(who) * conversations, bounds.kept(who) * own)


def counted(preferred: int, count: int) -> HeldOut:
    """The result for `preferred` of `count` conversations, with its 95 % interval."""
    if not count:
        return HeldOut(0, 0, 0.5, 0.0, 1.0)
    interval = binomtest(preferred, count).proportion_ci(0.95, method="exact")
    return HeldOut(count, preferred, preferred / count, float(interval.low), float(interval.high))


def _matched(thumbs: Sequence[UnpairedExample]) -> list[tuple[UnpairedExample, UnpairedExample]]:
    """Pair thumbs-up with thumbs-down while there are both; a thumb alone has nothing to be compared with."""
    ups = [each for each in thumbs if each.wanted]
    downs = [each for each in thumbs if not each.wanted]
    return list(zip(ups, downs, strict=False))


class Gains:
    """The candidate's gain in token probability over the serving adapter, or else the base (`scoring.gains_of`)."""

    def __init__(self, backbone: Backbone, serving: Path | None) -> None:
        self._backbone = backbone
        self._serving = serving
        if serving:
            backbone.hold(serving)

    @torch.no_grad()
    def of(self, made: TokenizedExample) -> list[float]:
        """The gain on each of a tokenized example's replies, from -1 to 1."""
        row = made.row()
        (ours,) = self._backbone.each_token_of([row])
        if self._serving:
            with self._backbone.as_serving():
                (theirs,) = self._backbone.each_token_of([row])
        else:
            with self._backbone.as_base():
                (theirs,) = self._backbone.each_token_of([row])
        return [float(each) for each in gains_of(row, ours, theirs)]


def canaries(
    engine: Engine, tokenizer: Any, candidate: LoadedAdapter, serving: LoadedAdapter | None
) -> tuple[list[Check], float]:
    """Check both adapters' replies to the fixed prompts; also returns the candidate's length over the serving one's."""
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
    """Each reply's negative log-likelihood under the base, in nats a token; 0 for an empty reply."""
    read = [engine.score(ids, reply, None) for ids, reply in zip(asked, written, strict=True) if reply]
    values = iter([fmean(-token.logprob for token in each) for each in read])
    return [next(values) if reply else 0.0 for reply in written]


def judge(found: HeldOut, kl: Kl, kl_budget: float, checks: Sequence[Check], length: float) -> Verdict:
    """The verdict from all measurements."""
    within = Check("kl", kl.within(kl_budget), f"KL from the base {kl.words}, where {kl_budget:g} may be")
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
        "kl_per_token": kl.mean,
        "kl_words": kl.words,
        "length_ratio": length,
        "checks": [{"name": each.name, "passed": each.passed, "words": each.words} for each in checks],
    }
    return Verdict(verdict, "; ".join(reasons), evidence)
