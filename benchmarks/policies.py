"""How much better replies become, and how far from the base that takes them: every method by its defaults.

    python -m benchmarks.policies [--folder DIR] [--runs best_of_n-0,rloo-0,...] [--set NAME=VALUE]

The embedded model, everyday prompts, and for a true reward the taste of the rehearsal, a rule over text, one less for a
reply that breaks off or goes round in circles. Its ledger are pairs of the base's replies that the rule chose between,
and corrections by the rule. SFT learns from the corrections, DPO from the pairs, and the others by reward models that
learned from the pairs, as in a night; the most tokens of their replies are the median of the ledger's. All are judged
on prompts that none of them has seen. The last line is one JSON object:

- by run `curve`: true reward, its standard error, and KL from the base in nats a reply, as it learned: nats per token
  times the mean tokens of its replies; `minutes`
- `before` and `after`: reward on the unseen prompts, `gain_low` the lower end of the 95 % interval of the gain over
  prompts, and `kl` in nats per token beside `kl_budget`, with `kl_words` for what it is
- `steps`: of the first and the last step, what says whether it learned by what people like: `score`, `ended`,
  `learned_from`, `no_spread`, `explained_variance`
- `top_p`: how far chats' sampling (top-p 0.95) is from that of rollouts, in nats a token, and in reward, chats less
  rollouts
- `models`: by seed, the accuracy of the reward models on pairs that they have not seen
- `frontier.png` in the folder: reward by KL, as in figure 2 of arXiv 2305.18290

What is done stays in the folder; a benchmark that is started again goes on with the next run.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from assistant.engine.sampling.params import Sampling
from assistant.environment import prepare
from assistant.models import base_model, chat_template
from benchmarks.contest import say
from benchmarks.loop import processor
from feedback.messages import Message
from training.algorithms import registry, reward_model
from training.algorithms.base import PolicyContext, TrainingContext
from training.data.kl import AT_LOOKS, Kl, KlFromBase
from training.data.tokenize import TokenizedExample
from training.evaluation import calibration
from training.evaluation.text_quality import flaw, whole_words
from training.loop.loop import Trainer, train
from training.model.packing import Row
from training.model.policy import Backbone
from training.model.reference import References
from training.model.reward_heads import RewardModels
from training.night import reward_night
from training.rehearsal.preference_rule import corrected, liking
from training.rehearsal.questions import PROMPTS
from training.rewards.base import RewardContext
from training.rollouts.on_policy import PolicyConfig, usual_length
from training.rollouts.sampler import Rollout, Sampler, sampling_of, token_values

LEARNED, UNSEEN = 300, 128  # prompts
APART = 40  # of the former, those whose pairs say when to stop, and how good reward models are
CHAT_TOKENS, TEMPERATURE = 64, 0.7  # of the ledger's replies, as a rehearsal has them
BEST_OF = (1, 2, 4, 8, 16)
LOOKS = 4  # evaluations of a method while it learns
GRPO = {"advantage": "group", "scale": "group", "normalise": "reply", "kl_in": "loss"}  # arXiv 2402.03300
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # run -> method, settings that are not its defaults
    "sft": ("sft", {}),
    "dpo": ("dpo", {}),
    "online_dpo": ("online-dpo", {}),
    "rloo": ("rloo", {}),
    "grpo": ("rloo", GRPO),
    "ppo": ("ppo", {}),
}
RUNS = (
    "best_of_n-0",
    "sft-0",
    "dpo-0",
    "rloo-0",
    "ppo-0",
    "online_dpo-0",
    "grpo-0",
    "dpo-1",
    "rloo-1",
    "dpo-2",
    "rloo-2",
)
SHOWN = ("score", "loss", "rewards/margins", "kl", "engine_gap", "rollout_s", "tokens_per_s")
TOLD = ("score", "ended", "learned_from", "no_spread", "explained_variance", "rewards/accuracies", "beta")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, default=Path("measured/policies"))
    options.add_argument("--runs", default=",".join(RUNS), help="METHOD-SEED, by commas")
    options.add_argument("--set", action="append", default=[], help="a setting of all methods that have it")
    chosen = options.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    prepare(base_model.EMBEDDED)
    print(json.dumps(measure(chosen.folder, chosen.runs.split(","), chosen.set)))


def measure(folder: Path, runs: Sequence[str], settings: Sequence[str] = ()) -> dict[str, Any]:
    """All figures, by run; what is done already is not run again."""
    kept = folder / "runs.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    school = School(settings)
    for run in runs:
        if run not in found:
            name, seed = run.rsplit("-", 1)
            found[run] = school.best_of_n() if name == "best_of_n" else school.run(name, int(seed))
            found.setdefault("models", {}).update(school.judged)
            kept.write_text(json.dumps(found))
    school.sampler.close()
    draw(found, folder / "frontier.png")
    told = {"processor": processor(), "reply_tokens": usual_length(school.pairs), "pairs": len(school.pairs)}
    return found | told


class School:
    """One model, its ledger, and the rule."""

    def __init__(self, settings: Sequence[str] = ()) -> None:
        self.settings = settings
        self.base = base_model.find_base(base_model.EMBEDDED)
        self.dtype = base_model.fastest_dtype("cpu")
        self.tokenizer = base_model.load_tokenizer(self.base)
        self.sampler = Sampler(self.base, str(self.dtype).removeprefix("torch."), "cpu", self.tokenizer)
        self.judged: dict[str, Any] = {}  # by seed
        every = PROMPTS.read_text(encoding="utf-8").splitlines()
        self.questions = every[:LEARNED]
        self.prompts, self.unseen = self._encode(self.questions), self._encode(every[-UNSEEN:])
        self.sampler.forget()
        self.plain = self.sampler.write(self.unseen, max(BEST_OF), sampling_of(TEMPERATURE, CHAT_TOKENS), seed=1)
        self.words: Counter[str] = whole_words([self._text(ids) for each in self.plain for ids in each.row.replies])
        self.before = self.score(self.plain)

    def score(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """The rule's reward for each reply: (K,) for each rollout."""
        texts = [[self._text(ids) for ids in each.row.replies] for each in rollouts]
        return [torch.tensor([liking(text) - bool(flaw(text, self.words)) for text in some]) for some in texts]

    @cached_property
    def said(self) -> list[Rollout]:
        """The base's two replies to each prompt of the ledger, as chats sample them."""
        self.sampler.forget()
        return self.sampler.write(self.prompts, 2, Sampling(temperature=TEMPERATURE, max_tokens=CHAT_TOKENS), seed=2)

    @cached_property
    def pairs(self) -> list[TokenizedExample]:
        """The pairs that the rule chose between; those of the last `APART` prompts are not learned from."""
        found = []
        for each, scores in zip(self.said, self.score(self.said), strict=True):
            if scores[0] != scores[1]:
                best = int(scores.argmax())
                replies = (list(each.row.replies[best]), list(each.row.replies[1 - best]))
                found.append(TokenizedExample("comparison", list(each.row.prompt_ids), replies, 1.0))
        return found

    @cached_property
    def demonstrations(self) -> list[TokenizedExample]:
        """The base's first reply to each prompt, corrected by the rule."""
        found = []
        for question, each in zip(self.questions, self.said, strict=True):
            text = corrected(question, self._text(each.row.replies[0]))
            reply = chat_template.encode_reply(self.tokenizer, text, self._end)
            found.append(TokenizedExample("demonstration", list(each.row.prompt_ids), (reply,), 1.0))
        return found

    def divided(self, examples: Sequence[TokenizedExample]) -> tuple[list[TokenizedExample], list[TokenizedExample]]:
        """Examples to learn from, and those of the prompts that are kept apart."""
        apart = set(map(tuple, self.prompts[-APART:]))
        mine = [each for each in examples if tuple(each.prompt_ids) not in apart]
        return mine, [each for each in examples if tuple(each.prompt_ids) in apart]

    def best_of_n(self) -> dict[str, Any]:
        """The best of n replies of the base, by the rule; its KL is log n - (n - 1) / n (arXiv 2112.00861, p. 24)."""
        curve = []
        for n in BEST_OF:
            best = [float(each[:n].max()) for each in self.before]
            curve.append(point(best, math.log(n) - (n - 1) / n))
        return {"curve": curve}

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """One method by its defaults."""
        known, own = METHODS[name]
        method = registry.find(known)
        asked = [each for each in self.settings if each.partition("=")[0] in method.config.model_fields]
        config = method.config(**registry.parse_settings(known, [*asked, f"seed={seed}"]) | own)
        backbone = Backbone(self.base, self.dtype, "cpu", rank=config.rank, alpha=config.alpha, seed=seed)
        examples = self.demonstrations if "demonstrations" in method.learns_from else self.pairs
        mine, apart = self.divided(examples)
        given = (backbone, mine, [] if method.on_policy else apart, References(backbone))
        kl = KlFromBase(backbone, self.own(), mine)
        if not method.on_policy:
            return self._learn(backbone, method.build(TrainingContext(*given, kl=kl), config))
        rewards = partial(self._rewards, backbone, seed)
        context = PolicyContext(*given, self.sampler, rewards, self._ends, self._text, kl=kl)
        return self._learn(backbone, method.build(context, config))

    def own(self) -> list[Row]:
        """Replies of the base to prompts that are learned from, which budgets are measured on."""
        self.sampler.forget()
        sampling = sampling_of(TEMPERATURE, CHAT_TOKENS)
        return [each.row for each in self.sampler.write(self.prompts[:AT_LOOKS], 1, sampling, seed=4)]

    def _rewards(self, backbone: Backbone, seed: int, config: PolicyConfig) -> RewardContext:
        models = cache(partial(self._models, backbone, seed))
        told = config.uncertainty_penalty, config.least_reward_accuracy
        return RewardContext(models, lambda _: models(), Path(), *told)

    def _models(self, backbone: Backbone, seed: int) -> RewardModels:
        """Reward models on a backbone, by their defaults, normalised and judged as in a night."""
        mine, apart = self.divided(self.pairs)
        config = reward_model.RewardConfig(seed=seed)
        trainer = reward_model.build(TrainingContext(backbone, mine, [], References(backbone)), config)
        for report in train(trainer, trainer.begin()):
            say(f"reward models, step {report.step}/{report.steps}")
        self.sampler.forget()
        sampling = sampling_of(TEMPERATURE, usual_length(mine))
        samples = self.sampler.write(self.prompts[: config.samples], 1, sampling, seed=6)
        reward_model.normalise(trainer.models, [each.row for each in samples])
        with torch.no_grad():
            margins, longer_by = reward_model.margins(trainer.models, apart)
        trainer.models.metrics = asdict(calibration.believed(margins, longer_by, 1.0))
        told = trainer.models.metrics
        self.judged[str(seed)] = {name: told[name] for name in ("pairs", "accuracy", "low", "high", "longer_wins")}
        return trainer.models

    def _ends(self, config: PolicyConfig) -> float:
        """The share of its replies that the base ends by itself within the most tokens of a rollout."""
        self.sampler.forget()
        sampling = sampling_of(reward_night.TEMPERATURE, config.max_completion_length)
        return reward_night.share_ended(self.sampler.write(self.prompts[:64], 1, sampling, seed=7))

    def _learn(self, backbone: Backbone, trainer: Trainer) -> dict[str, Any]:
        """Run a method to its end, evaluating it on the way."""
        began, looking_s = time.monotonic(), 0.0
        curve, told, steps = list[dict[str, float]](), list[dict[str, float]](), trainer.steps
        every = max(1, steps // LOOKS)
        for report in train(trainer, trainer.begin()):
            shown = {name: round(each, 3) for name, each in report.metrics.items() if name in SHOWN}
            say(f"step {report.step}/{steps}: {shown}")
            told.append({name: round(report.metrics[name], 3) for name in TOLD if name in report.metrics})
            if report.step % every == 0 and report.step < steps:
                started = time.monotonic()
                curve.append(self._look(backbone, trainer)[0])
                looking_s += time.monotonic() - started
        minutes = (time.monotonic() - began - looking_s) / 60
        last, scores, kl = self._look(backbone, trainer)
        gains = [after - float(before.mean()) for after, before in zip(scores, self.before, strict=True)]
        middle, error = fmean(gains), spread(gains)
        return {
            "curve": [*curve, last],
            "minutes": round(minutes, 1),
            "before": round(fmean(float(each.mean()) for each in self.before), 3),
            "after": last["reward"],
            "gain": round(middle, 3),
            "gain_low": round(middle - 1.96 * error, 3),
            "kl": round(kl.mean, 4),
            "kl_words": kl.words,
            "kl_budget": trainer.kl_budget,
            "steps": [told[0], told[-1]],
            "taken": len(told),
            "top_p": self._top_p(backbone),
        }

    def _look(self, backbone: Backbone, trainer: Trainer) -> tuple[dict[str, float], list[float], Kl]:
        """Evaluate the policy on the unseen prompts: a point of the curve, the scores by prompt, and the KL."""
        self.sampler.follow(backbone)
        rollouts = self.sampler.write(self.unseen, 2, sampling_of(TEMPERATURE, CHAT_TOKENS), seed=3)
        scores = [float(each.mean()) for each in self.score(rollouts)]
        kl = distance(backbone, rollouts, self.plain)
        tokens = fmean(len(reply) for each in rollouts for reply in each.row.replies)
        found = point(scores, kl.mean * tokens)
        say(f"unseen prompts: {found}; {kl.words}")
        return found, scores, kl

    def _top_p(self, backbone: Backbone) -> dict[str, float]:
        """`top_p_gap` of the policy on the unseen prompts."""
        self.sampler.follow(backbone)
        as_chats = Sampling(temperature=TEMPERATURE, max_tokens=CHAT_TOKENS)
        as_drawn = sampling_of(TEMPERATURE, CHAT_TOKENS)
        served, drawn = (self.sampler.write(self.unseen, 2, how, seed=5) for how in (as_chats, as_drawn))
        return top_p_gap(backbone, served, drawn, [self.score(served), self.score(drawn)])

    @cached_property
    def _end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [chat_template.encode_prompt(self.tokenizer, [Message("user", text)], 512) for text in texts]

    def _text(self, ids: Sequence[int]) -> str:
        return chat_template.decode(self.tokenizer, ids)


def distance(backbone: Backbone, rollouts: Sequence[Rollout], plain: Sequence[Rollout]) -> Kl:
    """The policy's KL from the base, on its own replies and on as many of the base's to the same prompts."""
    own, others = (
        [Row(each.row.prompt_ids, [reply]) for each in some for reply in each.row.replies[:2]]
        for some in (rollouts, plain)
    )
    examples = [TokenizedExample("comparison", list(row.prompt_ids), (list(row.replies[0]),), 1.0) for row in others]
    return KlFromBase(backbone, own, examples).measure()


def top_p_gap(
    backbone: Backbone, served: Sequence[Rollout], drawn: Sequence[Rollout], scores: Sequence[Sequence[Tensor]]
) -> dict[str, float]:
    """How far replies as chats sample them, by top-p 0.95, are from those of rollouts, which a policy learns from.

    `served` are of the former, `drawn` of the latter, to the same prompts, `scores` (K,) of each, `served` first.
    `nats` is the mean KL of the truncated from the whole next-token distribution at the rollouts' temperature: -log of
    the mass that is kept, which every token drawn from it shows as the log-ratio of the two.
    """
    values = token_values(backbone, [each.row for each in served], TEMPERATURE)
    kept = [each.drawn - value.cpu() for each, value in zip(served, values, strict=True) if each.drawn is not None]
    gains = [float(ours.mean() - theirs.mean()) for ours, theirs in zip(*scores, strict=True)]
    return {
        "nats": round(float(torch.cat(kept).mean()), 4),
        "reward": round(fmean(gains), 3),
        "reward_error": round(spread(gains), 3),
        "replies": float(sum(len(each.row.replies) for each in (*served, *drawn))),
    }


def point(scores: Sequence[float], kl: float) -> dict[str, float]:
    """Mean reward over prompts, its standard error, and KL in nats per reply."""
    return {"reward": round(fmean(scores), 3), "error": round(spread(scores), 3), "kl": round(kl, 3)}


def spread(values: Sequence[float]) -> float:
    """The standard error of a mean."""
    return float(torch.tensor(values).std()) / len(values) ** 0.5


def draw(found: dict[str, Any], path: Path) -> None:
    """Plot reward by KL."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    colours: dict[str, Any] = {}
    for run in RUNS:
        name, seed = run.rsplit("-", 1)
        if run in found:
            curve = sorted(found[run]["curve"], key=lambda each: each["kl"])
            drawn = axes.errorbar(
                [each["kl"] for each in curve],
                [each["reward"] for each in curve],
                yerr=[each["error"] for each in curve],
                marker="o",
                markersize=4,
                capsize=2,
                alpha=1.0 if seed == "0" else 0.5,
                color=colours.get(name),
                label=name.replace("_", " ") if name not in colours else None,
            )
            colours[name] = drawn.lines[0].get_color()
    axes.set(xlabel="KL from the base, nats a reply", ylabel="true reward on unseen prompts")
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
