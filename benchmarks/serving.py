"""How fast replies come, ours and those of other programs, measured in one run.

    python -m benchmarks.serving [--rounds N] [--only streams1,...] [--peers llama_cpp,...] [--no-quality]

The embedded model, prompts of 128 tokens, replies of 64; programs take turns, and medians over the rounds are told.
The last line is one JSON object:

- `streams1`, `streams4`, `streams16`: tokens a second of each program, from the submission of all requests to the
  last token, and `ratio_...`, how many times a peer's ours are
- `lora16_share`: 16 streams over four adapters beside 16 of the base
- `swap_p99_ratio`: 99th percentile of the time between tokens while adapters come and go, over that while one stays;
  `dropped`: replies that ended wrongly meanwhile
- `quality_nats_per_token`: mean KL of the served number format from float32, on the replies of 24 conversations
- `bandwidth_gb_s` of reading memory; `bandwidth_share` of it that the weights take while one reply is written
- `prefill_ms`: a reply of one token; `first_token_ms`: median over 16 requests made at once

What could not be measured is null, and `skipped` says why. `ways` are the number formats and the like that were
fastest; `disturbed` counts the turns in which something else used the processor.
HTTP is not measured: every program has its own around it, which would hide what is compared.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from assistant.models import base_model
from assistant.models.base_model import Base
from benchmarks import material, quality
from benchmarks.contest import MANY, Contest, say
from benchmarks.entrants import NEW_TOKENS, OURS, PEERS
from benchmarks.loop import processor
from benchmarks.peers.exchange import Took, Turn
from benchmarks.programs import cores
from feedback.errors import Refused

STREAMS = {"streams1": 1, "streams4": 4, "streams16": 16}
PARTS = (*STREAMS, "lora", "swap", "quality")
PROMPT_TOKENS = 128
ADAPTERS = 4
SWAP_REQUESTS, SWAP_TOKENS = 2 * MANY, 128  # each of the crowd asks twice
CONVERSATIONS = 24
READ_BYTES = 800_000_000


@dataclass(frozen=True)
class Settings:
    """The settings of a run."""

    rounds: int
    parts: tuple[str, ...]
    peers: tuple[str, ...]

    @property
    def streams(self) -> dict[str, int]:
        """The numbers of streams, fewest first."""
        return {name: count for name, count in STREAMS.items() if name in self.parts}


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the programs are ended too
    figures = measure(read_options())
    print(table(figures))
    print(json.dumps(figures))


def read_options() -> Settings:
    """Read the settings from the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    options.add_argument("--peers", default=",".join(PEERS), help=f"some of {','.join(PEERS)}, or nothing")
    options.add_argument("--no-quality", action="store_true")
    chosen = options.parse_args()
    parts, peers = (tuple(filter(None, each.split(","))) for each in (chosen.only, chosen.peers))
    for names, known in ((parts, PARTS), (peers, PEERS)):
        for each in names:
            if each not in known:
                options.error(f"{each!r} is none of {', '.join(known)}")
    if chosen.rounds < 1:
        options.error(f"rounds is a whole number from 1, not {chosen.rounds}")
    return Settings(chosen.rounds, tuple(each for each in parts if each != "quality" or not chosen.no_quality), peers)


def measure(settings: Settings) -> dict[str, Any]:
    """All figures, by name."""
    base = base_model.find_base(base_model.EMBEDDED)
    contest = Contest(base, material.prompts(base_model.load_tokenizer(base), PROMPT_TOKENS), settings.rounds)
    try:
        for name in (OURS, *settings.peers):
            contest.admit(name, sorted({1, MANY, *settings.streams.values()}))
        figures = speeds(contest, settings) | with_adapters(contest, settings) | described(contest)
    finally:
        contest.close()
    figures["quality_nats_per_token"] = None
    if "quality" in settings.parts:
        try:
            figures["quality_nats_per_token"] = nats_per_token(base)
        except Refused as error:
            contest.skipped["quality_nats_per_token"] = str(error)
    return figures | {"processor": f"{processor()}, {cores()} threads", "skipped": contest.skipped}


def speeds(contest: Contest, settings: Settings) -> dict[str, Any]:
    """Tokens per second of all programs, and their times to the first token."""
    figures: dict[str, Any] = dict.fromkeys((*STREAMS, "bandwidth_gb_s", "bandwidth_share", "first_token_ms"))
    for name, count in settings.streams.items():
        took = contest.everyone(count)
        figures[name] = beside(took)
        if count == 1:
            figures |= bandwidth(took[OURS], contest.entrants[OURS].chosen[1].facts["weight_bytes"])
        if count == MANY:
            firsts = {name: [first for each in some for first in each.first_token_s] for name, some in took.items()}
            figures["first_token_ms"] = {name: round(1000 * statistics.median(some)) for name, some in firsts.items()}
    read = contest.everyone(1, new_tokens=1)
    figures["prefill_ms"] = {name: round(1000 * median_s(some), 1) for name, some in read.items()}
    return figures


def beside(took: dict[str, list[Took]]) -> dict[str, float | None]:
    """Median tokens per second of each program, and ours over each peer's."""
    rates = {name: rate(took[name]) if name in took else None for name in (OURS, *PEERS)}
    ours = rates[OURS] or 0.0
    ratios = {f"ratio_{name}": round(ours / each, 2) if (each := rates[name]) else None for name in PEERS}
    return {name: each and round(each, 1) for name, each in rates.items()} | ratios


def rate(took: Sequence[Took]) -> float:
    """Median tokens per second."""
    return statistics.median(each.rate for each in took)


def median_s(took: Sequence[Took]) -> float:
    """Median seconds of a turn."""
    return statistics.median(each.seconds for each in took)


def bandwidth(took: Sequence[Took], weight_bytes: int) -> dict[str, float]:
    """The memory's read bandwidth, and the share of it that reading the weights for every token takes."""
    torch.set_num_threads(cores())
    numbers = torch.ones(READ_BYTES // 4)
    best_s = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        numbers.sum()
        best_s = min(best_s, time.perf_counter() - started)
    steps_a_second = statistics.median((NEW_TOKENS - 1) / (each.seconds - each.first_token_s[0]) for each in took)
    share = weight_bytes * steps_a_second * best_s / READ_BYTES
    return {"bandwidth_gb_s": round(READ_BYTES / best_s / 1e9, 1), "bandwidth_share": round(share, 3)}


def with_adapters(contest: Contest, settings: Settings) -> dict[str, Any]:
    """The cost of many adapters in one batch, and the effect of swapping them on replies being written."""
    figures: dict[str, Any] = dict.fromkeys(("lora16_share", "swap_p99_ratio", "dropped"))
    with tempfile.TemporaryDirectory() as scratch:
        adapters = [str(each) for each in material.make_adapters(contest.base, Path(scratch), ADAPTERS)]
        if "lora" in settings.parts:
            plain, adapted = Turn([], NEW_TOKENS), Turn([], NEW_TOKENS, adapters)
            base_took, adapters_took = contest.two_ways(MANY, plain, adapted)
            figures["lora16_share"] = round(rate(adapters_took) / rate(base_took), 3)
        if "swap" in settings.parts:
            stay, swap = (Turn([], SWAP_TOKENS, adapters, task) for task in ("stay", "swap"))
            stayed, swapped = contest.two_ways(SWAP_REQUESTS, stay, swap)
            figures["swap_p99_ratio"] = round(p99_s(swapped) / p99_s(stayed), 3)
            figures["dropped"] = sum(each.dropped for each in [*stayed, *swapped])
            say(f"{sum(each.swaps for each in swapped)} swaps, p99 {1000 * p99_s(swapped):.0f} ms a token")
    return figures


def p99_s(took: Sequence[Took]) -> float:
    """The 99th percentile of the time between two tokens, over all turns."""
    return statistics.quantiles([interval for each in took for interval in each.intervals_s], n=100)[98]


def described(contest: Contest) -> dict[str, Any]:
    """The ways in which the programs ran, their facts (such as versions), and how often they were disturbed."""
    every = contest.entrants.items()
    return {
        "ways": {name: {count: each.command.kind for count, each in one.chosen.items()} for name, one in every},
        "facts": {name: one.programs[0].facts for name, one in every},
        "disturbed": {name: sum(each.disturbed for each in one.programs) for name, one in every},
    }


def nats_per_token(base: Base) -> float:
    """The cost of the served number format. Raises `Refused` without conversations."""
    from benchmarks.peers.nightschool_engine import open_engine

    exact, served = open_engine(base, "float32"), open_engine(base, "auto")
    try:
        conversations = material.conversations(base_model.load_tokenizer(base), CONVERSATIONS)
        say(f"quality on {len(conversations)} conversations")
        return round(quality.nats_per_token(exact.distributions, served.distributions, conversations), 5)
    finally:
        exact.close()
        served.close()


def table(figures: dict[str, Any]) -> str:
    """The figures as a table to read."""
    lines = [f"{'tokens a second':18}" + "".join(f"{name:>14}" for name in (OURS, *PEERS))]
    for name in STREAMS:
        rates = figures[name] or {}
        cells = [rates.get(each) for each in (OURS, *PEERS)]
        ratios = [None, *(rates.get(f"ratio_{each}") for each in PEERS)]
        shown = [f"{'-' if cell is None else cell}{'' if times is None else f' ({times}x)'}" for cell, times in
                 zip(cells, ratios, strict=True)]  # fmt: skip
        lines.append(f"{name:18}" + "".join(f"{each:>14}" for each in shown))
    for name in ("prefill_ms", "first_token_ms"):
        told = figures[name] or {}
        lines.append(f"{name:18}" + "".join(f"{told.get(each, '-'):>14}" for each in (OURS, *PEERS)))
    rest = ("lora16_share", "swap_p99_ratio", "dropped", "quality_nats_per_token", "bandwidth_gb_s", "bandwidth_share")
    lines += [f"{name:24} {'-' if figures[name] is None else figures[name]}" for name in rest]
    lines += [f"skipped {name}: {why}" for name, why in figures["skipped"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
