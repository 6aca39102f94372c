"""Publishing: what is read back must be what was trained, in every factor."""

from pathlib import Path

import pytest
import torch

from assistant.models.adapter import AdapterCard, AdapterRefused
from assistant.models.base_model import Base
from training.model.policy import Backbone
from training.night import publish


def saved(backbone: Backbone, data: Path) -> tuple[Path, AdapterCard]:
    making, sha256 = publish.write_weights(backbone, data, "night-0001")
    base = backbone.base
    return making, AdapterCard("night-0001", base.name, base.sha256, None, "dpo", sha256, "", {}, {}, 0, {})


@pytest.fixture
def backbone(tiny: Base) -> Backbone:
    made = Backbone(tiny, torch.float32, "cpu", rank=4, alpha=6, seed=0)
    with torch.no_grad():
        for each in made.parameters().values():
            each.normal_()
    return made


def test_what_is_read_back_as_it_was_trained_is_complete(backbone: Backbone, tmp_path: Path) -> None:
    making, card = saved(backbone, tmp_path)
    publish.complete(backbone, making, card)
    assert (making / "card.json").is_file()


@pytest.mark.parametrize("factor", [".lora_A.", ".lora_B."])
def test_one_factor_that_reads_back_otherwise_is_refused_by_its_layer(
    backbone: Backbone, tmp_path: Path, factor: str
) -> None:
    making, card = saved(backbone, tmp_path)
    weights = next(each for name, each in backbone.parameters().items() if factor in name)
    with torch.no_grad():
        weights[0, 0] += 1
    with pytest.raises(AdapterRefused, match=r"reads back otherwise than it was trained, at model\.layers\.0"):
        publish.complete(backbone, making, card)
