"""What a reward model learns from real pairs, and what DPO's implicit reward does, on pairs that neither has seen.

    python -m benchmarks.rewards [--folder DIR] [--shares 0.25,0.5,1] [--methods reward,dpo,kto] [--set NAME=VALUE]

The embedded model, and the pairs of at most 256 tokens of the files `pairs_{helpful,harmless}_{train,test}`. A tenth
of the training prompts is for validation: it chooses the learning rate, on the smallest share of the rest, and the
temperature of the probabilities. Then one epoch over each share; the test files are asked once, in the end. The last
line is one JSON object:

- `reward`, `dpo` and `kto`, by share: accuracy on both test files together and on each, with exact 95 % intervals, the
  accuracy of the rule that the longer reply is better, `beats_longer_p`, the chance that it is no worse (exact paired
  test, one-sided), the expected calibration error, and what 100 tokens more are worth
- `curve.png` and `reliability_*.png` in the folder

DPO and KTO learn by the product's defaults, and by what `--set` changes (`loss=ipo per_token=1`, `beta=0.1`,
`thumb_beta=0.02`); KTO's thumbs are the pairs' two replies, one up and one down.

What is done stays in the folder, and a run that is started again goes on there.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import binomtest

from assistant.environment import prepare
from assistant.models import base_model
from benchmarks.contest import say
from benchmarks.loop import processor
from feedback.example_types import Answer, Examples, PreferencePair
from feedback.messages import Message
from training.algorithms import dpo_kto, reward_model
from training.algorithms.registry import parse_settings
from training.data.tokenize import TokenizedExample, tokenize
from training.evaluation import calibration
from training.loop.loop import train
from training.model.packing import TOKENS_AT_ONCE, together
from training.model.policy import Backbone
from training.model.reference import References
from training.night.learning import make_encoder

DATA = Path(__file__).parents[2] / "shared" / "data"
KINDS = ("helpful", "harmless")
LONGEST = 256
SHOWN = ("loss", "accuracy", "rewards/accuracies", "kl", "tokens_per_s")
VALIDATION = 10  # one prompt in this many
METHODS = ("reward", "dpo", "kto")
RATES = {"reward": (1e-4, 3e-4), "dpo": (1e-4, 5e-4), "kto": (1e-4, 5e-4)}

Margins = tuple[list[float], list[int]]  # of every pair, and by how many tokens the preferred reply is longer


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, default=Path("measured/rewards"))
    options.add_argument("--shares", default="0.25,0.5,1", help="of the training pairs")
    options.add_argument("--methods", default="reward,dpo", help=f"of {', '.join(METHODS)}")
    options.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of DPO and KTO")
    chosen = options.parse_args()
    if not DATA.is_dir():
        options.error(f"there is no {DATA}")
    chosen.folder.mkdir(parents=True, exist_ok=True)
    prepare(base_model.EMBEDDED)
    shares = sorted(float(each) for each in chosen.shares.split(","))
    school = School(chosen.folder, parse_settings("dpo", chosen.set))
    print(json.dumps(school.measure(chosen.methods.split(","), shares)))


class School:
    """The base, the pairs, and the results so far."""

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        self.folder, self.asked = folder, asked
        self.base = base_model.find_base(base_model.EMBEDDED)
        self.dtype = base_model.fastest_dtype("cpu")
        self.kept = folder / "margins.json"
        self.known: dict[str, Any] = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        self.parts: dict[str, list[TokenizedExample]] = {}
        self.references = References(self._backbone())  # of all runs, which have the same reference model

    def measure(self, methods: Sequence[str], shares: Sequence[float]) -> dict[str, Any]:
        """All figures, by name."""
        self._read()
        found: dict[str, Any] = {name: len(each) for name, each in self.parts.items()}
        found |= {"processor": processor(), "format": str(self.dtype).removeprefix("torch.")}
        for method in methods:
            # 1. the learning rate with the lowest validation loss, on the smallest share
            tried = {rate: self._loss(method, rate, shares[0]) for rate in RATES[method]}
            rate = min(tried, key=tried.__getitem__)
            say(f"{method}: learning rate {rate:g} of {tried}")

            # 2. each share, then the test files
            by_share = {share: self._judged(method, rate, share) for share in shares}
            found[method] = {"learning_rate": rate, "validation_loss": tried, "by_share": by_share}
        self._draw(found)
        return found

    def _read(self) -> None:
        """Read the examples: training, validation, and a test part of each kind."""
        encoder = make_encoder(self.base, self._backbone(), dpo_kto.PreferenceConfig())
        for part in ("train", "test"):
            for kind in KINDS:
                examples, left_out = tokenize(Examples(tuple(pairs(DATA / f"pairs_{kind}_{part}.jsonl"))), encoder)
                examples = [each for each in examples if whole(each)]
                say(f"{kind} {part}: {len(examples)} pairs, left out {left_out}")
                if part == "test":
                    self.parts[kind] = examples
                    continue
                # Prompts recur with other replies, so the prompts are split, not the pairs.
                prompts = list(dict.fromkeys(tuple(each.prompt_ids) for each in examples))
                order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
                aside = {prompts[at] for at in order[::VALIDATION]}
                for name, inside in (("validation", True), ("training", False)):
                    own = [each for each in examples if (tuple(each.prompt_ids) in aside) is inside]
                    self.parts.setdefault(name, []).extend(own)
        shuffled = torch.randperm(len(self.parts["training"]), generator=torch.Generator().manual_seed(1)).tolist()
        self.parts["training"] = [self.parts["training"][at] for at in shuffled]

    def _backbone(self) -> Backbone:
        return Backbone(self.base, self.dtype, "cpu", rank=16, alpha=32, seed=0)

    def _loss(self, method: str, rate: float, share: float) -> float:
        """Nats per pair on the validation pairs, at the temperature that suits them best."""
        margins = self._margins(method, rate, share)["validation"][0]
        temperature = calibration.temperature_of(margins)
        scaled = torch.tensor(margins, dtype=torch.float64) / temperature
        return round(float(-torch.nn.functional.logsigmoid(scaled).mean()), 4)

    def _judged(self, method: str, rate: float, share: float) -> dict[str, Any]:
        """The test figures of one share."""
        margins = self._margins(method, rate, share)
        temperature = calibration.temperature_of(margins["validation"][0])
        together = [[each for kind in KINDS for each in margins[kind][side]] for side in (0, 1)]
        told: dict[str, Any] = {"temperature": round(temperature, 3)}
        for name, (apart, longer_by) in {
            "together": (together[0], [int(each) for each in together[1]]),
            **{kind: margins[kind] for kind in KINDS},
        }.items():
            found = calibration.believed(apart, longer_by, temperature)
            told[name] = {key: round(each, 4) for key, each in asdict(found).items() if key != "bins"}
            told[name]["beats_longer_p"] = beats_longer(apart, longer_by)
            if name == "together":
                calibration.draw(found, self.folder / f"reliability_{method}_{share:g}.png")
        return told

    def _margins(self, method: str, rate: float, share: float) -> dict[str, Margins]:
        """Margins of the validation and test pairs after an epoch over a share; from the folder if it has them."""
        asked = {} if method == "reward" else self.asked
        key = " ".join([f"{method} {rate:g} {share:g}", *(f"{name}={value}" for name, value in asked.items())])
        if key not in self.known:
            examples = self.parts["training"][: round(share * len(self.parts["training"]))]
            started = time.monotonic()
            parts = {name: each for name, each in self.parts.items() if name != "training"}
            if method == "reward":
                found = learn_reward(self._backbone(), examples, rate, parts)
            else:
                config = config_of(rate, asked)
                examples = as_thumbs(examples) if method == "kto" else examples
                found = learn_policy(self._backbone(), examples, config, parts, self.references)
            say(f"{key}: {len(examples)} pairs in {time.monotonic() - started:.0f} s")
            self.known[key] = found
            self.kept.write_text(json.dumps(self.known))
        margins: dict[str, Margins] = self.known[key]
        return margins

    def _draw(self, found: dict[str, Any]) -> None:
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.subplots()
        counts: list[int] = []
        for at, method in enumerate(each for each in METHODS if each in found):
            by_share = found[method]["by_share"]
            counts = [round(share * found["training"]) for share in by_share]
            told = [each["together"] for each in by_share.values()]
            middle = [each["accuracy"] for each in told]
            below = [each["accuracy"] - each["low"] for each in told]
            above = [each["high"] - each["accuracy"] for each in told]
            beside = [count * (1 + 0.03 * at) for count in counts]  # otherwise one bar would hide the other
            axes.errorbar(beside, middle, yerr=[below, above], marker="o", capsize=3, label=method)
            axes.axhline(told[0]["longer_wins"], color="0.6", linewidth=1)
        axes.axhline(0.5, color="0.8", linewidth=1)
        axes.set(xscale="log", xlabel="pairs learned from", ylabel="right on test pairs (grey: the longer one wins)")
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.legend()
        figure.savefig(self.folder / "curve.png", dpi=150)


def pairs(file: Path) -> list[PreferencePair]:
    """The pairs of a file."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [
        PreferencePair(tuple(Message(**each) for each in row["prompt"]), Answer(row["chosen"]), Answer(row["rejected"]))
        for row in rows
        if row["prompt"][-1]["role"] == "user"
    ]


def whole(example: TokenizedExample) -> bool:
    """Whether an example fits in `LONGEST` tokens without cuts."""
    return len(example.prompt_ids) + max(map(len, example.replies)) <= LONGEST


def learn_reward(
    backbone: Backbone, examples: Sequence[TokenizedExample], rate: float, asked: dict[str, list[TokenizedExample]]
) -> dict[str, Margins]:
    """Train one reward model for one epoch; return its margins."""
    config = reward_model.RewardConfig(ensemble_size=1, learning_rate=rate, epochs=1)
    trainer = reward_model.EnsembleTrainer(backbone, reward_model.group_by_prompt(examples), config)
    for report in train(trainer, trainer.begin()):
        tell("reward", report)
    return {name: reward_model.margins(trainer.models, each) for name, each in asked.items()}


def config_of(rate: float, asked: dict[str, Any]) -> dpo_kto.PreferenceConfig:
    """The product's settings of DPO and KTO, for one epoch that nothing ends early."""
    fixed = {"learning_rate": rate, "epochs": 1, "kl_budget": 1000.0, "evals_per_epoch": 1}
    return dpo_kto.PreferenceConfig(**asked | fixed)


def as_thumbs(examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """Both replies of each pair as a thumb up and one down; the next pair's replies are the mismatched ones."""
    made = []
    for at, each in enumerate(examples):
        other = examples[(at + 1) % len(examples)].replies
        for which, wanted in ((0, True), (1, False)):
            replies = (each.replies[which], other[which])
            made.append(TokenizedExample("thumb", each.prompt_ids, replies, each.weight, wanted))
    return made


def learn_policy(
    backbone: Backbone,
    examples: Sequence[TokenizedExample],
    config: dpo_kto.PreferenceConfig,
    asked: dict[str, list[TokenizedExample]],
    references: References,
) -> dict[str, Margins]:
    """Train by DPO or KTO; return the margins of its implicit reward (arXiv 2305.18290, eq. 5)."""
    trainer = dpo_kto.PreferenceTrainer(backbone, examples, config, (), references)
    for report in train(trainer, trainer.begin()):
        tell(examples[0].kind, report)
    by_thumbs = examples[0].kind == "thumb"
    beta, per_token = (config.thumb_beta, False) if by_thumbs else (config.beta, bool(config.per_token))
    return {name: implicit(backbone, each, references, beta, per_token) for name, each in asked.items()}


@torch.no_grad()
def implicit(
    backbone: Backbone, examples: Sequence[TokenizedExample], references: References, beta: float, per_token: bool
) -> Margins:
    """Margins of the implicit reward, as the loss sees them."""
    rows, apart = [each.row() for each in examples], [0.0] * len(examples)
    for group in together(rows, TOKENS_AT_ONCE):
        some = [rows[at] for at in group]
        before = zip(some, references.each_token_of(some), strict=True)
        for at, log_probs, (row, reference) in zip(group, backbone.log_probs_of(some), before, strict=True):
            lengths = torch.tensor([len(reply) for reply in row.replies]) if per_token else 1.0
            moved = (log_probs - row.summed(reference)) / lengths
            apart[at] = beta * float(moved[0] - moved[1])
    return apart, [len(each.replies[0]) - len(each.replies[1]) for each in examples]


def tell(method: str, report: Any) -> None:
    """Print every tenth step."""
    if report.step % 10 == 0:
        shown = {name: round(report.metrics[name], 3) for name in SHOWN if name in report.metrics}
        say(f"{method} step {report.step}/{report.steps}: {shown}, {report.eta_s:.0f} s to go")


def beats_longer(apart: Sequence[float], longer_by: Sequence[int]) -> float:
    """The exact one-sided p-value of being right more often than the longer-wins rule (McNemar, 1947).

    Pairs of equal length, on which the rule says nothing, are left out.
    """
    told = [(margin > 0, length > 0) for margin, length in zip(apart, longer_by, strict=True) if length]
    ours = sum(right and not rule for right, rule in told)
    theirs = sum(rule and not right for right, rule in told)
    return float(f"{binomtest(ours, ours + theirs, alternative='greater').pvalue:.3g}") if ours + theirs else 1.0


if __name__ == "__main__":
    main()
