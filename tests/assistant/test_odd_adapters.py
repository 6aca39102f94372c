"""An adapter folder that holds anything at all is loaded or refused in one sentence; nothing else ever comes of it."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as some
from safetensors.torch import save_file

from assistant.models import adapter
from assistant.models.adapter import CARD, CONFIG, WEIGHTS, AdapterCard, AdapterRefused, Proof, read_adapter, write_card
from assistant.models.base_model import file_sha256

LAYER, BASE = "model.layers.0.self_attn.q_proj", "b" * 64
SHAPES = {LAYER: (6, 4)}
GOOD = {"peft_type": "LORA", "lora_alpha": 4, "r": 2, "bias": "none"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound adapter."""
    made = tmp_path / "odd"
    made.mkdir()
    stem = f"base_model.model.{LAYER}"
    save_file({f"{stem}.lora_A.weight": torch.ones(2, 4), f"{stem}.lora_B.weight": torch.ones(6, 2)}, made / WEIGHTS)
    (made / CONFIG).write_text(json.dumps(GOOD))
    sign(made)
    return made


def sign(folder: Path) -> None:
    proof = Proof([1], [2], [-0.5], [-0.6])
    write_card(
        folder, AdapterCard("odd", "x", BASE, None, "t", file_sha256(folder / WEIGHTS), "", {}, {}, 0, {}, [proof])
    )


def refusal(folder: Path) -> str:
    """The one sentence with which it is refused."""
    with pytest.raises(AdapterRefused) as told:
        read_adapter(folder, BASE, SHAPES)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 400
    return str(told.value)


def test_a_sound_one_is_read(folder: Path) -> None:
    assert list(read_adapter(folder, BASE, SHAPES)[1]) == [LAYER]


ODD: tuple[Any, ...] = ([], "LORA", 7, None, True, [GOOD], {}, "[" * 200_000, '{"a":' * 200_000, "\udcff", "", "NaN")
ODD += tuple(GOOD | {"lora_alpha": each} for each in ("4", None, [4], {}, True, float("nan"), float("inf"), 10**400))
ODD += ({name: each for name, each in GOOD.items() if name != "lora_alpha"}, GOOD | {"bias": ["none"]})
ODD += (GOOD | {"peft_type": ["LORA"]}, GOOD | {"peft_type": "x\n" * 5000}, GOOD | {"use_rslora": "yes"})


def as_text(odd: Any) -> bytes:
    return odd.encode(errors="surrogateescape") if isinstance(odd, str) else json.dumps(odd).encode()


@pytest.mark.parametrize("number", range(len(ODD)))
def test_an_odd_config_is_one_sentence(number: int, folder: Path) -> None:
    (folder / CONFIG).write_bytes(as_text(ODD[number]))
    refusal(folder)


FIELDS = ("id", "base_name", "base_sha256", "parent", "method", "weights_sha256", "counts", "settings", "seed", "proof")


@pytest.mark.parametrize("odd", [[], None, 7, "x", {}, [7], [[]], [{}], "[" * 100_000, '{"proof":' * 100_000])
def test_an_odd_card_is_one_sentence(odd: Any, folder: Path) -> None:
    (folder / CARD).write_bytes(as_text(odd))
    refusal(folder)


@pytest.mark.parametrize("field", ["base_sha256", "weights_sha256", "proof", "metrics", "id"])
@pytest.mark.parametrize("odd", [[], None, 7, {}, [7], [[]], [{}], [{"prompt_ids": 7}], "x"])
def test_an_odd_field_of_a_card_is_one_sentence_or_harmless(field: str, odd: Any, folder: Path) -> None:
    raw = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(raw | {field: odd}))
    read_or_refused(folder)


@pytest.mark.parametrize("field", ["prompt_ids", "reply_ids", "logprobs", "base_logprobs"])
@pytest.mark.parametrize("odd", [None, 7, "x", ["x"], [None], [[1]], [True], [float("nan")], [1e400], [1, 2, 3], [-1]])
def test_an_odd_proof_is_one_sentence(field: str, odd: Any, folder: Path) -> None:
    if (field.endswith("logprobs") and odd == [-1]) or (field == "prompt_ids" and odd == [1, 2, 3]):
        return  # those are possible
    raw = json.loads((folder / CARD).read_text())
    raw["proof"][0][field] = odd
    (folder / CARD).write_text(json.dumps(raw))
    refusal(folder)


def test_weights_of_odd_shapes_are_one_sentence(folder: Path) -> None:
    stem = f"base_model.model.{LAYER}"
    good = torch.ones(6, 2)
    for a, b in ((torch.tensor(1.0), good), (torch.ones(2), good), (torch.ones(0, 4), torch.ones(6, 0))):
        save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, folder / WEIGHTS)
        sign(folder)
        assert "wrong shape" in refusal(folder)


anything = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=5),
    lambda each: some.lists(each, max_size=3) | some.dictionaries(some.text(max_size=5), each, max_size=3),
    max_leaves=8,
)
fuzzing = effort(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzing
@given(name=some.sampled_from([*GOOD, *adapter.UNSERVED, "use_rslora"]), value=anything)
def test_no_config_does_anything_else(folder: Path, name: str, value: Any) -> None:
    (folder / CONFIG).write_text(json.dumps(GOOD | {name: value}))
    read_or_refused(folder)


@fuzzing
@given(name=some.sampled_from(FIELDS), value=anything)
def test_no_card_does_anything_else(folder: Path, name: str, value: Any) -> None:
    sign(folder)
    raw = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(raw | {name: value}))
    read_or_refused(folder)


@fuzzing
@given(at=some.integers(0, 300), put=some.binary(max_size=12))
def test_no_weights_file_does_anything_else(folder: Path, at: int, put: bytes) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    try:
        (folder / WEIGHTS).write_bytes(whole[:at] + put + whole[at + len(put) :])
        sign(folder)
        read_or_refused(folder)
    finally:
        (folder / WEIGHTS).write_bytes(whole)


def read_or_refused(folder: Path) -> None:
    """Whatever else is raised fails the test."""
    with suppress(AdapterRefused):
        read_adapter(folder, BASE, SHAPES)
