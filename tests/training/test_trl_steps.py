"""TRL trains a step on what is exported for it, with columns of any kind beside, as JSON Lines and as Parquet."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from assistant.models import base_model
from assistant.models.base_model import Base
from feedback.database.database import Database
from feedback.formats import export, files, load
from feedback.formats.registry import FORMATS
from tests.feedback.test_formats import said as said
from tests.feedback.test_imports import write

MORE = [{"meta": {}, "id": 7, "owl": "🦉"}, {"meta": {"a": [1, "x"]}, "id": "abc"}, {"score": float("nan")}]
TRAINERS = {"trl": "DPO", "trl-implicit": "DPO", "trl-unpaired": "KTO", "sft": "SFT"}


@pytest.mark.soak
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", TRAINERS)
def test_a_step_of_trl(said: Database, tiny: Base, tmp_path: Path, name: str, suffix: str) -> None:
    """What came in with other columns goes out with them, is loaded by `datasets`, and trains."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    from transformers import AutoModelForCausalLM

    plain = list(export.rows(said, FORMATS[name], Counter()))
    rows: list[dict[str, Any]] = [row | MORE[number % len(MORE)] for number, row in enumerate(plain)]
    store = Database(tmp_path / "other")
    assert load.import_file(store, write(tmp_path / "rows.jsonl", rows), name).kept == len(rows)
    export.export_file(store, tmp_path / f"out{suffix}", FORMATS[name], Counter())
    store.close()
    assert len(list(files.read(tmp_path / f"out{suffix}"))) == len(rows)

    kind = "json" if suffix == ".jsonl" else "parquet"
    loaded = datasets.load_dataset(
        kind, data_files=str(tmp_path / f"out{suffix}"), split="train", cache_dir=str(tmp_path / "cache")
    )
    config = getattr(trl, f"{TRAINERS[name]}Config")(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=4, report_to=[], use_cpu=True
    )
    trainer = getattr(trl, f"{TRAINERS[name]}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(tiny.path),
        args=config,
        train_dataset=loaded,
        processing_class=base_model.load_tokenizer(tiny),
    )
    assert trainer.train().training_loss > 0
