"""Real processes that start at once: forked from a server that has imported what all of our programs import.

A command in a process of its own costs seconds of imports; a test that kills it, or reads its exit status, needs the
process and not the imports. `subprocess` stays where the start itself is what is tested.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "matplotlib.figure",
        "peft",
        "transformers.models.llama.modeling_llama",
        "training.algorithms.registry",
        "training.night.pipeline",
        "training.night.plan.planner",
        "ui.app",
        "ui.cli.main",
    ]
)


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Process:
    """A program of ours, `module:function` called with command-line arguments, in a process of its own."""

    def __init__(
        self, program: str, arguments: Sequence[str], cwd: Path | None = None, said: str = "", **environment: str
    ) -> None:
        self._kept = tempfile.TemporaryDirectory(prefix="nightschool-test-", ignore_cleanup_errors=True)
        folder = Path(self._kept.name)
        self._out, self._err = folder / "stdout", folder / "stderr"
        (folder / "stdin").write_text(said)
        whole = (program, list(arguments), str(cwd or Path.cwd()), os.environ | environment, str(folder))
        self._process = _CONTEXT.Process(target=_run, args=whole)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._out.read_text() if self._out.exists() else ""

    @property
    def stderr(self) -> str:
        """What it has complained of so far."""
        return self._err.read_text() if self._err.exists() else ""

    def poll(self) -> int | None:
        """Its exit status, as `subprocess` gives it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> Done:
        """Its end. Raises `TimeoutError` when that does not come."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"still running after {timeout} s:\n{self.stdout}{self.stderr}")
        return Done(self._process.exitcode, self.stdout, self.stderr)

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self._process.is_alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.signal(signal.SIGKILL)
        self._process.join()


def until(what: Callable[[], bool], process: Process, timeout_s: float = 240) -> None:
    """Wait until something holds, while a process runs."""
    end = time.monotonic() + timeout_s
    while not what():
        assert process.poll() is None, process.stdout + process.stderr
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@contextmanager
def serving(data: Path, *options: str, **environment: str) -> Iterator[tuple[Process, str]]:
    """A server as its own process, and where it answers."""
    asked = ["--data", str(data), "--port", "0", *options]
    process = Process("ui.app:main", asked, Path(__file__).parents[2], **environment)
    try:
        until(lambda: "\n" in process.stdout, process)
        assert process.stdout.startswith("Nightschool answers at http://127.0.0.1:"), process.stdout
        yield process, process.stdout.splitlines()[0].split()[-1]
    finally:
        process.kill()


def _run(program: str, arguments: list[str], cwd: str, environment: dict[str, str], folder: str) -> None:
    """In the new process: its files, its folder, its environment, its `main`."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        opened = os.open(f"{folder}/{name}", os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    module, function = program.split(":")
    status = getattr(importlib.import_module(module), function)(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status or 0))
