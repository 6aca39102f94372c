"""Rollouts: replies of the current policy, sampled by the serving engine, and their log-probs under the trainer.

The engine and the trainer may round differently, so a policy learns by the trainer's own log-probs, at the temperature
that the replies were sampled at; the gap between the two is reported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

from assistant.engine.engine import MOST_WAITING, Engine
from assistant.engine.sampling.params import Sampling
from assistant.models.adapter import AdapterCard, Factors, LoadedAdapter
from assistant.models.base_model import Base
from training.loop.state import TrainState
from training.losses.policy_gradient import replaced_scores
from training.model.packing import TOKENS_AT_ONCE, Row, together
from training.model.policy import TRAINED, Backbone


@dataclass(frozen=True)
class Rollout:
    """K replies to one prompt, as they were sampled."""

    row: Row
    ended: tuple[bool, ...]  # whether each of them ended by itself
    drawn: Tensor | None = None  # (N,) the engine's log-prob of every token as it drew it; None: not by the engine


SAME_STEPS = 3  # consecutive steps in which all replies to each prompt are the same
LATE = 5  # steps of the moving average of scores
LEAST_SPREAD = 0.05  # the least standard deviation of scores that is assumed


class Collapsed(Exception):
    """The policy collapsed: all its replies to each prompt are the same, or its scores sank. It cannot be used."""


Score = Callable[[Sequence[Rollout]], list[Tensor]]  # (K,) for each rollout: the scores of its replies


class Sampler:
    """The serving engine as a trainer's sampler, with the policy's current weights.

    It computes in the trainer's own thread: two threads that take turns would put each other's worker threads to sleep.
    """

    def __init__(self, base: Base, number_format: str, device: str, tokenizer: Any) -> None:
        self.engine = Engine(base, number_format, device, tokenizer, driven=True)
        self._policy: LoadedAdapter | None = None

    def follow(self, backbone: Backbone) -> None:
        """Sample with the policy's current weights from now on."""
        self.forget()
        card = AdapterCard("policy", self.engine.base.name, self.engine.base.sha256, None, "", "", "", {}, {}, 0, {})
        self._policy = LoadedAdapter("policy", card, self.engine.network.add(factors_of(backbone)))

    def forget(self) -> None:
        """Sample from the base from now on."""
        if self._policy is not None:
            self.engine.unload(self._policy)
        self._policy = None

    def write(self, prompts: Sequence[Sequence[int]], each: int, sampling: Sampling, seed: int) -> list[Rollout]:
        """Sample `each` replies to every prompt; the seed decides all draws."""
        asked = [(at, number) for at in range(len(prompts)) for number in range(each)]
        replies: list[list[list[int]]] = [[] for _ in prompts]
        ended: list[list[bool]] = [[] for _ in prompts]
        drawn: list[list[float]] = [[] for _ in prompts]
        for start in range(0, len(asked), MOST_WAITING):
            some = asked[start : start + MOST_WAITING]
            writings = []
            for at, number in some:
                own = Sampling(**sampling.as_dict() | {"seed": ((seed * 1009 + at) * 1009 + number) % 2**63})
                writings.append(self.engine.submit(prompts[at], own, self._policy))
            for (at, _), writing in zip(some, writings, strict=True):
                tokens = list(writing)
                replies[at].append([token.id for token in tokens])
                ended[at].append(writing.finish == "stop")
                drawn[at] += [token.sampled_logprob for token in tokens]
        return [
            Rollout(Row(list(prompt), replies[at]), tuple(ended[at]), torch.tensor(drawn[at]))
            for at, prompt in enumerate(prompts)
        ]

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()


def factors_of(backbone: Backbone) -> Factors:
    """The policy's LoRA factors as the engine takes them: by layer, scaled, on the CPU."""
    found = {}
    parameters = backbone.parameters()
    layers = [(name, each) for name, each in backbone.peft.named_modules() if isinstance(each, LoraLinear)]
    scaling = {name: each.scaling[TRAINED] for name, each in layers}
    for name, a in parameters.items():
        if ".lora_A." not in name:
            continue
        layer = name.split(".lora_A.")[0]
        b = parameters[name.replace(".lora_A.", ".lora_B.")]
        plain = layer.removeprefix("base_model.model.")
        found[plain] = (a.detach().float().cpu().clone(), b.detach().float().cpu() * scaling[layer])
    return found


def sampling_of(temperature: float, tokens: int) -> Sampling:
    """Plain sampling from the whole vocabulary, as a truncated one would bias learning."""
    return Sampling(temperature=temperature, top_p=1.0, max_tokens=tokens)


def scored(score: Score, rollouts: Sequence[Rollout], missing_eos_penalty: float | None) -> list[Tensor]:
    """The scores of replies, (K,) for each rollout; unless None, -`missing_eos_penalty` for one that did not end."""
    found = [each.float() for each in score(rollouts)]
    if missing_eos_penalty is None:
        return found
    return [
        replaced_scores(each, torch.tensor(rollout.ended), -missing_eos_penalty)
        for each, rollout in zip(found, rollouts, strict=True)
    ]


def require_life(state: TrainState, rollouts: Sequence[Rollout], scores: Sequence[Tensor]) -> None:
    """Raise `Collapsed` if all replies to each prompt have been the same for some steps, or scores have sunk.

    They have sunk if their moving average is more than two of the first step's standard deviations below its mean.
    """
    every = torch.cat(list(scores))
    mean, spread = float(every.mean()), max(float(every.std(correction=0)), LEAST_SPREAD)
    if "first_score" not in state.numbers:
        state.numbers |= {"first_score": mean, "first_spread": spread, "late_score": mean}
    same = all(len(set(map(tuple, each.row.replies))) == 1 for each in rollouts)
    state.numbers["same"] = state.numbers.get("same", 0) + 1 if same else 0
    state.numbers["late_score"] += (mean - state.numbers["late_score"]) / LATE
    if state.numbers["same"] >= SAME_STEPS:
        raise Collapsed(f"the policy collapsed: for {SAME_STEPS} steps all its replies to each prompt were the same")
    first, late = state.numbers["first_score"], state.numbers["late_score"]
    if late < first - 2 * state.numbers["first_spread"]:
        raise Collapsed(f"the policy collapsed: its scores sank from {first:.2f} to {late:.2f}")


def token_values(backbone: Backbone, rows: Sequence[Row], temperature: float, reference: bool = False) -> list[Tensor]:
    """Log-probs of all reply tokens, (N,) for each row, without gradient, a pack at a time."""
    found: list[Tensor] = [torch.zeros(0)] * len(rows)
    with torch.no_grad():
        for group in together(rows, TOKENS_AT_ONCE):
            values = backbone.each_token_of([rows[at] for at in group], reference, temperature)
            for at, each in zip(group, values, strict=True):
                found[at] = each
    return found


def prompts_of(step: int, prompts: Sequence[Sequence[int]], count: int, seed: int) -> list[Sequence[int]]:
    """The prompts of a step: each once before any is repeated, in an order that the seed alone decides."""
    chosen = []
    for number in range(step * count, (step + 1) * count):
        epoch, position = divmod(number, len(prompts))
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
        chosen.append(prompts[int(order[position])])
    return chosen
