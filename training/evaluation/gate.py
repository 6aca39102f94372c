"""The gate: decides whether a new adapter may answer people.

The candidate adapter is compared with the serving adapter on feedback that no training has seen (`held_out`), but only
once that has grown by a quarter since the last time (`feedback.raters.evidence`), so that a year of nights promotes no
more adapters by chance than the account of risk allows. Its replies to a few fixed prompts must be sound, its KL from
the base within budget, and the server's log-probs must equal the trainer's. The verdict:
- promoted: it is a look, people prefer it at the chance that the look may take, and every check passes
- refused: as surely people prefer the other, or a check of soundness, KL or proof fails
- candidate: neither; an operator may promote it
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from assistant.engine.engine import Engine
from assistant.engine.sampling.params import Sampling
from assistant.models import chat_template
from assistant.models.adapter import LoadedAdapter
from feedback.messages import Message
from training.data.kl import Kl
from training.evaluation.held_out import HeldOut
from training.evaluation.text_quality import flaw, words

PROMOTED, CANDIDATE, REFUSED = "promoted", "candidate", "refused"
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
    failed = [each for each in checks if not each.passed]
    reasons = [each.words for each in failed] + [found.words]
    if any(each.refuses for each in failed) or found.refuses:
        verdict = REFUSED
    elif failed:
        verdict = CANDIDATE
        reasons += ["an operator should look"]
    elif found.promotes:
        verdict = PROMOTED
    else:
        verdict = CANDIDATE
        reasons += ["which may be chance"] if found.count else []
    evidence = {
        "verdict": verdict,
        "held_out": found.measurements(),
        "kl_per_token": kl.mean,
        "kl_words": kl.words,
        "length_ratio": length,
        "checks": [{"name": each.name, "passed": each.passed, "words": each.words} for each in checks],
    }
    return Verdict(verdict, "; ".join(reasons), evidence)
