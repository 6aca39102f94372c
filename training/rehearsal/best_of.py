"""The best of n replies by a rehearsal's reward models: the win rate that they promise, and that by the taste.

As arXiv 2210.10760 measures what optimising against a reward model gives away: proxy and gold over the square root of
the KL from the base, which is log n - (n - 1) / n for the best of n (arXiv 2009.01325, appendix G.3). Both are win
rates over the base's own samples, so that their gap means something: the proxy's by its own probabilities.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from types import SimpleNamespace

import numpy as np

from feedback.database.database import Database
from feedback.errors import Refused
from feedback.messages import Message
from feedback.records import methods, nights
from training.evaluation.text_quality import whole_words
from training.rehearsal import preference_rule
from training.rehearsal.measure import interval
from training.rehearsal.preference_rule import Taste

MOST = 256
OPPONENTS = 16  # samples that each is compared with
SEED = 9  # of the samples, beside the rehearsal's own
Means = tuple[float, float, float]  # a mean over prompts, and its 95 % interval


@dataclass(frozen=True)
class Point:
    """The best of `n` replies: in `promised` of the cases better than a sample by the reward models, in `true` so."""

    n: int
    kl: float  # nats a reply
    promised: Means
    true: Means


@dataclass(frozen=True)
class BestOf:
    """The figures; `slope` is that of promised less true over the square root of the KL."""

    points: tuple[Point, ...]
    slope: Means
    prompts: int
    comparisons: int
    wrong: float  # the share of them that was turned round
    models: str  # how good the reward models are, in the night's words


def require_possible(options: SimpleNamespace) -> None:
    """Raise `Refused` on a number out of range, or another method than reward models."""
    if not 2 <= options.best_of <= MOST:
        raise Refused(f"--best-of is from 2 to {MOST}, not {options.best_of}")
    if options.method not in (None, methods.REWARD.name):
        raise Refused(f"--best-of trains reward models alone, so it takes no --method {options.method}")


def measured(
    store: Database,
    options: SimpleNamespace,
    likes: Taste,
    known: Counter[str],
    prompts: Sequence[str],
    night: int,
    comparisons: int,
) -> BestOf:
    """Sample replies of the base to the prompts, and measure the best of them by the reward models of a night."""
    import torch

    from assistant.models import base_model, chat_template
    from training.model import reward_heads
    from training.model.policy import Backbone
    from training.rollouts.on_policy import PolicyConfig
    from training.rollouts.sampler import Sampler, sampling_of

    # 1. samples of the base, as a policy's rollouts are
    base, device = base_model.find_base(options.model), base_model.pick_device()
    tokenizer, dtype = base_model.load_tokenizer(base), base_model.fastest_dtype(device)
    encoded = [chat_template.encode_prompt(tokenizer, [Message("user", each)], 4096) for each in prompts]
    sampler = Sampler(base, str(dtype).removeprefix("torch."), device, tokenizer)
    try:
        sampling = sampling_of(PolicyConfig().temperature, options.max_tokens)
        samples = sampler.write(encoded, options.best_of, sampling, options.seed * 1_000 + SEED)
    finally:
        sampler.close()

    # 2. their scores by the reward models
    backbone = Backbone(base, dtype, device, rank=1, alpha=1, seed=0)
    models, _ = reward_heads.load(backbone, nights.reward_models_of(store, night))
    with torch.no_grad():
        scores = [each.mean(0).numpy() / models.temperature for each in models.scores([one.row for one in samples])]

    # 3. how often each beats others, by the models and by the taste
    texts = [[chat_template.decode(tokenizer, reply) for reply in each.row.replies] for each in samples]
    known = known + whole_words(text for some in texts for text in some)
    true = np.array([won(likes, prompt, some, known) for prompt, some in zip(prompts, texts, strict=True)])
    promised = np.array([promised_by(each) for each in scores])

    # 4. the best of n
    found = figures(np.array(scores), promised, true)
    return BestOf(*found, len(prompts), comparisons, options.wrong, nights.night(store, night).reason)


def won(likes: Taste, prompt: str, texts: Sequence[str], known: Counter[str]) -> list[float]:
    """The share of the first `OPPONENTS` of these texts, but for itself, that each beats; a tie counts half."""
    shares = []
    for at, text in enumerate(texts):
        others = [each for number, each in enumerate(texts[:OPPONENTS]) if number != at]
        results = [preference_rule.choose(likes, prompt, text, each, known) for each in others]
        shares.append(0.5 + sum(results) / len(results) / 2)
    return shares


def promised_by(scores: np.ndarray) -> list[float]:
    """The probability that each of these (N,) beats one of the first `OPPONENTS`, but for itself, by its score."""
    from scipy.special import expit

    promised = []
    for at, score in enumerate(scores):
        others = [each for number, each in enumerate(scores[:OPPONENTS]) if number != at]
        promised.append(float(expit(score - np.array(others)).mean()))
    return promised


def figures(scores: np.ndarray, promised: np.ndarray, true: np.ndarray) -> tuple[tuple[Point, ...], Means]:
    """The points for n = 1, 2, 4 to N, and the slope of the gap, from (P, N) scores and win rates of P prompts."""
    most = scores.shape[1]
    sizes = [2**each for each in range(int(math.log2(most)) + 1)]
    sizes += [most] if sizes[-1] < most else []
    weights = np.array([best_weights(most, n) for n in sizes])  # (S, N)
    order = scores.argsort(1, kind="stable")
    by_n = [np.take_along_axis(values, order, 1) @ weights.T for values in (promised, true)]  # (P, S) each
    apart = [math.log(n) - (n - 1) / n for n in sizes]
    points = tuple(
        Point(n, round(kl, 4), *(means(values[:, at]) for values in by_n))
        for at, (n, kl) in enumerate(zip(sizes, apart, strict=True))
    )
    # The slope of a least-squares line is linear in what it is fitted to, so that each prompt has its own.
    across = np.sqrt(apart) - np.mean(np.sqrt(apart))
    return points, means((by_n[0] - by_n[1]) @ across / (across**2).sum())


def best_weights(most: int, n: int) -> list[float]:
    """The probability that each of `most` samples, from the lowest score up, is the best of n drawn without repetition.

    So all samples tell of every n, without bias (arXiv 2112.09332, appendix I).
    """
    return [comb(rank, n - 1) / comb(most, n) for rank in range(most)]


def means(values: np.ndarray) -> Means:
    """The mean over prompts with its 95 % interval."""
    low, high = interval(values.tolist())
    return round(float(values.mean()), 4), round(low, 4), round(high, 4)


def tell(found: BestOf, as_json: bool) -> None:
    """Print the figures in words, and with `as_json` also as JSON."""
    print(
        f"the best of n replies to {found.prompts} unseen prompts, by reward models of {found.comparisons} comparisons"
    )
    print(f"({found.wrong:.0%} of them turned round); {found.models}")
    for each in found.points:
        promised, true = (f"{mean:.1%} ({low:.1%} to {high:.1%})" for mean, low, high in (each.promised, each.true))
        print(f"n={each.n:3d}  KL {each.kl:.2f} nats a reply  better than a sample: promised {promised}, true {true}")
    mean, low, high = found.slope
    print(f"promised less true grows by {mean:+.1%} ({low:+.1%} to {high:+.1%}) a root of a nat", flush=True)
    if as_json:
        print(json.dumps(asdict(found)))
