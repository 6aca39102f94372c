"""The serving benchmark: what it measures with, and that it runs."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from assistant.models import base_model
from assistant.models.adapter import read_adapter
from assistant.models.base_model import Base
from benchmarks import material, quality
from benchmarks.material import Conversation
from benchmarks.peers.exchange import Turn
from benchmarks.programs import ROOT, Command, Failed, start


def test_no_two_prompts_share_a_prefix(embedded: Base) -> None:
    prompts = list(itertools.islice(material.prompts(base_model.load_tokenizer(embedded), 128), 400))
    assert {len(each) for each in prompts} == {128}
    assert len({each[0] for each in prompts}) == 400


def test_the_made_adapters_are_such_as_can_be_served(embedded: Base, tmp_path: Path) -> None:
    shapes = {name: tuple(each.shape) for name, each in material.linear_layers(embedded)}
    one, other = material.make_adapters(embedded, tmp_path, 2)
    card, factors = read_adapter(one, embedded.sha256, shapes)
    assert (card.id, len(factors)) == ("adapter-0", 7 * 30)
    assert (one / "adapter_model.safetensors").read_bytes() != (other / "adapter_model.safetensors").read_bytes()


def test_the_distance_of_two_distributions_is_that_worked_by_hand() -> None:
    # At the first reply token both agree; at the second 1/2 ln(2/1) + 1/2 ln(2/3) = 0.1438; the mean is half of it.
    even, uneven = [0.5, 0.5], [0.25, 0.75]
    exact, served = torch.tensor([even, even]).log(), torch.tensor([even, uneven]).log()
    nats = quality.nats_per_token(lambda ids, first: exact, lambda ids, first: served, [Conversation([1], [3, 4])])
    assert nats == pytest.approx(0.1438 / 2, abs=1e-4)


def test_a_program_that_cannot_start_says_why() -> None:
    with pytest.raises(Failed, match="No module named 'llama_cpp'"):
        start(Command("plain", Path(sys.executable), "benchmarks.peers.llama_batch", ["no file"]))
    with pytest.raises(Failed, match="make bench-peers"):
        start(Command("plain", Path("/nowhere/python"), "benchmarks.peers.llama_batch", []))


@pytest.mark.soak
def test_a_program_sleeps_between_its_turns(embedded: Base) -> None:
    program = start(Command("auto", Path(sys.executable), "benchmarks.peers.nightschool_engine", [embedded.name]))
    try:
        took, _ = program.take_once(Turn([[1, 2, 3], [4, 5, 6]], new_tokens=5))
        assert (took.tokens, took.dropped, len(took.first_token_s)) == (10, 0, 2)
        asleep_from = program.busy_s()
        assert program.process.poll() is None
        assert program.busy_s() == asleep_from
    finally:
        program.close()


@pytest.mark.soak
def test_the_benchmark_runs_and_ends_in_json() -> None:
    asked = ["--rounds", "1", "--only", "streams1,swap", "--peers", "transformers,vllm"]
    environment = {"NIGHTSCHOOL_VLLM": "/nowhere/python"}
    done = run(*asked, environment=environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["streams1"]["ratio_transformers"] > 0
    assert figures["streams1"]["vllm"] is None
    assert "make bench-peers" in figures["skipped"]["vllm"]
    assert figures["dropped"] == 0
    assert 0 < figures["bandwidth_share"] < 1.5
    assert figures["streams16"] is None


def test_an_unknown_part_is_refused_in_one_line() -> None:
    done = run("--only", "streams3", environment={})
    assert done.returncode == 2
    assert "'streams3' is none of streams1, " in done.stderr.splitlines()[-1]


def run(*options: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The command as a user would run it."""
    command = [sys.executable, "-m", "benchmarks.serving", *options]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | environment, timeout=500
    )
