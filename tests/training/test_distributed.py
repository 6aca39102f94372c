"""A night in two processes, as `accelerate launch` starts them: the same losses and the same adapter as in one."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from assistant.models import adapter as on_disk
from feedback.database.database import Database
from feedback.records import nights
from tests.helpers.browser import free_port
from tests.helpers.nights import PROGRAM, arguments
from tests.helpers.processes import Done, Process
from tests.training.test_night import last, say

LAUNCH = [
    *[sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    *["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "training.night"],
]
FEW = ["min_steps=4", "epochs=1", "batch_size=4", "evals_per_epoch=1", "learning_rate=1e-2", "kl_budget=50"]
FEW += ["precision=float32"]  # bfloat16 rounds other sums otherwise, by 7 % of a weight on some processors
Night = Callable[..., Done]


def launched(*asked: str) -> Done:
    """Two processes that `accelerate launch` starts."""
    done = subprocess.run([*LAUNCH, *asked], capture_output=True, text=True, timeout=300, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def told(*asked: str) -> Done:
    """Two processes that are told what `accelerate launch` tells them."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    both = [
        Process(PROGRAM, asked, **meeting, RANK=str(each), LOCAL_RANK=str(each), LOCAL_WORLD_SIZE="2")
        for each in range(2)
    ]
    done = [each.wait(120) for each in both]
    return Done(
        max(abs(each.returncode) for each in done),
        "".join(each.stdout for each in done),
        "".join(each.stderr for each in done),
    )


@pytest.fixture(params=[told, pytest.param(launched, marks=pytest.mark.soak)])
def two(request) -> Night:
    return request.param


def one(*asked: str) -> Done:
    return Process(PROGRAM, asked).wait(120)


def asked(data: Path, model: str, *options: str, settings: Sequence[str] = ()) -> list[str]:
    return arguments(data, model, ["--gate", "off", *options], settings)


@pytest.mark.soak
def test_two_processes_learn_what_one_learns(tmp_path, tiny, two):
    found = {}
    for name, night in (("one", one), ("two", two)):
        store = say(tmp_path / name)
        done = night(*asked(tmp_path / name, tiny.name, settings=FEW))
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("2 processes" in done.stdout) is (name == "two")
        assert last(store).state == "done"
        weights = load_file(tmp_path / name / "adapters" / "night-0001" / on_disk.WEIGHTS)
        found[name] = [each["loss"] for each in nights.night_steps(store, 1)], weights
        store.close()
    (losses, weights), (shared_losses, shared_weights) = found["one"], found["two"]
    # A missing share would change every loss by a tenth and more.
    assert shared_losses == pytest.approx(losses, abs=0.01)
    assert max(losses) - min(losses) > 0.1
    for name, each in weights.items():
        assert (each - shared_weights[name]).norm() < 0.05 * each.norm(), name


def test_a_dry_run_lets_all_processes_go(tmp_path, tiny, two):
    say(tmp_path / "data").close()
    done = two(*asked(tmp_path / "data", tiny.name, "--dry-run"))
    assert done.returncode == 0, done.stderr
    assert "would train on" in done.stdout


@pytest.mark.soak
def test_a_night_of_two_processes_that_leaves_the_numbers_is_written_down(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("NIGHTSCHOOL_PLUGINS", "tests.helpers.runaway")
    store = say(tmp_path / "data")
    few = [each for each in FEW if not each.startswith("learning_rate")]
    done = launched(*asked(tmp_path / "data", tiny.name, "--method", "runaway", settings=few))
    assert done.returncode != 0
    assert last(store).state == "failed"
    assert "try a lower learning_rate" in last(store).reason
    assert "a share of night 1 ended early" in done.stdout
    store.close()


def test_what_several_processes_cannot_do_is_refused(tmp_path, tiny, two):
    store = Database(tmp_path / "data")
    done = two(*asked(tmp_path / "data", tiny.name, "--method", "ppo"))
    assert done.returncode != 0
    assert "ppo is for one process" in done.stderr
    assert nights.nights(store) == []
    store.close()
