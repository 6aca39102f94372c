"""The command line as a user types it, in this process or in one of its own."""

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from tests.helpers.processes import Done, Process

LIMIT_S = 300


def nightschool(*arguments: str, said: str = "") -> Done:
    """Run a command here; what came of it."""
    from ui.cli.main import main

    assert arguments[:1] not in (("night",), ("rehearse",)), "these become another program"
    out, err, mask = io.StringIO(), io.StringIO(), os.umask(0o022)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", io.StringIO(said))
        try:
            status = main(arguments)
        finally:
            os.umask(mask)
    return Done(status, out.getvalue(), err.getvalue())


def as_process(*arguments: str, said: str = "") -> Done:
    """Run a command in a process of its own."""
    if arguments[:1] == ("night",):
        return Process("training.night.night:main", arguments[1:], said=said).wait(LIMIT_S)
    return Process("ui.cli.main:main", arguments, said=said).wait(LIMIT_S)


def refused(done: Done, says: str) -> None:
    """It ended with status 2 and one sentence."""
    assert done.returncode == 2, done
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
