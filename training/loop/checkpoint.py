"""Checkpoints: the whole state of a training as one file (weights, optimiser, position, random numbers)."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor

from feedback import atomic
from feedback.records import old_names
from training.loop.state import TrainState

POSITION = (  # the fields of a state that are not tensors
    "step",
    "kl",
    "kept_kl",
    "validation_gain",
    "evals_without_gain",
    "numbers",
    "tokens_at_once",
    "ended",
)
ADAM = ("step", "exp_avg", "exp_avg_sq")
UNUSABLE = (OSError, ValueError, KeyError, SafetensorError)  # what `load` raises


def save(path: Path, state: TrainState) -> None:
    """Write a state; the file appears whole or not at all."""
    tensors = {f"weight/{name}": each.detach() for name, each in state.parameters.items()}
    for name, each in state.parameters.items():
        tensors |= {f"{part}/{name}": value for part, value in state.optimizer.state.get(each, {}).items()}
    tensors |= {f"kept/{name}": each for name, each in (state.kept or {}).items()}
    if state.best_gains is not None:
        tensors["best_gains"] = state.best_gains
    tensors["rng"] = torch.get_rng_state()
    position = json.dumps({name: getattr(state, name) for name in POSITION})
    atomic.write(path, as_bytes({name: each.contiguous() for name, each in tensors.items()}, {"position": position}))


def load(path: Path, state: TrainState) -> None:
    """Restore the state that `save` wrote, if there is a file.

    Raises one of `UNUSABLE`, before anything is changed, if it cannot be used.
    """
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as file:
        position = json.loads(file.metadata()["position"])
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, each in state.parameters.items():
        if tensors[f"weight/{name}"].shape != each.shape:
            raise ValueError(f"it is of another adapter, at {name}")
    position["numbers"] = old_names.metrics(position.get("numbers", {}))
    with torch.no_grad():
        for name, each in state.parameters.items():
            each.copy_(tensors[f"weight/{name}"])
            # Adam counts its steps on the CPU, and has no state for parameters that have had no gradient yet.
            parts = {part: tensors[f"{part}/{name}"] for part in ADAM if f"{part}/{name}" in tensors}
            moved = {part: value if part == "step" else value.to(each.device) for part, value in parts.items()}
            if moved:
                state.optimizer.state[each] = moved
    kept = {
        name: tensors[f"kept/{name}"].to(each.device)
        for name, each in state.parameters.items()
        if f"kept/{name}" in tensors
    }
    state.kept = kept or None
    state.best_gains = tensors.get("best_gains")
    for name in POSITION:
        setattr(state, name, position.get(name, getattr(state, name)))
    torch.set_rng_state(tensors["rng"])
