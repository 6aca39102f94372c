"""A folder with files named like our packages can run every command, and what is started there is ours."""

import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from assistant.engine.engine_process import EngineApart
from assistant.engine.sampling.params import Sampling
from assistant.models.base_model import Base
from feedback.accounts import users
from feedback.database.database import Database
from tests.conftest import REPOSITORY
from ui.schedule import processes

NAMES = ("feedback", "ui", "training", "assistant", "torch", "gradio", "json", "secrets")
# The way a console script begins: its own folder is searched, and the one it is run in is not.
SCRIPT = "import sys; from ui.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where somebody works who has files of their own by these names."""
    made = tmp_path / "work"
    made.mkdir()
    for name in NAMES:
        (made / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    return made


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in that folder, as the installed script runs it."""
    script = Path(sys.executable).with_name("nightschool")
    begin = [str(script)] if script.exists() else [sys.executable, "-P", "-c", SCRIPT]
    return subprocess.run([*begin, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", ["serve", "night", "schedule", "rehearse", "status"])
def test_every_command_runs_beside_files_of_these_names(command: str, folder: Path) -> None:
    done = run(folder, command, "--help")
    assert (done.returncode, "not ours" in done.stdout + done.stderr) == (0, False), done.stderr
    assert f"nightschool {command}" in done.stdout


def test_a_night_that_a_server_starts_there_is_ours(folder: Path, tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with closing(Database(Path("data"))) as store:
        users.local_owner(store)
        assert processes.start_night(store, tiny.name).id == 1
    assert "not ours" not in (folder / "data" / "night.log").read_text()


def test_an_engine_that_a_server_starts_there_is_ours(
    folder: Path, tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    engine = EngineApart(tiny, "float32", "cpu", 1 << 28)
    assert len(list(engine.submit([5, 6], Sampling(max_tokens=3, ignore_end=True)))) == 3
    engine.close()


def test_no_program_of_ours_is_started_without_shutting_the_folder_out() -> None:
    for package in ("assistant", "ui", "training", "feedback"):
        for path in (REPOSITORY / package).rglob("*.py"):
            started = re.findall(r"sys\.executable,\s*(.*)", path.read_text())
            assert (path.name, [each for each in started if not each.startswith(('"-P"', "program("))]) == (
                path.name,
                [],
            )
