"""A night's own folder, `<data>/nights/<id>`: what it trains on, how, and its checkpoint.

It is there so that a killed night can go on, and is removed when the night has ended: what people said is kept in one
place only, the store. Every file appears whole or not at all.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from feedback import atomic
from feedback.example_types import Answer, Demonstration, Examples, PreferencePair, UnpairedExample
from feedback.messages import Message
from feedback.records import nights, old_names
from feedback.records.nights import EXAMPLES
from training.loop.early_stopping import Progress
from training.loop.optim import Run

POSITION = (  # what `Progress` holds beside tensors
    "step",
    "kl",
    "validation_gain",
    "kept_kl",
    "evals_without_gain",
    "tokens_at_once",
    "ended",
)
RUN_POSITION = ("step", "numbers", "tokens_at_once", "ended")
PLAN, CHECKPOINT = "plan.json", "checkpoint.safetensors"


@dataclass(frozen=True)
class Plan:
    """What a night set out to do; it goes on only with the same."""

    model: str
    base_sha256: str
    method: str
    settings: dict[str, Any]
    precision: str  # "bfloat16" or "float32"
    threads: int
    judges: list[int] = field(default_factory=list)  # people whose feedback is kept for judging


def folder(data: Path, night_id: int) -> Path:
    """Where a night keeps its files."""
    return nights.folder_of(data, night_id)


def save_plan(where: Path, plan: Plan, examples: Examples) -> None:
    """Write down what a night trains on and how, before it begins."""
    where.mkdir(parents=True, exist_ok=True, mode=0o700)  # what people said is for this account's eyes
    atomic.write(where / EXAMPLES, json.dumps(asdict(examples)).encode())
    atomic.write(where / PLAN, json.dumps(asdict(plan), indent=1).encode())


def load_plan(where: Path) -> tuple[Plan, Examples]:
    """What `save_plan` wrote. Raises OSError, ValueError, KeyError or TypeError where it is not all there."""
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


def save_checkpoint(where: Path, parameters: Mapping[str, nn.Parameter], progress: Progress) -> None:
    """Write the whole state of training as one file: weights, optimiser, position, RNG."""
    tensors = {f"weight/{name}": each.detach() for name, each in parameters.items()}
    for name, each in parameters.items():
        for key, value in progress.optimizer.state[each].items():
            tensors[f"{key}/{name}"] = value
    if progress.best_gains is not None:
        tensors["best_gains"] = progress.best_gains
    tensors["rng"] = torch.get_rng_state()
    tensors |= {f"kept/{name}": each for name, each in (progress.kept or {}).items()}
    position = {name: getattr(progress, name) for name in POSITION}
    contents = save({name: each.contiguous() for name, each in tensors.items()}, {"position": json.dumps(position)})
    atomic.write(where / CHECKPOINT, contents)


def load_checkpoint(where: Path, parameters: Mapping[str, nn.Parameter], progress: Progress) -> None:
    """Put back what `save_checkpoint` wrote, if there is one.

    Raises OSError, ValueError, KeyError or SafetensorError, before anything is changed, where it cannot be used.
    """
    path = where / CHECKPOINT
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as file:
        position = json.loads(file.metadata()["position"])
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    states = {
        name: {key: tensors[f"{key}/{name}"] for key in ("weight", "step", "exp_avg", "exp_avg_sq")}
        for name in parameters
    }
    fits = all(states[name]["weight"].shape == each.shape for name, each in parameters.items())
    if not fits:
        raise ValueError("it is of another adapter")
    with torch.no_grad():
        for name, each in parameters.items():
            each.copy_(states[name].pop("weight"))
            # Adam counts its steps on the CPU.
            state = {key: value if key == "step" else value.to(each.device) for key, value in states[name].items()}
            progress.optimizer.state[each] = state
    if f"kept/{next(iter(parameters))}" in tensors:
        progress.kept = {name: tensors[f"kept/{name}"].to(each.device) for name, each in parameters.items()}
    progress.best_gains = tensors.get("best_gains")
    for name in POSITION:
        setattr(progress, name, position[name])
    torch.set_rng_state(tensors["rng"])


def save_run(where: Path, run: Run, name: str = "run") -> None:
    """Write the whole state of a run as one file: weights, optimiser, position, RNG."""
    tensors = {f"weight/{key}": each.detach() for key, each in run.parameters.items()}
    for key, each in run.parameters.items():
        tensors |= {f"{part}/{key}": value for part, value in run.optimizer.state[each].items()}
    tensors |= {f"kept/{key}": each for key, each in (run.kept or {}).items()}
    tensors["rng"] = torch.get_rng_state()
    position = json.dumps({name: getattr(run, name) for name in RUN_POSITION})
    contents = save({key: each.contiguous() for key, each in tensors.items()}, {"position": position})
    atomic.write(where / f"{name}.safetensors", contents)


def load_run(where: Path, run: Run, name: str = "run") -> None:
    """Put back what `save_run` wrote, if there is something.

    Raises OSError, ValueError, KeyError or SafetensorError, before anything is changed, where it cannot be used.
    """
    path = where / f"{name}.safetensors"
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as file:
        position = json.loads(file.metadata()["position"])
        tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    position["numbers"] = old_names.metrics(position["numbers"])
    for key, each in run.parameters.items():
        if tensors[f"weight/{key}"].shape != each.shape:
            raise ValueError(f"it is of another adapter, at {key}")
    with torch.no_grad():
        for key, each in run.parameters.items():
            each.copy_(tensors[f"weight/{key}"])
            parts = {part: tensors.get(f"{part}/{key}") for part in ("step", "exp_avg", "exp_avg_sq")}
            # Adam counts its steps on the CPU, and has no state for what has had no gradient yet.
            moved = {part: v if part == "step" else v.to(each.device) for part, v in parts.items() if v is not None}
            if moved:
                run.optimizer.state[each] = moved
    run.kept = {
        key.removeprefix("kept/"): each.to(next(iter(run.parameters.values())).device)
        for key, each in tensors.items()
        if key.startswith("kept/")
    } or None
    for name in RUN_POSITION:
        setattr(run, name, position[name])
    torch.set_rng_state(tensors["rng"])


def tidy(data: Path, keep: int | None) -> None:
    """Remove what killed nights left behind, but for the one that goes on."""
    for each in (data / "nights").glob("*"):
        if each.name != str(keep):
            remove(each)
    for each in (data / "adapters").glob(".*.making"):
        remove(each)


def remove(where: Path) -> None:
    """A night that has ended needs its folder no more."""
    shutil.rmtree(where, ignore_errors=True)
