"""Measured programs as processes: started once, stopped while others compute, asked turn by turn.

A waiting program may spin (OpenMP, a polling engine), so every process is stopped except the one whose turn it is. A
turn in which something else kept the processor busy is taken again, within reason, or counted as disturbed.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import psutil

from benchmarks.peers.exchange import Took, Turn

ROOT = Path(__file__).parents[1]
CALM = 0.05  # share of the processor that others may take in a turn
TRIES = 3  # of a measured turn in which they took more,
PATIENCE_S = 20  # as long as the tries have not taken more than this
LONGEST_S = 600  # of loading, or of a turn


class Failed(Exception):
    """A program could not be started, or ended; the message is the last line of its output."""


@dataclass(frozen=True)
class Command:
    """How to run a program: in which way, with which Python, which module."""

    kind: str
    python: Path
    module: str
    arguments: list[str]


@dataclass
class Program:
    """A running process that takes turns."""

    command: Command
    process: subprocess.Popen[str]
    said: IO[Any]  # its standard error
    facts: dict[str, Any] = field(default_factory=dict)
    disturbed: int = 0  # turns kept although others computed meanwhile

    def take(self, turn: Turn) -> Took:
        """Take a turn, and take it again, within reason, while others disturb it. Raises `Failed`."""
        started = time.perf_counter()
        took, others = self.take_once(turn)
        for _ in range(TRIES - 1):
            if others <= CALM or time.perf_counter() - started > PATIENCE_S:
                break
            again, then = self.take_once(turn)
            if then < others:
                took, others = again, then
        self.disturbed += others > CALM
        return took

    def take_once(self, turn: Turn) -> tuple[Took, float]:
        """Take a turn; return it with the share of the processor that others took meanwhile. Raises `Failed`."""
        assert self.process.stdin is not None
        with self.awake():
            before, own, started = busy_s(), self.busy_s(), time.perf_counter()
            self.process.stdin.write(json.dumps(asdict(turn)) + "\n")
            self.process.stdin.flush()
            took = Took(**self.hear())
            available = (time.perf_counter() - started) * (os.cpu_count() or 1)
            return took, ((busy_s() - before) - (self.busy_s() - own)) / available

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let the process and its children compute."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        """Send a signal to the process and its children, if it still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def hear(self) -> dict[str, Any]:
        """The next line from the process. Raises `Failed` if it has ended instead, or takes too long."""
        assert self.process.stdout is not None
        limit = threading.Timer(LONGEST_S, self.signal, [signal.SIGKILL])
        limit.start()
        try:
            line = self.process.stdout.readline()
        finally:
            limit.cancel()
        if line:
            heard: dict[str, Any] = json.loads(line)
            return heard
        self.process.wait()
        self.said.seek(0)
        words = [each for each in self.said.read().decode(errors="replace").splitlines() if each.strip()]
        raise Failed(f"ended with status {self.process.returncode}: {words[-1] if words else 'without a word'}")

    def busy_s(self) -> float:
        """Processor time of the process and its children so far."""
        parent = psutil.Process(self.process.pid)
        times = [each.cpu_times() for each in [parent, *parent.children(recursive=True)]]
        return sum(each.user + each.system for each in times)

    def close(self) -> None:
        """End the process and its children, including those that do not end with it."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.said.close()


def start(command: Command) -> Program:
    """Run a program and wait until it has loaded. Raises `Failed`."""
    if not command.python.exists():
        raise Failed(f"there is no {command.python}; run: make bench-peers")
    said = TemporaryFile()  # noqa: SIM115 - it lives as long as the process
    threads = str(cores())
    # Each computes alone, so threads may spin as long as OpenMP's own default says (`assistant.environment`).
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "GOMP_SPINCOUNT": "300000"}
    process = subprocess.Popen(
        [str(command.python), "-m", command.module, *command.arguments, command.kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
        cwd=ROOT,
        env=os.environ | quiet | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        process_group=0,  # in this session: the kernel ends a stopped group whose parent is gone
    )
    program = Program(command, process, said)
    try:
        with program.awake():
            program.facts = program.hear()
    except Failed:
        program.close()
        raise
    return program


def cores() -> int:
    """Processor cores that may be used, counting no core twice."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def busy_s() -> float:
    """Seconds that the whole processor has computed so far, for any program."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    return sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
