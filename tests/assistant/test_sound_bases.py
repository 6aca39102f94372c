"""A base model that is not whole, not finite, or wants to run code of its own is refused in one sentence."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from assistant.models import base_model
from feedback.errors import Refused
from tests.conftest import REPOSITORY
from tests.helpers.tiny import make_tiny

LAYER = "model.layers.0.self_attn.q_proj.weight"
Harm = Callable[[dict[str, Tensor]], object]
HARMS: dict[str, Harm] = {
    "has no": lambda tensors: tensors.pop(LAYER),
    "shape": lambda tensors: tensors.update({LAYER: torch.ones(3, 3)}),
    "not finite": lambda tensors: tensors[LAYER].view(-1)[7:8].fill_(float("nan")),
    "not finite in": lambda tensors: tensors["model.norm.weight"][:1].fill_(float("-inf")),
    "is not whole": lambda tensors: tensors.update({"other.name": tensors.pop(LAYER)}),
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "tiny")


def load(folder: Path) -> torch.nn.Module:
    return base_model.load_model(base_model.find_base(str(folder)), torch.float32, "cpu")


@pytest.mark.parametrize("says", HARMS)
def test_a_base_that_is_not_what_it_should_be_is_one_sentence(says: str, tiny: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    HARMS[says](tensors)
    save_file(tensors, tiny / "model.safetensors", {"format": "pt"})
    with pytest.raises(Refused, match=says) as told:
        load(tiny)
    assert "\n" not in str(told.value)


def test_a_sound_one_with_a_tied_head_is_loaded(tiny: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"vision.tower": torch.ones(2)}, tiny / "model.safetensors", {"format": "pt"})
    load(tiny)  # and what it holds beside is no harm


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_base_that_wants_to_run_code_of_its_own_is_refused_in_words(file: str, tiny: Path) -> None:
    names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    (tiny / "own.py").write_text(f"open({str(tiny / 'ran')!r}, 'w')\nclass Own: pass\n")
    described = json.loads((tiny / file).read_text())
    odd = {"auto_map": names, "model_type": "own", "tokenizer_class": "Own"}
    (tiny / file).write_text(json.dumps(described | odd))
    base = base_model.find_base(str(tiny))
    with pytest.raises(Refused, match="code") as told:
        base_model.load_model(base, torch.float32, "cpu") if file == "config.json" else base_model.load_tokenizer(base)
    assert "\n" not in str(told.value)
    assert not (tiny / "ran").exists()


def test_every_load_by_name_says_that_no_foreign_code_is_run() -> None:
    loads = re.compile(r"Auto\w+\.from_pretrained\((?:[^()]|\([^()]*\))*\)")
    found = [
        (path.name, call)
        for package in ("assistant", "training", "ui", "feedback")
        for path in (REPOSITORY / package).rglob("*.py")
        for call in loads.findall(path.read_text())
    ]
    assert len(found) >= 5
    assert [each for each in found if "trust_remote_code=False" not in each[1] and "**source" not in each[1]] == []
    assert not any("trust_remote_code=True" in call for _, call in found)
