"""How much better replies become, and how far from the base that takes them: RLOO, PPO, DPO and best-of-n.

    python -m benchmarks.policies [--folder DIR] [--methods best_of_n,rloo,ppo,dpo] [--steps N]

The embedded model, everyday prompts, and for a true reward the taste of the rehearsal, a rule over text,
one less for a reply that breaks off or goes round in circles. RLOO and PPO learn from the rule
itself, DPO from pairs of the base's replies that the rule chose between. All are judged on prompts that none of them
has seen. The last line is one JSON object:

- by method `curve`: reward, its standard error, and KL from the base in nats a reply, as it learned: nats per token
  times the mean tokens of its replies; `minutes`
- `before` and `after`: reward on the unseen prompts, `gain_low` the lower end of the 95 % interval of the gain over
  prompts, and `kl` in nats per token beside `kl_budget`, with `kl_words` for what it is
- `top_p`: how far chats' sampling (top-p 0.95) is from that of rollouts, in nats a token, and in reward, chats less
  rollouts
- `frontier.png` in the folder: reward by KL, as in figure 2 of arXiv 2305.18290

What is done stays in the folder; a run that is started again goes on with the next method.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
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
from training.algorithms import dpo_kto, ppo, rloo
from training.data.kl import AT_LOOKS, Kl, KlFromBase
from training.data.tokenize import TokenizedExample
from training.evaluation.text_quality import flaw, whole_words
from training.loop.loop import Trainer, train
from training.model.packing import Row
from training.model.policy import Backbone
from training.rehearsal.preference_rule import liking
from training.rehearsal.questions import PROMPTS
from training.rollouts.sampler import Rollout, Sampler, sampling_of, token_values

LEARNED, UNSEEN = 400, 64  # prompts
REPLY_TOKENS, TEMPERATURE = 64, 0.7
BEST_OF = (1, 2, 4, 8, 16)
DPO_PROMPTS = 200  # that pairs are made from
LOOKS = 5  # evaluations of a method while it learns
BUDGET = 0.3  # nats per token
METHODS = ("best_of_n", "rloo", "ppo", "dpo")
SHOWN = ("score", "loss", "rewards/margins", "kl", "engine_gap", "rollout_s", "tokens_per_s")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, default=Path("measured/policies"))
    options.add_argument("--methods", default=",".join(METHODS))
    options.add_argument("--steps", type=int, default=40, help="of RLOO and PPO")
    chosen = options.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    prepare(base_model.EMBEDDED)
    print(json.dumps(measure(chosen.folder, chosen.methods.split(","), chosen.steps)))


def measure(folder: Path, methods: Sequence[str], steps: int) -> dict[str, Any]:
    """All figures, by method; methods that are done already are not run again."""
    kept = folder / "methods.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    school = School(steps)
    for method in methods:
        if method not in found:
            found[method] = getattr(school, method)()
            kept.write_text(json.dumps(found))
    school.sampler.close()
    draw(found, folder / "frontier.png")
    return found | {"processor": processor(), "kl_budget": BUDGET}


class School:
    """One model, the prompts, and the rule."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.base = base_model.find_base(base_model.EMBEDDED)
        self.dtype = base_model.fastest_dtype("cpu")
        self.tokenizer = base_model.load_tokenizer(self.base)
        self.sampler = Sampler(self.base, str(self.dtype).removeprefix("torch."), "cpu", self.tokenizer)
        every = PROMPTS.read_text(encoding="utf-8").splitlines()
        self.prompts, self.unseen = self._encode(every[:LEARNED]), self._encode(every[-UNSEEN:])
        self.sampler.forget()
        self.plain = self.sampler.write(self.unseen, max(BEST_OF), self._sampling(), seed=1)
        self.words: Counter[str] = whole_words([self._text(ids) for each in self.plain for ids in each.row.replies])
        self.before = self.score(self.plain)

    def score(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """The rule's reward for each reply: (K,) for each rollout."""
        texts = [[self._text(ids) for ids in each.row.replies] for each in rollouts]
        return [torch.tensor([liking(text) - bool(flaw(text, self.words)) for text in some]) for some in texts]

    def best_of_n(self) -> dict[str, Any]:
        """The best of n replies of the base, by the rule; its KL is log n - (n - 1) / n (arXiv 2112.00861, p. 24)."""
        curve = []
        for n in BEST_OF:
            best = [float(each[:n].max()) for each in self.before]
            curve.append(point(best, math.log(n) - (n - 1) / n))
        return {"curve": curve}

    def rloo(self) -> dict[str, Any]:
        """RLOO with the rule as the reward."""
        backbone = self._backbone()
        config = rloo.RlooConfig(
            steps=self.steps,
            max_completion_length=REPLY_TOKENS,
            temperature=TEMPERATURE,
            truncated="keep",
            kl_budget=BUDGET,
        )
        kl = KlFromBase(backbone, self.own(), [])
        return self._learn(backbone, rloo.RlooTrainer(backbone, self.sampler, self.prompts, self.score, config, kl))

    def ppo(self) -> dict[str, Any]:
        """PPO with the rule as the reward."""
        backbone = self._backbone()
        config = ppo.PpoConfig(
            steps=self.steps,
            max_completion_length=REPLY_TOKENS,
            temperature=TEMPERATURE,
            truncated="keep",
            kl_budget=BUDGET,
        )
        kl = KlFromBase(backbone, self.own(), [])
        return self._learn(backbone, ppo.PpoTrainer(backbone, self.sampler, self.prompts, self.score, config, kl))

    def dpo(self) -> dict[str, Any]:
        """DPO on pairs of the base's replies, which the rule chose between."""
        backbone = self._backbone()
        self.sampler.forget()
        pairs = self.sampler.write(self.prompts[:DPO_PROMPTS], 2, self._sampling(), seed=2)
        examples = []
        for each, scores in zip(pairs, self.score(pairs), strict=True):
            if scores[0] != scores[1]:
                best = int(scores.argmax())
                replies = [list(each.row.replies[best]), list(each.row.replies[1 - best])]
                examples.append(TokenizedExample("comparison", list(each.row.prompt_ids), tuple(replies), 1.0))
        config = dpo_kto.PreferenceConfig(kl_budget=BUDGET)
        return self._learn(
            backbone,
            dpo_kto.PreferenceTrainer(backbone, examples, config, kl=KlFromBase(backbone, self.own(), examples)),
        )

    def own(self) -> list[Row]:
        """Replies of the base to prompts that are learned from, which budgets are measured on."""
        self.sampler.forget()
        return [each.row for each in self.sampler.write(self.prompts[:AT_LOOKS], 1, self._sampling(), seed=4)]

    def _learn(self, backbone: Backbone, trainer: Trainer) -> dict[str, Any]:
        """Run a method to its end, evaluating it on the way."""
        began, looking_s = time.monotonic(), 0.0
        curve = []
        steps = trainer.steps
        every = max(1, steps // LOOKS)
        for report in train(trainer, trainer.begin()):
            shown = {name: round(each, 3) for name, each in report.metrics.items() if name in SHOWN}
            say(f"step {report.step}/{steps}: {shown}")
            if report.step % every == 0 and report.step < steps:
                started = time.monotonic()
                curve.append(self._look(backbone)[0])
                looking_s += time.monotonic() - started
        minutes = (time.monotonic() - began - looking_s) / 60
        last, scores, kl = self._look(backbone)
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
            "top_p": self._top_p(backbone),
        }

    def _look(self, backbone: Backbone) -> tuple[dict[str, float], list[float], Kl]:
        """Evaluate the policy on the unseen prompts: a point of the curve, the scores by prompt, and the KL."""
        self.sampler.follow(backbone)
        rollouts = self.sampler.write(self.unseen, 2, self._sampling(), seed=3)
        scores = [float(each.mean()) for each in self.score(rollouts)]
        kl = distance(backbone, rollouts, self.plain)
        tokens = fmean(len(reply) for each in rollouts for reply in each.row.replies)
        found = point(scores, kl.mean * tokens)
        say(f"unseen prompts: {found}; {kl.words}")
        return found, scores, kl

    def _top_p(self, backbone: Backbone) -> dict[str, float]:
        """`top_p_gap` of the policy on the unseen prompts."""
        self.sampler.follow(backbone)
        as_chats = Sampling(temperature=TEMPERATURE, max_tokens=REPLY_TOKENS)
        served, drawn = (self.sampler.write(self.unseen, 2, how, seed=5) for how in (as_chats, self._sampling()))
        return top_p_gap(backbone, served, drawn, [self.score(served), self.score(drawn)])

    def _backbone(self) -> Backbone:
        return Backbone(self.base, self.dtype, "cpu", rank=16, alpha=32, seed=0)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [chat_template.encode_prompt(self.tokenizer, [Message("user", text)], 512) for text in texts]

    def _text(self, ids: Sequence[int]) -> str:
        return chat_template.decode(self.tokenizer, ids)

    def _sampling(self) -> Any:
        return sampling_of(TEMPERATURE, REPLY_TOKENS)


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
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in METHODS:
        if name in found:
            curve = sorted(found[name]["curve"], key=lambda each: each["kl"])
            axes.errorbar(
                [each["kl"] for each in curve],
                [each["reward"] for each in curve],
                yerr=[each["error"] for each in curve],
                marker="o",
                capsize=2,
                label=name.replace("_", " "),
            )
    axes.set(xlabel="KL from the base, nats a reply", ylabel="reward on unseen prompts")
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
