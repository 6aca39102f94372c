"""Which method a night uses, and why: decided by what there is to learn from.

Imitation where demonstrations are most of what there is, DPO and KTO else; online DPO, and then RLOO or PPO, once there
are comparisons enough and the last reward models surely know something. Each threshold is a setting with its origin
(`feedback.records.settings`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.example_types import Examples
from feedback.raters import agreement
from feedback.raters.agreement import Share
from feedback.raters.reliability import shared_ratings
from feedback.records import methods, nights, settings
from training.algorithms import registry
from training.loop import distributed
from training.model import reward_heads
from training.rollouts.on_policy import PolicyConfig

AGREED_ON = 20  # items that several people rated; of fewer, their agreement says nothing
GROWN = 1.25  # reward models that decide anything learned from all comparisons but a fifth
NONE = Share(0, 0, 0.0, 1.0)
LATEST = 100  # nights among which reward models are looked for


@dataclass(frozen=True)
class Known:
    """The newest reward models: the pairs they learned from, and their accuracy on held-out pairs."""

    night: int
    pairs: int
    accuracy: Share


@dataclass(frozen=True)
class Found:
    """What there is to learn from."""

    pairs: int = 0
    comparisons: float = 0.0  # the same, a ranking of K as K - 1
    ups: int = 0
    downs: int = 0
    demonstrations: int = 0
    agreed: Share = NONE  # of two people on what both rated
    models: Known | None = None

    @property
    def preferences(self) -> float:
        """The comparisons, and the thumbs unless there is nothing to contrast them with."""
        contrast = self.pairs or (self.ups and self.downs)
        return self.comparisons + (self.ups + self.downs if contrast else 0)

    @property
    def models_are_old(self) -> bool:
        """Whether there are no reward models, or many comparisons that they know nothing of."""
        return self.models is None or self.pairs > GROWN * self.models.pairs


@dataclass(frozen=True)
class Choice:
    """A method, and the reasons for it in words; empty where it was asked for."""

    method: str
    why: str = ""


def made(store: Database, base: Base, examples: Examples, asked: str | None) -> Choice:
    """The method that was asked for, or else the one that what there is calls for."""
    if asked:
        return Choice(asked)
    return decided(found(store, base, examples), settings.all_settings(store), _is_possible)


def _is_possible(method: str) -> bool:
    """Whether the processes of this night can run a method."""
    return distributed.count() == 1 or registry.find(method).distributed


def found(store: Database, base: Base, examples: Examples) -> Found:
    """What there is to learn from."""
    ups = sum(each.wanted for each in examples.thumbs)
    return Found(
        pairs=len(examples.pairs),
        comparisons=round(sum(each.counts_as for each in examples.pairs), 6),
        ups=ups,
        downs=len(examples.thumbs) - ups,
        demonstrations=len(examples.demonstrations),
        agreed=agreement.agreement(shared_ratings(store)),
        models=newest_models(store, base),
    )


def newest_models(store: Database, base: Base) -> Known | None:
    """The newest reward models on this base."""
    for night in nights.nights(store, LATEST):
        path = nights.reward_models_of(store, night.id) / reward_heads.CARD
        card = json.loads(path.read_text()) if path.is_file() else {}
        if card.get("base_sha256") == base.sha256:
            judged = card["metrics"]
            right, of = judged.get("accuracy", 0.0), judged.get("pairs", 0)
            share = Share(round(right * of), of, judged.get("low", 0.0), judged.get("high", 1.0))
            return Known(night.id, Examples.pairs_in(night.counts), share)
    return None


def decided(found: Found, limits: Mapping[str, Any], is_possible: Callable[[str], bool] = lambda _: True) -> Choice:
    """The method that this calls for, with the reasons; `limits` are the operator's settings by name."""
    # 1. imitation, where what people wrote is most of what they said
    if found.demonstrations > found.preferences:
        than = f"{found.preferences:,.0f} preferences" if found.preferences else "nothing that prefers a reply"
        return because(methods.SFT.name, f"{found.demonstrations:,} demonstrations, and {than}")

    # 2. a policy by reward models, once they surely know something
    chance = PolicyConfig().least_reward_accuracy
    steps = (
        (limits["policy_method"], limits["policy_comparisons"], limits["policy_accuracy"]),
        (methods.ONLINE_DPO.name, limits["online_dpo_comparisons"], chance),
    )
    waiting: list[str] = []
    for method, comparisons, accuracy in steps:
        few = too_few(found, comparisons, limits["policy_agreement"])
        missing = few if few and found.models is None else [*few, *too_unsure(found, accuracy)]
        if not is_possible(method):
            missing = ["it is for one process"]
        if not missing:
            return because(method, f"{found.comparisons:,.0f} comparisons, {right(found)}", *waiting)
        waiting.append(f"{methods.word_of(method)} waits: {', '.join(missing)}")

    # 3. these, once there are enough comparisons to learn from
    enough = not too_few(found, steps[-1][1], limits["policy_agreement"])
    if enough and found.models_are_old and is_possible(methods.REWARD.name):
        return because(methods.REWARD.name, *waiting)

    # 4. DPO and KTO on all that was said
    return because(methods.AUTO.name, *waiting) if found.preferences else Choice(methods.AUTO.name)


def because(method: str, *reasons: str) -> Choice:
    """A method with its reasons."""
    return Choice(method, f"by {methods.word_of(method)}: {'; '.join(reasons)}")


def too_few(found: Found, comparisons: int, agreement: float) -> list[str]:
    """What is missing of comparisons to train reward models on, in words."""
    missing = []
    if found.comparisons < comparisons:
        missing.append(f"{found.comparisons:,.0f} of {comparisons:,} comparisons")
    if found.agreed.whole >= AGREED_ON and found.agreed.share < agreement:
        missing.append(f"people agree on {found.agreed.share:.0%} of what several rated, not {agreement:.0%}")
    return missing


def too_unsure(found: Found, accuracy: float) -> list[str]:
    """What the newest reward models lack to be learned from, in words."""
    if found.models is None:
        return ["no reward models yet"]
    if found.models_are_old:
        return [f"the reward models of night {found.models.night} know {found.models.pairs:,} of {found.pairs:,} pairs"]
    if found.models.accuracy.low <= accuracy:
        return [f"{right(found)}, not surely more than {accuracy:.0%}"]
    return []


def right(found: Found) -> str:
    """How often the newest reward models are right, in words."""
    if found.models is None or not found.models.accuracy.whole:
        return "reward models not judged"
    share = found.models.accuracy
    return f"reward models right on {share.share:.0%} ({share.low:.0%} to {share.high:.0%})"
