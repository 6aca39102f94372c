"""A night's steps beside the ledger: where `--log` writes them."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from feedback.errors import Refused
from training.night import tracking


def test_tensorboard_reads_what_was_logged(tmp_path):
    log = tracking.open_log("tensorboard", tmp_path, "night-0001")
    log(1, {"loss": 0.75, "margin": 0.0})
    log(2, {"loss": 0.5})

    events = EventAccumulator(str(tmp_path / "night-0001"))
    events.Reload()

    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(1, 0.75), (2, 0.5)]
    assert [(each.step, each.value) for each in events.Scalars("margin")] == [(1, 0.0)]


def test_a_log_whose_package_is_missing_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refused, match="pip install trackio"):
        tracking.require_log("trackio")
