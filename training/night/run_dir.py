"""A night's own folder, `<data>/nights/<id>`: its examples, plan and checkpoints.

It lets a killed night resume, and is removed when the night has ended, so that people's feedback is kept in the
database alone. Every file appears whole or not at all.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from feedback import atomic
from feedback.example_types import Answer, Demonstration, Examples, PreferencePair, UnpairedExample
from feedback.messages import Message
from feedback.records import nights, old_names
from feedback.records.nights import EXAMPLES

PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What a night set out to do; a resumed night keeps its plan."""

    model: str
    base_sha256: str
    method: str
    settings: dict[str, Any]
    precision: str  # "bfloat16" or "float32"
    threads: int
    judges: list[int] = field(default_factory=list)  # people whose feedback is held out for judging
    why: str = ""  # the reasons for the method, and what of the examples it takes, in words
    begins: str = ""  # where it begins and why, in words; empty where that was asked for
    minutes: float | None = None  # it is expected to take; None: not known yet
    all_sha256: str = ""  # the hash of all examples, if only a part of the older ones is taken


def folder(data: Path, night_id: int) -> Path:
    """The folder of a night's files."""
    return nights.folder_of(data, night_id)


def rewards_folder(data: Path) -> Path:
    """The folder of the files that sources of reward name (`training.rewards`)."""
    return data / "rewards"


def save_plan(where: Path, plan: Plan, examples: Examples) -> None:
    """Save a night's plan and examples before it begins."""
    where.mkdir(parents=True, exist_ok=True, mode=0o700)  # only this account may read people's feedback
    atomic.write(where / EXAMPLES, json.dumps(asdict(examples)).encode())
    atomic.write(where / PLAN, json.dumps(asdict(plan), indent=1).encode())


def load_plan(where: Path) -> tuple[Plan, Examples]:
    """Load what `save_plan` wrote. Raises OSError, ValueError, KeyError or TypeError if it is not all there."""
    raw = json.loads((where / EXAMPLES).read_text())
    examples = Examples(
        pairs=tuple(map(_pair, raw["pairs"])),
        thumbs=tuple(UnpairedExample(**_answered(each)) for each in raw["thumbs"]),
        left_out=raw["left_out"],
        ties=tuple(map(_pair, raw["ties"])),
        demonstrations=tuple(Demonstration(**_answered(each)) for each in raw["demonstrations"]),
    )
    plan = json.loads((where / PLAN).read_text())
    return Plan(**plan | {"settings": old_names.settings(plan["settings"])}), examples


def _pair(raw: dict[str, Any]) -> PreferencePair:
    both = {name: _answer(raw[name]) for name in ("chosen", "rejected")}
    return PreferencePair(**raw | {"messages": _messages(raw)} | both)


def _answered(raw: dict[str, Any]) -> dict[str, Any]:
    return raw | {"messages": _messages(raw), "answer": _answer(raw["answer"])}


def _messages(raw: dict[str, Any]) -> tuple[Message, ...]:
    return tuple(Message(**each) for each in raw["messages"])


def _answer(raw: dict[str, Any]) -> Answer:
    return Answer(**raw | {"token_ids": tuple(raw["token_ids"])})


def tidy(data: Path, keep: int | None) -> None:
    """Remove what killed nights left behind, except the folder of the one that resumes."""
    for each in (data / "nights").glob("*"):
        if each.name != str(keep):
            remove(each)
    for each in (data / "adapters").glob(".*.making"):
        remove(each)


def remove(where: Path) -> None:
    """Remove the folder of a night that has ended, or an adapter's unfinished one."""
    shutil.rmtree(where, ignore_errors=True)
