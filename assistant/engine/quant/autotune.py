"""The fastest number formats on this machine, by the number of rows: measured, and kept in a small file.

Processors differ too much to guess. A choice holds for one model on one machine, and is measured again when either
changes. Eight bits are only chosen for a model that they do not harm.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant.engine.quant.formats import BFLOAT16, FLOAT32, INT4, INT8, MAKERS, FourBit, Linear, Plan, Weight
from assistant.engine.quant.int8_error import MOST_NATS, cost_of_eight_bits
from assistant.environment import AUTO
from assistant.models.base_model import Base, cache_folder
from feedback import atomic

ROWS = (1, 2, 4, 8, 16, 32, 128)  # at which the formats are compared
LAYERS = 6  # of the model that are measured: more than a processor's cache holds
REPEATS = 5
WORTH = 0.93  # of another format's time, at most, for a further copy of the weights to be worth its memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one format at each of `ROWS`."""

    number_format: str
    ms: tuple[float, ...]


def plans(base: Base, model: Any, asked: str, four_bit: Mapping[str, FourBit]) -> tuple[Plan, Plan]:
    """The plan for a model's layers and for its head."""
    if asked in (FLOAT32, BFLOAT16):
        only = Plan.only(asked)
        return only, only
    kept = _file()
    key = " ".join([_processor(), f"{torch.get_num_threads()} threads", torch.__version__, base.sha256[:16], asked])
    known = _read(kept)
    chosen = _chosen(known.get(key))
    if chosen is None:
        log.info("measuring which number formats are fastest here (once for this model)")
        formats = [FLOAT32, BFLOAT16, *(_few_bits(base, model, four_bit) if asked == AUTO else [asked])]
        layers = _layers(model, four_bit)
        head = [Weight(model.get_output_embeddings().weight)]
        measured = [_steps([time_of(layers, each) for each in formats])]
        measured.append(_steps([time_of(head, each) for each in formats if each != INT4]))
        known[key] = measured
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(kept, by=str(os.getpid())) as making:
            making.write_text(json.dumps(known, indent=1))
        chosen = _chosen(measured)
        assert chosen is not None
    return chosen


def _few_bits(base: Base, model: Any, four_bit: Mapping[str, FourBit]) -> list[str]:
    """The low-bit formats that do not harm a model."""
    cost = cost_of_eight_bits(base, model)
    log.info("eight-bit weights cost %s %.2g nats a token", base.name, cost)
    return [*([INT8] if cost <= MOST_NATS else []), *([INT4] if four_bit else [])]


def _chosen(kept: Any) -> tuple[Plan, Plan] | None:
    """The two plans as kept in the file; None if it has none that make sense."""
    try:
        layers, head = ([(int(most), str(name)) for most, name in steps] for steps in kept)
    except (TypeError, ValueError):
        return None
    if not (layers and head) or any(name not in MAKERS for _, name in layers + head):
        return None
    return Plan(tuple(layers)), Plan(tuple(head))


def time_of(weights: Sequence[Weight], number_format: str) -> Timing:
    """Measure products with all of these weights in one format."""
    linears = [Linear(weight, [number_format], "cpu") for weight in weights]
    return Timing(number_format, tuple(_ms(linears, number_format, rows) for rows in ROWS))


@torch.inference_mode()
def _ms(linears: Iterable[Linear], number_format: str, rows: int) -> float:
    inputs: list[tuple[Linear, Tensor]] = [(each, torch.randn(rows, each.in_features)) for each in linears]
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for linear, x in inputs:
            linear(x, number_format)
        taken.append(time.perf_counter() - started)
        if taken[-1] > 1:
            break  # far too slow to be chosen
    return 1000 * min(taken)


def _steps(timings: Sequence[Timing]) -> list[tuple[int, str]]:
    """The fastest format for many rows and, up to some number of rows, the one other format that saves most."""
    many = min(timings, key=lambda each: each.ms[-1])
    best, most = many, 0
    for few in timings:
        faster = [at for at in range(len(ROWS) - 1) if few.ms[at] < WORTH * many.ms[at]]
        if faster and sum(few.ms[at] / many.ms[at] - 1 for at in faster) < sum(
            best.ms[at] / many.ms[at] - 1 for at in range(most)
        ):
            best, most = few, faster[-1] + 1
    if best is many:
        return [(0, many.number_format)]
    return [((ROWS[most - 1] + ROWS[most]) // 2, best.number_format), (0, many.number_format)]


def _layers(model: Any, four_bit: Mapping[str, FourBit]) -> list[Weight]:
    names = [
        f"model.layers.{layer}.{name}"
        for layer in range(min(LAYERS, model.config.num_hidden_layers))
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    return [Weight(model.get_submodule(name).weight, None, four_bit.get(name)) for name in names]


def _file() -> Path:
    return cache_folder() / "speed.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        known = json.loads(file.read_text())
        return known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        return {}


def _processor() -> str:
    """The processor's name, and the features that matter for speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        features = [each for each in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if each in str(fields)]
        named = {key.strip(): value.strip() for key, value in fields.items()}
        return " ".join([named.get("model name", platform.processor()), *features])
    except OSError:
        return platform.processor() or platform.machine()
