"""How much a night learns from few interactions: win rates over their number. The last line is JSON.

`python -m benchmarks.curve --keep DIR [--sizes 36,75,150,300] [--seeds 3]`. Each run is a whole rehearsal by
`nightschool rehearse --interactions N` with the product's own settings; its figures are kept in DIR, and a run whose
figures are there is not run again. Three more preferences, in `benchmarks/preferences`, are tried at the largest size.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PREFERENCES = Path(__file__).parent / "preferences"
BUILT_IN = "built-in"


@dataclass(frozen=True)
class Run:
    """One rehearsal."""

    preference: str
    interactions: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.preference}-{self.interactions}-{self.seed}"

    def figures(self, keep: Path, prompts: int) -> dict[str, Any]:
        """Its figures, from the folder or by running it."""
        kept = keep / f"{self.name}.json"
        if not kept.exists():
            options = ["--data", str(keep / self.name), "--interactions", str(self.interactions)]
            options += ["--prompts", str(prompts), "--seed", str(self.seed), "--json"]
            if self.preference != BUILT_IN:
                options += ["--taste", str(PREFERENCES / f"{self.preference}.py")]
            done = subprocess.run(
                [sys.executable, "-m", "training.rehearsal.run", *options], stdout=subprocess.PIPE, text=True
            )
            if done.returncode:
                raise SystemExit(f"{self.name} failed; remove {keep / self.name} and run again")
            kept.write_text(done.stdout.splitlines()[-1])
        return dict(json.loads(kept.read_text()))


def main() -> int:
    """Run what is missing, and tell all."""
    parser = argparse.ArgumentParser(prog="benchmarks.curve", description="What a night learns from few interactions.")
    parser.add_argument("--keep", type=Path, required=True, help="a folder for the runs and their figures")
    parser.add_argument("--sizes", default="36,75,150,300")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=220)
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    sizes = [int(each) for each in options.sizes.split(",")]
    found: dict[str, dict[str, Any]] = {}
    for run in runs(sizes, options.seeds):
        found[run.name] = run.figures(options.keep, options.prompts)
        told = found[run.name]
        print(
            f"{run.name}: {told['win_rate']:.1%} ({told['win_rate_low']:.1%} to {told['win_rate_high']:.1%}), "
            f"{told['minutes']:.1f} minutes",
            flush=True,
        )
    print(json.dumps({"curve": [pooled(size, found) for size in sizes], "runs": found}))
    return 0


def runs(sizes: list[int], seeds: int) -> Iterator[Run]:
    """The built-in preference at every size, by seed, then the others once at the largest."""
    for seed in range(seeds):
        for size in sizes:
            yield Run(BUILT_IN, size, seed)
    for path in sorted(PREFERENCES.glob("*.py")):
        yield Run(path.stem, max(sizes), 0)


def pooled(size: int, found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The win rate of one size over its seeds, with a 95 % interval from both prompts and seeds.

    The variance of the mean is the larger of two estimates: from the runs' own intervals, and from their spread.
    """
    own = [each for name, each in found.items() if name.startswith(f"{BUILT_IN}-{size}-")]
    rates = np.array([each["win_rate"] for each in own])
    within = np.mean([((each["win_rate_high"] - each["win_rate_low"]) / 3.92) ** 2 for each in own]) / len(own)
    between = rates.var(ddof=1) / len(own) if len(own) > 1 else 0.0
    half = 1.96 * float(np.sqrt(max(within, between)))
    mean = float(rates.mean())
    return {"interactions": size, "runs": len(own), "win_rate": mean, "low": mean - half, "high": mean + half}


if __name__ == "__main__":
    sys.exit(main())
