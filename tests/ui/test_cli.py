"""The tree of commands: help, completion, near words, one sentence for what cannot be, and what it must not import."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from assistant.command_line import COMPLETE
from feedback.accounts import users
from feedback.database.database import Database
from feedback.records import nights
from tests.conftest import two_replies
from tests.helpers.commands import as_process, nightschool, refused
from ui.cli import main as tree
from ui.cli.programs import Program

HEAVY = ("torch", "transformers", "gradio", "fastapi", "sqlite_utils", "pandas", "numpy", "apscheduler", "matplotlib")


def commands(
    at: click.Command = tree.nightschool, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it, groups included."""
    yield path, at
    for name, each in at.commands.items() if isinstance(at, click.Group) else ():
        yield from commands(each, (*path, name))


OWN = [(path, each) for path, each in commands() if not isinstance(each, Program)]
PROGRAMS = [path[0] for path, each in commands() if isinstance(each, Program)]
NAMES = [" ".join(path) for path, _ in OWN]


def flat(text: str) -> str:
    """A text on one line, so that it does not matter where it was broken."""
    return " ".join(text.split())


# Help


@pytest.mark.parametrize(("path", "command"), OWN, ids=NAMES)
def test_every_help_has_words_and_names_every_default(path: tuple[str, ...], command: click.Command) -> None:
    done = nightschool(*path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    said = flat(done.stdout)
    assert said.startswith(f"Usage: {' '.join(('nightschool', *path))} ")
    for each in command.params:
        assert getattr(each, "help", None), each.name
        default = each.to_info_dict()["default"]
        if isinstance(each, click.Option) and not each.is_flag and not each.multiple and default:
            assert f"default: {default}" in said, each.name


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_its_own_prints_its_own_help(program: str) -> None:
    done = as_process(program, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: nightschool {program} [OPTIONS]")
    assert "default: embedded" in done.stdout


def test_every_command_has_a_short_help_that_is_whole() -> None:
    assert [path for path, each in commands() if path and "..." in each.get_short_help_str()] == []


def test_the_version_is_the_installed_one() -> None:
    from importlib import metadata

    assert nightschool("--version").stdout == f"nightschool {metadata.version('nightschool')}\n"


@pytest.mark.parametrize("asked", [["--help"], ["--version"], ["completion", "bash"], ["serve", "--help"], ["user"]])
def test_what_needs_no_store_imports_nothing_heavy(asked: list[str]) -> None:
    script = f"import sys; from ui.cli.main import main; main({asked}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [each for each in HEAVY if each in done.stderr.split()] == []


# What cannot be


@pytest.mark.parametrize(("path", "command"), OWN, ids=NAMES)
def test_every_usage_error_is_one_sentence_with_the_way_out(path: tuple[str, ...], command: click.Command) -> None:
    way_out = f" see {' '.join(('nightschool', *path))} --help"
    cases = [[*path, "--bogus"]]
    wanting = [each for each in command.params if each.required]
    if wanting:
        cases.append([*path])
    if not isinstance(command, click.Group):
        cases.append([*path, *["x"] * len(command.params), "too many"])
    for each in command.params:
        if isinstance(each, click.Option) and not each.is_flag:
            cases.append([*path, *["x"] * len(wanting), each.opts[0]])  # without its value
            if isinstance(each.type, click.types.IntParamType | click.types.FloatParamType | click.Choice):
                cases.append([*path, *["x"] * len(wanting), each.opts[0], "nonsense"])
    for typed in cases:
        done = nightschool(*typed)
        refused(done, way_out)
        assert (typed, done.stderr.startswith("nightschool: "), done.stdout) == (typed, True, "")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_its_own_refuses_alike(program: str) -> None:
    refused(as_process(program, "--sed", "3"), "(did you mean '--se")
    refused(as_process(program, "--model"), f"option '--model' requires an argument; see nightschool {program} --help")


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        (["statsu"], "'status'"),
        (["user", "tokn"], "'token'"),
        (["status", "--jsn"], "'--json'"),
        (["--verson"], "'--version'"),
        (["schedule", "set", "--timezone", "UTC"], "'--time-zone'"),
    ],
)
def test_a_near_word_is_proposed(typed: list[str], near: str) -> None:
    refused(nightschool(*typed), f"(did you mean {near}?); see nightschool")


def test_a_command_is_asked_for_where_there_is_none() -> None:
    refused(nightschool(), "nightschool: missing command; see nightschool --help")
    refused(nightschool("user"), "nightschool: missing command; see nightschool user --help")


def test_usage_errors_change_nothing(tmp_path: Path) -> None:
    for typed in (["import", "x", "y"], ["user", "add"], ["chat", "--temperature", "hot"], ["serve", "--port", "no"]):
        refused(nightschool(*typed, "--data", str(tmp_path / "data")), "see nightschool")
    assert list(tmp_path.iterdir()) == []


def test_whoever_reads_only_the_beginning_gets_it_and_no_trace(store: Database) -> None:
    command = [sys.executable, "-m", "ui.cli", "set", "--data", str(store.data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert (process.wait(60), process.communicate()[1]) == (0, b"")


# Where the data is


def test_the_data_folder_is_named_before_or_after_the_command(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    data, none = str(store.data), str(store.data / "none")
    alike = [["--data", data, "set"], ["set", "--data", data], ["--data", none, "set", "--data", data]]
    assert len({nightschool(*typed, "gate").stdout for typed in alike} | {'gate = "on"\n'}) == 1
    refused(nightschool("--data", none, "set"), f"no Nightschool data in {none}")
    monkeypatch.setenv("NIGHTSCHOOL_DATA", data)
    assert nightschool("set", "gate").stdout == 'gate = "on"\n'
    refused(nightschool("--data", none, "set"), f"no Nightschool data in {none}")  # what is typed counts


def test_groups_hand_down_what_was_typed_before_the_act(store: Database) -> None:
    users.add_user(store, "ada", "rater", None)
    data = ["--data", str(store.data)]
    for typed in (
        ["user", *data, "--json", "list"],
        [*data, "user", "list", "--json"],
        ["user", "list", *data, "--json"],
    ):
        assert json.loads(nightschool(*typed).stdout)[0]["name"] == "ada"
    assert json.loads(nightschool("schedule", *data, "--json", "set", "--every-new", "5").stdout)["new_feedback"] == 0
    assert nightschool("schedule", "off", *data).stdout.startswith("schedule   off\n")


def test_what_was_typed_before_a_programs_name_reaches_it(tmp_path: Path) -> None:
    for each in ("one", "two"):
        (tmp_path / each).mkdir()
        (tmp_path / each / "kept").write_text("mine")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    refused(as_process("--data", one, "rehearse"), f"{one} holds something already")
    refused(as_process("--data", one, "rehearse", "--data", two), f"{two} holds something already")


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_that_completes_is_printed(shell: str) -> None:
    done = nightschool("completion", shell)
    assert done.returncode == 0
    assert f"{COMPLETE}={shell}_complete" in done.stdout


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["st"], ["status"]),
        (["user", "ta"], ["take-over"]),
        (["status", "--j"], ["--json"]),
        (["serve", "--dtype", "bf"], ["bfloat16"]),
        (["export", "OUT", "--format", "arg"], ["argilla"]),
        (["user", "add", "ada", "--role", "op"], ["operator"]),
        (["set", "raters"], ["raters_per_question"]),
        (["night", "--method", "rl"], ["rloo"]),
        (["rehearse", "--comp"], ["--comparisons"]),
    ],
)
def test_words_are_completed(typed: list[str], completed: list[str]) -> None:
    words = {"COMP_WORDS": " ".join(["nightschool", *typed]), "COMP_CWORD": str(len(typed))}
    command = [sys.executable, "-m", "ui.cli"]
    asked = os.environ | words | {COMPLETE: "bash_complete"}
    done = subprocess.run(command, env=asked, capture_output=True, text=True, check=True)
    assert [line.split(",")[1] for line in done.stdout.splitlines()] == completed


# What is said


@pytest.fixture
def running(store: Database) -> Iterator[Database]:
    """A store with a night in it whose process is alive."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "training.night"])
    night = nights.start_night(store, "auto", {}, process.pid)
    metrics = {
        "loss": 0.52341,
        "rewards/margins": 0.3,
        "rewards/accuracies": 0.7123,
        "kl": 0.0311,
        "grad_norm": 1.0,
        "tokens_per_s": 812.0,
        "memory_gib": 1.93,
    }
    nights.add_step(store, night, 12, metrics, steps=40, eta_s=183.0, phase="training")
    yield store
    process.kill()
    process.wait()


def test_the_status_of_a_running_night_is_a_line_for_each_fact(running: Database) -> None:
    two_replies(running, users.local_owner(running))
    *lines, schedule = nightschool("status", "--data", str(running.data)).stdout.splitlines()
    assert lines[0] == "serving    the base"
    assert lines[1].startswith("feedback   0 ")
    assert lines[2:] == ["night 1    training, step 12 of 40, about 3 min left; loss 0.52, kl 0.03, accuracy 0.71"]
    assert schedule == "schedule   none; nights start by hand"
    facts = json.loads(nightschool("status", "--json", "--data", str(running.data)).stdout)
    assert (facts["night"]["step"], facts["metrics"]["tokens_per_s"], facts["metrics"]["step"]) == (12, 812.0, 12)


def test_the_status_of_a_night_that_has_just_begun_says_what_it_does(running: Database) -> None:
    nights.update_night(running, 1, phase="loading", steps=0, eta_s=None)
    with running.transaction() as db:
        db.conn.execute("DELETE FROM night_steps")
    assert "night 1    loading\n" in nightschool("status", "--data", str(running.data)).stdout
    nights.end_night(running, 1, "failed", "the disk is full")
    assert "night 1    failed: the disk is full\n" in nightschool("status", "--data", str(running.data)).stdout


def test_an_import_of_which_nothing_could_be_read_ends_with_1(tmp_path: Path) -> None:
    rows, data = tmp_path / "rows.jsonl", str(tmp_path / "data")
    rows.write_text('{"prompt": "hello", "chosen": "good day", "rejected": 5}\n')
    done = nightschool("import", str(rows), "--data", data)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"nightschool: no row of {rows} could be kept (trl); left out 1 (")
    rows.write_text('{"prompt": "hello", "chosen": "good day", "rejected": "go away"}\n')
    done = nightschool("import", str(rows), "--data", data)
    assert (done.returncode, done.stdout) == (0, "imported 1 rows (trl)\n")


def test_main_gives_its_status_back_and_does_not_end_the_process() -> None:
    assert tree.main(["--version"]) == 0
    assert tree.main(["status", "--bogus"]) == 2
