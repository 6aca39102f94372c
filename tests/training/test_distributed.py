"""A night in two processes, as `accelerate launch` starts them: the same losses and the same adapter as in one."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from assistant.models import adapter as on_disk
from feedback.database.database import Database
from feedback.records import nights
from tests.helpers.tiny import make_tiny
from tests.training.test_night import last, say

ALONE = [sys.executable, "-m"]
TWO = [
    *[sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    *["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"],
]
FEW = ["min_steps=4", "epochs=1", "batch_size=4", "evals_per_epoch=1", "learning_rate=1e-2", "kl_budget=50"]
SETTINGS = [part for each in FEW for part in ("--set", each)]


def night(launch: list[str], data: Path, model: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*launch, "training.night", "--data", str(data), "--model", str(model), "--gate", "off", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_learn_what_one_learns(tmp_path):
    model = make_tiny(tmp_path / "model")
    found = {}
    for name, launch in (("one", ALONE), ("two", TWO)):
        store = say(tmp_path / name)
        done = night(launch, tmp_path / name, model, *SETTINGS)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("2 processes" in done.stdout) is (launch is TWO)
        assert last(store).state == "done"
        weights = load_file(tmp_path / name / "adapters" / "night-0001" / on_disk.WEIGHTS)
        found[name] = [each["loss"] for each in nights.night_steps(store, 1)], weights
        store.close()
    (losses, weights), (shared_losses, shared_weights) = found["one"], found["two"]
    # bfloat16 rounds other sums otherwise; a missing share would change every loss by a tenth and more.
    assert shared_losses == pytest.approx(losses, abs=2e-3)
    assert max(losses) - min(losses) > 0.1
    for name, each in weights.items():
        assert (each - shared_weights[name]).norm() < 0.05 * each.norm(), name


def test_a_dry_run_lets_all_processes_go(tmp_path):
    say(tmp_path / "data").close()
    done = night(TWO, tmp_path / "data", make_tiny(tmp_path / "model"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would train on" in done.stdout


@pytest.mark.soak
def test_a_night_of_two_processes_that_leaves_the_numbers_is_written_down(tmp_path):
    store = say(tmp_path / "data")
    few = [*SETTINGS, "--set", "learning_rate=1e30"]
    done = night(TWO, tmp_path / "data", make_tiny(tmp_path / "model"), *few)
    assert done.returncode != 0
    assert last(store).state == "failed"
    assert "try a lower learning_rate" in last(store).reason
    assert "a share of night 1 ended early" in done.stdout
    store.close()


def test_what_several_processes_cannot_do_is_refused(tmp_path):
    store = Database(tmp_path / "data")
    done = night(TWO, tmp_path / "data", make_tiny(tmp_path / "model"), "--method", "ppo")
    assert done.returncode != 0
    assert "ppo is for one process" in done.stderr
    assert nights.nights(store) == []
    store.close()
