"""The adapters that a training begins from and refers to, and the reason in words."""

import math
from dataclasses import dataclass
from typing import Any

from assistant.models.adapter import AdapterCard, checked_card
from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.errors import NotFound, Refused
from feedback.records import adapters, nights
from training.algorithms import registry
from training.algorithms.base import Method
from training.loop.config import SERVES, Config
from training.night.run_dir import Plan

SHAPE = ("rank", "alpha")  # of an adapter; what begins as one has its
ROOM = 0.6  # the share of the KL budget that an adapter may have used up, for a training to begin from it


@dataclass(frozen=True)
class Wishes:
    """What a night is asked for; None or empty where nothing is."""

    method: str | None  # None: the plan decides
    settings: dict[str, Any]
    fresh: bool


def staged(store: Database, base: Base, method: Method, config: Config, wishes: Wishes) -> tuple[Config, str]:
    """The config with the adapters decided that training begins from and refers to, and why it begins there.

    It takes the former's rank. Raises `Refused` if one of them cannot be used.
    """
    start, reference, why = config.start_from, config.reference, ""
    if start == SERVES:
        start, why = beginning(store, base, config, wishes)
    if not method.makes_adapter and (start or reference):
        raise Refused(f"{method.name} makes reward models, which begin as the base and refer to nothing")
    cards = {id: _card_of(store, base, id) for id in {start, reference} - {""}}
    found: dict[str, Any] = {"start_from": start}
    if start:
        found |= {name: cards[start].settings[name] for name in SHAPE}
        for name in SHAPE:
            if wishes.settings.get(name, found[name]) != found[name]:
                raise Refused(f"{name} is {found[name]}, that of {start}, which training begins from")
    return config.model_copy(update=found), why


def beginning(store: Database, base: Base, config: Config, wishes: Wishes) -> tuple[str, str]:
    """The adapter that a policy begins from, empty for the base, and why: what serves, or else the newest imitation."""
    serving = adapters.serving(store)
    if serving is None:
        missing = "nothing serves yet"
    else:
        missing = _why_not_from(store, base, serving, config, wishes)
        if not missing:
            return serving, f"it begins from {serving}, which serves"
    imitating = {name for name, known in registry.every().items() if "demonstrations" in known.learns_from}
    for each in adapters.adapters(store):
        possible = each.method in imitating and each.verdict == "candidate" and each.id != serving
        if possible and not _why_not_from(store, base, each.id, config, wishes):
            return each.id, f"it begins from {each.id}, the newest imitation, as {missing}"
    return "", f"it begins from the base, as {missing}" if serving else ""


def _why_not_from(store: Database, base: Base, adapter: str, config: Config, wishes: Wishes) -> str:
    """The reason why a training cannot begin from an adapter; empty if it can."""
    try:
        card = _card_of(store, base, adapter)
    except Refused as error:
        return str(error)
    for name in SHAPE:
        if (asked := wishes.settings.get(name, card.settings[name])) != card.settings[name]:
            return f"{name} {asked} is asked for, and {adapter} has {card.settings[name]}"
    budget, spent = getattr(config, "kl_budget", math.inf), card.metrics.get("kl", math.inf)
    if spent > ROOM * budget:
        return f"{adapter} is {spent:.2f} nats from the base, more than {ROOM:.0%} of {budget:g}"
    return ""


def _card_of(store: Database, base: Base, adapter: str) -> AdapterCard:
    """An adapter's card. Raises `Refused` if there is none of this base, it does not tell its rank, or has to go."""
    try:
        known = adapters.adapter(store, adapter)
    except NotFound as error:
        raise Refused(str(error)) from error
    if nights.forgotten_people(store, known.night):
        raise Refused(f"{adapter} learned from somebody who was forgotten, so no training can begin from it")
    card = checked_card(adapters.directory(store, adapter), base.sha256)
    if not all(isinstance(card.settings.get(name), int) for name in SHAPE):
        raise Refused(f"{adapter} does not tell its rank, so no training can begin from it")
    return card


def in_stages(plan: Plan) -> str:
    """What a plan's training begins from and refers to, in words; empty if both are the base."""
    start, reference = plan.settings.get("start_from"), plan.settings.get("reference")
    begins = plan.begins or (f"from {start}" if start else "")
    told = (begins, f"with {reference} as its reference" if reference else "")
    return ", ".join(filter(None, told))


def earlier_nights(store: Database, plan: Plan) -> list[int]:
    """The nights that made what a plan's training begins from and refers to."""
    named = {plan.settings.get("start_from"), plan.settings.get("reference")} - {"", None}
    made = (adapters.adapter(store, str(each)).night for each in sorted(map(str, named)))
    return [night for night in made if night is not None]
