"""A night as its command runs it: in this process, which is quick, or in one of its own, which can be killed."""

import io
import signal
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from assistant.models.base_model import EMBEDDED
from tests.helpers.processes import Done, Process

PROGRAM = "training.night.night:main"
LIMIT_S = 600


def arguments(data: Path, model: str, options: Sequence[str], settings: Sequence[str]) -> list[str]:
    """What follows `nightschool night`; `settings` are given as NAME=VALUE."""
    sets = [part for each in settings for part in ("--set", each)]
    return ["--data", str(data), "--model", model, *options, *sets]


def run(data: Path, model: str, *options: str, settings: Sequence[str] = ()) -> Done:
    """A night from its command line to its end; one of the embedded model in a process, as people run it."""
    if model == EMBEDDED:
        return start(data, model, *options, settings=settings).wait(LIMIT_S)
    import torch

    from training.night.night import main

    threads, out, err = torch.get_num_threads(), io.StringIO(), io.StringIO()
    heard = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}  # a night hears them itself
    # What else is tested must not run at a night's low priority.
    with redirect_stdout(out), redirect_stderr(err), mock.patch("os.nice"):
        try:
            status = main(arguments(data, model, options, settings))
        finally:
            torch.set_num_threads(threads)
            for number, handler in heard.items():
                signal.signal(number, handler)
    return Done(status, out.getvalue(), err.getvalue())


def start(data: Path, model: str, *options: str, settings: Sequence[str] = ()) -> Process:
    """The same night in a process of its own."""
    return Process(PROGRAM, arguments(data, model, options, settings))
