"""How fast nights learn, and in how much memory, ours and TRL's, measured in one run.

    python -m benchmarks.training [--rounds N] [--pairs N] [--only dpo,reward,...] [--batches 8,1,2,4] [--memory]

The embedded model, the same real pairs in the same order, the same LoRA and number format; the two programs take turns,
and medians over the rounds are told. The last line is one JSON object:

- `dpo`, `reward`: pairs a second of `ours` and of `trl` as it comes (batch 8), their `ratio`, and `ratio_best`, against
  TRL at its best batch size; `dpo.tokens_s`; `dpo.second_night_ratio`, the same pairs, the reference's log-probs kept
- `rloo`: sampled replies a second of a whole step, rollouts and learning, at equal rollouts
- `ceiling_gflops`, the machine's own matrix products, and `dpo.flops_share` of it
- with `--memory`: `memory_ratio`, our peak over TRL's for DPO, each in a process of its own, and `ppo.memory_over_dpo`,
  the peak of PPO with three reward models and a value model over that of our DPO

What was not asked for or could not be measured is null, and `skipped` says why.
"""

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assistant.models import base_model
from assistant.models.base_model import Base
from benchmarks.contest import say
from benchmarks.loop import processor
from benchmarks.peers.schooling import PAIRS, REPLIES, Asked, Learned
from benchmarks.programs import Command, Failed, Program, start

PARTS = ("dpo", "reward", "rloo")
OURS, TRL = "ours", "trl"
USUAL = 8  # TRL's default batch size
BATCH = 8  # ours, as in a night
PROMPTS = 4  # of a rollout step
KEEP = 400  # pairs that are loaded


@dataclass(frozen=True)
class Settings:
    """The settings of a run."""

    rounds: int
    pairs: int
    parts: tuple[str, ...]
    batches: tuple[int, ...]
    number_format: str
    memory: bool
    speed: bool


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the programs are ended too
    print(json.dumps(measure(read_options())))


def read_options() -> Settings:
    """Read the settings from the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--pairs", type=int, default=32, help="in a turn")
    options.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}, or nothing")
    options.add_argument("--batches", default="8,1,2,4", help="of TRL; 8 is always among them")
    options.add_argument("--format", default="", help="bfloat16 or float32; left out, what is faster here")
    options.add_argument("--memory", action="store_true", help="measure peaks, too")
    chosen = options.parse_args()
    parts = tuple(filter(None, chosen.only.split(",")))
    for each in parts:
        if each not in PARTS:
            options.error(f"{each!r} is none of {', '.join(PARTS)}")
    try:
        batches = tuple(dict.fromkeys([USUAL, *map(int, chosen.batches.split(","))]))
    except ValueError:
        options.error(f"batches are whole numbers, not {chosen.batches!r}")
    if min(*batches, chosen.rounds, chosen.pairs, 1) < 1:
        options.error("rounds, pairs and batches are at least 1")
    if not PAIRS.is_file():
        options.error(f"there is no {PAIRS}")
    number_format = chosen.format or str(base_model.fastest_dtype("cpu")).removeprefix("torch.")
    return Settings(chosen.rounds, chosen.pairs, parts, batches, number_format, chosen.memory, bool(parts))


class Bench:
    """The two programs, and the position of the next pairs."""

    def __init__(self, base: Base, settings: Settings) -> None:
        self.settings = settings
        here, peers = Path(sys.executable), "benchmarks.peers"
        self.commands = {
            OURS: Command(settings.number_format, here, f"{peers}.nightschool_training", [base.name]),
            TRL: Command(settings.number_format, here, f"{peers}.trl_training", [str(base.path)]),
        }
        self.programs: dict[str, Program] = {}
        self.skipped: dict[str, str] = {}
        self.first = 0

    def begin(self) -> None:
        """Start both. Raises `Failed` if ours cannot start."""
        for name, command in self.commands.items():
            try:
                self.programs[name] = start(command)
            except Failed as error:
                if name == OURS:
                    raise
                self.skipped[name] = str(error)

    def take(self, name: str, asked: Asked) -> Learned:
        """Take one turn of one program. Raises `Failed`."""
        return ask(self.programs[name], asked)

    def next_pairs(self, count: int) -> int:
        """The position of pairs that no turn has had, starting over when they are used up."""
        at, self.first = self.first, self.first + count
        if self.first + count > KEEP:
            self.first = 0
        return at

    def close(self) -> None:
        """End both."""
        for each in self.programs.values():
            each.close()


def ask(program: Program, asked: Asked) -> Learned:
    """Take one turn with only this program awake. Raises `Failed`."""
    assert program.process.stdin is not None
    with program.awake():
        program.process.stdin.write(json.dumps(asdict(asked)) + "\n")
        program.process.stdin.flush()
        return Learned(**program.hear())


def measure(settings: Settings) -> dict[str, Any]:
    """All figures, by name."""
    base = base_model.find_base(base_model.EMBEDDED)
    figures: dict[str, Any] = dict.fromkeys((*PARTS, "memory_ratio", "ceiling_gflops"))
    figures |= {"ppo": {"memory_over_dpo": None}, "processor": processor(), "format": settings.number_format}
    bench = Bench(base, settings)
    try:
        if settings.speed:
            bench.begin()
            ceiling = bench.take(OURS, Asked("ceiling", 0, 1, 1))
            figures["ceiling_gflops"] = round(ceiling.flops / ceiling.seconds / 1e9, 1)
            for part in settings.parts:
                figures[part] = rollouts(bench) if part == "rloo" else pairs_a_second(bench, part, figures)
    finally:
        bench.close()
    if settings.memory:
        figures |= memory(bench)
    return figures | {"skipped": bench.skipped}


def pairs_a_second(bench: Bench, task: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Measure ours at its batch size and TRL at each of its own, taking turns on the same pairs."""
    count = bench.settings.pairs
    ways = [(OURS, BATCH)] + [(TRL, size) for size in bench.settings.batches if TRL in bench.programs]
    rates: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    again: list[float] = []
    best_share, tokens_s = [], []
    for turn in range(bench.settings.rounds + 1):  # the first warms up
        first = bench.next_pairs(count)
        for name, size in list(rates):
            try:
                took = bench.take(name, Asked(task, first, count, size))
            except Failed as error:
                if name == OURS:
                    raise
                bench.skipped[f"{name} {task}"] = str(error)
                rates = {way: each for way, each in rates.items() if way[0] == OURS}
                bench.programs.pop(TRL).close()
                break
            say(f"{task}: {name} at batch {size}: {took.examples / took.seconds:.2f} pairs/s")
            if turn:
                rates[name, size].append(took.examples / took.seconds)
                if name == OURS:
                    best_share.append(took.flops / took.seconds / 1e9)
                    tokens_s.append(took.tokens / took.seconds)
        if task == "dpo":
            took = bench.take(OURS, Asked("dpo again", first, count, BATCH))
            if turn:
                again.append(took.examples / took.seconds)
    return told(rates, task, again, best_share, tokens_s, figures["ceiling_gflops"])


def told(
    rates: dict[tuple[str, int], list[float]],
    task: str,
    again: Sequence[float],
    gflops: Sequence[float],
    tokens_s: Sequence[float],
    ceiling: float,
) -> dict[str, Any]:
    """Medians and ratios."""
    median = {way: statistics.median(each) for way, each in rates.items()}
    ours, theirs = median[OURS, BATCH], {size: each for (name, size), each in median.items() if name == TRL}
    found: dict[str, Any] = {"ours": round(ours, 3), "trl": None, "ratio": None, "ratio_best": None}
    if theirs:
        found |= {"trl": round(theirs[USUAL], 3), "ratio": round(ours / theirs[USUAL], 2)}
        found |= {"ratio_best": round(ours / max(theirs.values()), 2)}
        found["trl_by_batch"] = {str(size): round(each, 3) for size, each in theirs.items()}
    if task == "dpo":
        found["tokens_s"] = round(statistics.median(tokens_s), 1)
        found["second_night_ratio"] = round(statistics.median(again) / ours, 2)
        found["flops_share"] = round(statistics.median(gflops) / ceiling, 3)
    return found


def rollouts(bench: Bench) -> dict[str, Any]:
    """A step of RLOO each: the same prompts, as many replies of as many tokens at most, the same rule as reward."""
    rates: dict[str, list[float]] = {name: [] for name in bench.programs}
    for turn in range(bench.settings.rounds + 1):
        first = bench.next_pairs(PROMPTS)
        for name in list(rates):
            try:
                took = bench.take(name, Asked("rloo", first, PROMPTS, PROMPTS * REPLIES))
            except Failed as error:
                if name == OURS:
                    raise
                bench.skipped[f"{name} rloo"] = str(error)
                rates.pop(name)
                continue
            say(f"rloo: {name}: {took.examples / took.seconds:.2f} replies/s")
            if turn:
                rates[name].append(took.examples / took.seconds)
    ours = statistics.median(rates[OURS])
    theirs = statistics.median(rates[TRL]) if rates.get(TRL) else None
    ratio = round(ours / theirs, 2) if theirs else None
    return {"ours": round(ours, 3), "trl": theirs and round(theirs, 3), "ratio": ratio}


def memory(bench: Bench) -> dict[str, Any]:
    """Peak memory, each measured in a process of its own."""
    peaks: dict[tuple[str, str], int] = {}
    for name, task in ((OURS, "dpo"), (TRL, "dpo"), (OURS, "ppo")):
        count = PROMPTS if task == "ppo" else 2 * USUAL
        try:
            program = start(bench.commands[name])
        except Failed as error:
            bench.skipped[f"memory of {name}"] = str(error)
            continue
        try:
            peaks[name, task] = ask(program, Asked(task, 0, count, USUAL)).peak_bytes
            say(f"memory: {name} {task}: {peaks[name, task] / 2**30:.2f} GiB")
        except Failed as error:
            bench.skipped[f"memory of {name} {task}"] = str(error)
        finally:
            program.close()

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> float | None:
        return round(peaks[one] / peaks[other], 2) if one in peaks and other in peaks else None

    return {
        "memory_ratio": ratio((OURS, "dpo"), (TRL, "dpo")),
        "ppo": {"memory_over_dpo": ratio((OURS, "ppo"), (OURS, "dpo"))},
        "peaks_gib": {f"{name} {task}": round(each / 2**30, 2) for (name, task), each in peaks.items()},
    }


if __name__ == "__main__":
    main()
