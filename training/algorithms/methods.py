"""The methods of a night, and the settings of each."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from feedback.errors import Refused
from feedback.records import old_names
from training.algorithms import dpo_kto, ppo, reward_model, rloo, sft

SETTINGS: dict[str, type[Any]] = {
    "auto": dpo_kto.Settings,
    "dpo": dpo_kto.Settings,
    "kto": dpo_kto.Settings,
    "sft": sft.Settings,
    "reward": reward_model.Settings,
    "rloo": rloo.Settings,
    "reinforce": rloo.Settings,
    "ppo": ppo.Settings,
}
LEARNED: dict[str, tuple[str, ...]] = {  # the kinds of examples (`feedback.examples.build.KINDS`) that each learns from
    "auto": ("pairs", "thumbs"),
    "dpo": ("pairs",),
    "kto": ("thumbs",),
    "sft": ("demonstrations",),
    "reward": ("pairs", "ties"),
    "rloo": ("pairs", "ties", "thumbs"),
    "reinforce": ("pairs", "ties", "thumbs"),
    "ppo": ("pairs", "ties", "thumbs", "demonstrations"),
}
SAMPLING = ("rloo", "reinforce", "ppo")  # they learn from what they write, by reward models


def parse_settings(method: str, pairs: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts as checked settings. Raises `Refused` on an unknown name or a value of another kind."""
    known = SETTINGS[method]
    kinds: dict[str, Any] = {each.name: type(each.default) for each in fields(known)}
    values: dict[str, Any] = {}
    for pair in pairs:
        written, equals, text = (part.strip() for part in pair.partition("="))
        name = old_names.SETTINGS.get(written, written)
        if not equals or name not in kinds:
            raise Refused(f"there is no setting {written!r}; settings are {', '.join(kinds)}")
        try:
            values |= old_names.settings({written: kinds[name](text)})
        except ValueError as error:
            wanted = "a whole number" if kinds[name] is int else "a number"
            raise Refused(f"{written} is {wanted}, not {text!r}") from error
    known(**values)
    return values
