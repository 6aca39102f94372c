"""What versions before 0.2 wrote is read by today's names."""

import json
from pathlib import Path

import pytest

from assistant.models.adapter import read_card
from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.records import nights, old_names
from tests.helpers.small_models import save_adapter
from training.algorithms import registry

SETTINGS_NOW = {name for method in registry.every().values() for name in method.config.model_fields}


def test_every_old_name_stands_for_a_setting_of_today_and_is_none_itself() -> None:
    assert set(old_names.SETTINGS.values()) <= SETTINGS_NOW
    assert not set(old_names.SETTINGS) & SETTINGS_NOW
    assert not set(old_names.METRICS) & set(old_names.METRICS.values())


def test_old_names_may_be_typed_and_mean_what_they_meant() -> None:
    typed = registry.parse_settings("ppo", ["lam=0.9", "clip=0.1", "missing_end=-2.5", "most_kl=0.02", "longest=64"])
    assert typed == {
        "gae_lambda": 0.9,
        "clip_coef": 0.1,
        "missing_eos_penalty": 2.5,
        "target_kl": 0.02,
        "max_length": 64,
    }
    with pytest.raises(Refused, match="there is no setting 'looks'"):  # a name of other methods
        registry.parse_settings("ppo", ["looks=2"])


def test_old_cards_are_read_by_todays_names(tmp_path: Path, tiny: Base) -> None:
    folder = save_adapter(tmp_path / "old", tiny, 1, r=4, target_modules="all-linear")
    card = json.loads((folder / "card.json").read_text())
    card |= {"settings": {"longest": 512, "rank": 4}, "metrics": {"margin": 0.5, "kl_per_token": 0.1, "loss": 0.2}}
    (folder / "card.json").write_text(json.dumps(card))
    read = read_card(folder)
    assert read.settings == {"max_length": 512, "rank": 4}
    assert read.metrics == {"rewards/margins": 0.5, "kl": 0.1, "loss": 0.2}


def test_old_nights_are_read_by_todays_names(store: Database) -> None:
    night = nights.start_night(store, "auto", {"looks": 4, "epochs": 3}, 1)
    nights.add_step(store, night, 1, {"margin": 0.25, "accuracy": 1.0, "aside_gain": 0.1, "loss": 0.5})
    assert nights.night(store, night).settings == {"evals_per_epoch": 4, "epochs": 3}
    (step,) = nights.night_steps(store, night)
    assert step == {"step": 1, "rewards/margins": 0.25, "rewards/accuracies": 1.0, "validation_gain": 0.1, "loss": 0.5}
