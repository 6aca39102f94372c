"""Whether the questions on which reward models are torn teach them more than random ones, on real pairs.

    python -m benchmarks.questions [--folder DIR] [--seeds 5] [--questions 200] [--pool 2000] [--test 1000]

The embedded model, and the pairs of at most 256 tokens of the files `pairs_{helpful,harmless}_{train,test}`. An
ensemble of heads is fitted to the base's hidden states of 20 random pairs; then come rounds of 20 questions, and after
each round the heads are fitted anew to all answers. An answer is what the file says was chosen. The next questions are

- `random`: drawn evenly
- `torn`: those on which the heads' margins have the largest deviation (arXiv 1706.03741, section 2.2.4)
- `drawn`: by the chances with which the program draws them, three in ten evenly (`feedback.raters.questions`)

All ways of one seed begin with the same pairs and the same heads. The last line is one JSON object: by way, the
accuracy of the ensemble's mean on the test pairs after each round, as a mean over seeds, and what `torn` and `drawn`
gain over `random` in the end, by seed, with the 95 % interval of the mean gain over seeds (Student, 1908).

What is done stays in the folder, and a run that is started again goes on there.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from assistant.environment import prepare
from assistant.models import base_model
from benchmarks.loop import processor, say
from benchmarks.rewards import DATA, KINDS, pairs, whole
from feedback.example_types import Examples
from feedback.raters.questions import Item, chances
from training.algorithms import reward_model
from training.algorithms.reward_model import Member, RaterBias, RewardConfig
from training.data.judged import JudgedPair, RewardExample, group_by_prompt
from training.data.tokenize import tokenize
from training.model.policy import Backbone
from training.model.reward_heads import ScoreHead
from training.night.learning import make_encoder

WAYS = ("random", "torn", "drawn")
FIRST = 20  # random pairs to begin with
ROUND = 20  # questions between one fit and the next
AT_ONCE = 50  # pairs whose states are computed, and kept, together
ANSWERED = RewardExample([1], ([2], [3]), (JudgedPair(0, 1),))  # of any pair: its texts are in its states


@dataclass(frozen=True)
class Material:
    """The base's mean hidden states of each pair's two replies, the chosen one first: (N, 2, d)."""

    pool: Tensor
    test: Tensor


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, default=Path("measured/questions"))
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--questions", type=int, default=200)
    options.add_argument("--pool", type=int, default=0, help="pairs to ask about; 0: ten for each question")
    options.add_argument("--test", type=int, default=0, help="pairs to judge by; 0: five for each question")
    chosen = options.parse_args()
    if not DATA.is_dir():
        options.error(f"there is no {DATA}")
    counts = {"train": chosen.pool or 10 * chosen.questions, "test": chosen.test or 5 * chosen.questions}
    if counts["train"] < chosen.questions + FIRST:
        options.error(f"--pool is at least {chosen.questions + FIRST}, the questions and the {FIRST} to begin with")
    chosen.folder.mkdir(parents=True, exist_ok=True)
    prepare(base_model.EMBEDDED)
    print(json.dumps(measure(chosen.folder, chosen.seeds, chosen.questions, counts)))


def measure(folder: Path, seeds: int, questions: int, counts: dict[str, int]) -> dict[str, Any]:
    """All figures, by name."""
    # 1. the states of all pairs
    states = {part: states_of(folder, part, count) for part, count in counts.items()}
    material = Material(states["train"], states["test"])

    # 2. every way of every seed
    kept = folder / f"accuracies_{len(material.pool)}_{len(material.test)}_{questions}.json"
    known: dict[str, list[float]] = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in range(seeds):
        for way in WAYS:
            if f"{way} {seed}" not in known:
                known[f"{way} {seed}"] = asked(material, way, questions, seed)
                kept.write_text(json.dumps(known))
                say(f"seed {seed}, {way}: {known[f'{way} {seed}'][-1]:.3f}")

    # 3. means over seeds
    by_way = {way: [known[f"{way} {seed}"] for seed in range(seeds)] for way in WAYS}
    found: dict[str, Any] = {
        "questions": questions,
        "seeds": seeds,
        "pool": len(material.pool),
        "test": len(material.test),
        "answers": [FIRST + min(each, questions) for each in range(0, questions + ROUND, ROUND)],
        "accuracy": {way: [round(fmean(each), 4) for each in zip(*own, strict=True)] for way, own in by_way.items()},
        "processor": processor(),
    }
    for way in WAYS[1:]:
        gains = [ours[-1] - theirs[-1] for ours, theirs in zip(by_way[way], by_way["random"], strict=True)]
        found[f"{way}_over_random"] = gain(gains)
    return found


def gain(gains: Sequence[float]) -> dict[str, Any]:
    """The mean gain over seeds, with its 95 % interval; none from a single seed."""
    found: dict[str, Any] = {"by_seed": [round(each, 4) for each in gains], "mean": round(fmean(gains), 4)}
    if len(gains) > 1:
        wide = float(student.ppf(0.975, len(gains) - 1)) * stdev(gains) / len(gains) ** 0.5
        found |= {"low": round(fmean(gains) - wide, 4), "high": round(fmean(gains) + wide, 4)}
    return found


def states_of(folder: Path, part: str, count: int) -> Tensor:
    """The base's states (N, 2, d) of at most `count` pairs of a part, in an order by lot; from the folder if known."""
    base = base_model.find_base(base_model.EMBEDDED)
    backbone = Backbone(base, base_model.fastest_dtype("cpu"), "cpu", rank=1, alpha=1, seed=0)
    encoder = make_encoder(base, backbone, RewardConfig())
    read = [pair for kind in KINDS for pair in pairs(DATA / f"pairs_{kind}_{part}.jsonl")]
    random.Random(0).shuffle(read)
    found: list[Tensor] = []
    for start in range(0, len(read), AT_ONCE):
        if sum(map(len, found)) >= count:
            break
        file = folder / f"states_{part}_{start}.pt"
        if not file.exists():
            # A file's pairs may share a prompt, but each is an example of its own here.
            tokenized, _ = tokenize(Examples(tuple(read[start : start + AT_ONCE])), encoder)
            examples = [group_by_prompt([each])[0] for each in tokenized if whole(each)]
            making = file.with_suffix(".making")
            torch.save(torch.stack(reward_model.base_states(backbone, examples)), making)
            making.rename(file)
            say(f"states of {part} pairs {start} to {start + AT_ONCE}: {len(examples)} short enough")
        found.append(torch.load(file))
    return torch.cat(found)[:count]


def asked(material: Material, way: str, questions: int, seed: int) -> list[float]:
    """The accuracy on the test pairs after the first pairs, and after each round of questions."""
    chance = random.Random(seed)
    answered = chance.sample(range(len(material.pool)), FIRST)
    ensemble = fitted(material, answered, seed)
    found = [accuracy(ensemble, material)]
    while len(answered) < FIRST + questions:
        most = min(ROUND, FIRST + questions - len(answered))
        answered += chosen(ensemble, material, sorted(set(range(len(material.pool))) - {*answered}), way, most, chance)
        ensemble = fitted(material, answered, seed)
        found.append(accuracy(ensemble, material))
    return found


def fitted(material: Material, answered: Sequence[int], seed: int) -> list[ScoreHead]:
    """An ensemble of heads fitted to answered pairs, its scores normalised on the replies of the pool."""
    config = RewardConfig(seed=seed)
    heads = []
    for number in range(config.ensemble_size):
        own = config.seed * 100_003 + number
        member = Member("", ScoreHead(material.pool.shape[-1], own), RaterBias([]), ties=False)
        drawn = reward_model.bootstrap([ANSWERED] * len(answered), own)
        reward_model.fit(member, [ANSWERED] * len(drawn), [material.pool[answered[at]] for at in drawn], config)
        with torch.no_grad():
            member.head.normalise(member.head(material.pool.flatten(0, 1)))
        heads.append(member.head)
    return heads


@torch.no_grad()
def margins(ensemble: Sequence[ScoreHead], states: Tensor) -> Tensor:
    """Every head's margin (M, N) between the chosen and the other reply of pairs (N, 2, d)."""
    return torch.stack([head.gain * (head(states[:, 0]) - head(states[:, 1])) for head in ensemble])


def accuracy(ensemble: Sequence[ScoreHead], material: Material) -> float:
    """The share of the test pairs that the ensemble's mean gets right."""
    return float((margins(ensemble, material.test).mean(0) > 0).float().mean())


def chosen(
    ensemble: Sequence[ScoreHead], material: Material, left: Sequence[int], way: str, most: int, chance: random.Random
) -> list[int]:
    """The next pairs to ask about, of those that are left."""
    if way == "random":
        return chance.sample(left, most)
    of_each = margins(ensemble, material.pool[list(left)])
    apart, middle = of_each.std(0, correction=0).tolist(), of_each.mean(0).abs().tolist()
    if way == "torn":
        return [left[at] for at in sorted(range(len(left)), key=lambda at: -apart[at])[:most]]
    drawn: list[int] = []
    items = [Item(str(each), ("", ""), 0, False, apart[at], middle[at]) for at, each in enumerate(left)]
    for _ in range(most):
        (item,) = chance.choices(items, chances(items))
        items.remove(item)
        drawn.append(int(item.parent))
    return drawn


if __name__ == "__main__":
    main()
