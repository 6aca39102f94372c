"""The programs that are measured, each run in the way that is fastest here.

A program that can be run in several ways is started in each, tried at each number of streams, and kept in the best.
"""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from assistant.models import base_model
from assistant.models.base_model import Base
from benchmarks.peers.exchange import Took, Turn
from benchmarks.programs import ROOT, Command, Failed, Program, start

OURS = "ours"
PEERS = ("llama_cpp", "transformers", "vllm")
NEW_TOKENS = 64

Prompts = Iterator[list[int]]


@dataclass
class Entrant:
    """A program, in the way that is fastest at each number of streams."""

    name: str
    chosen: dict[int, Program]

    def take(self, streams: int, turn: Turn) -> Took:
        """Take a measured turn of this many streams. Raises `Failed`."""
        return self.chosen[streams].take(turn)

    @property
    def programs(self) -> list[Program]:
        """Each running program once."""
        return list({id(each): each for each in self.chosen.values()}.values())

    def close(self) -> None:
        """End its processes."""
        for each in self.programs:
            each.close()


def commands(name: str, base: Base) -> list[Command]:
    """The commands of a program, one for each way to run it."""
    here, ours = Path(sys.executable), "benchmarks.peers"
    if name == OURS:
        return [Command("auto", here, f"{ours}.nightschool_engine", [base.name])]
    if name == "llama_cpp":
        python = Path(os.environ.get("NIGHTSCHOOL_LLAMA", ROOT / ".venv-llama" / "bin" / "python"))
        return [
            Command(kind, python, f"{ours}.llama_batch", [str(base_model.carried_gguf())])
            for kind in ("plain", "flash")
        ]
    number_formats = ("bfloat16", "float32")
    if name == "transformers":
        return [Command(kind, here, f"{ours}.transformers_generate", [str(base.path)]) for kind in number_formats]
    python = Path(os.environ.get("NIGHTSCHOOL_VLLM", ROOT / ".venv-vllm" / "bin" / "python"))
    return [Command(kind, python, f"{ours}.vllm_offline", [str(base.path)]) for kind in number_formats]


def enter(name: str, base: Base, streams: Sequence[int], prompts: Prompts) -> Entrant:
    """Start a program in all of its ways and keep the best. Raises `Failed` if none of them works."""
    tried: list[tuple[Program, dict[int, float]]] = []
    failure = Failed()
    for command in commands(name, base):
        try:
            program = start(command)
            tried.append((program, rates(program, streams, prompts)))
        except Failed as error:
            failure = error
    if not tried:
        raise failure
    chosen = {each: max(tried, key=lambda one: one[1][each])[0] for each in streams}
    entrant = Entrant(name, chosen)
    for program, _ in tried:
        if program not in entrant.programs:
            program.close()
    return entrant


def rates(program: Program, streams: Sequence[int], prompts: Prompts) -> dict[int, float]:
    """Tokens per second at each number of streams, once the program is warm."""
    try:
        found = {}
        for each in [*streams, *streams]:
            took, _ = program.take_once(Turn(list(itertools.islice(prompts, each)), NEW_TOKENS))
            found[each] = took.rate
        return found
    except Failed:
        program.close()
        raise
