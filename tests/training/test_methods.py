"""A training method is one file: declared there, and found by the command line, the page, the API and the night."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from fastapi.testclient import TestClient

from assistant.models import adapter as on_disk
from assistant.models.base_model import Base
from feedback import plugins
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.example_types import KINDS
from feedback.records import methods, nights
from feedback.records.methods import word_of
from tests.conftest import REPOSITORY
from tests.helpers.nights import PROGRAM, arguments, run
from tests.helpers.over_http import assistant, key, loaded, web
from tests.helpers.processes import Process
from tests.training.test_night import last, one_sentence, say
from training.algorithms import registry
from training.loop.config import Config, in_lines
from ui.operate.layout import build_night

__all__ = ["assistant", "loaded", "web"]  # fixtures
TOY = '''
"""A toy: makes what people wrote likelier, by plain steps of one example each."""

from pydantic import Field

from feedback.records.methods import MethodFacts
from training.algorithms.base import Config, Method, Metrics, Trainer, TrainingContext
from training.algorithms.registry import register
from training.loop.optim import apply_gradients
from training.loop.state import TrainState


class ToyConfig(Config):
    push: float = Field(1.0, gt=0, le=10, description="how hard it pushes")
    rounds: int = Field(3, gt=0, description="steps")


class ToyTrainer(Trainer):
    def __init__(self, context: TrainingContext, config: ToyConfig) -> None:
        self.backbone, self.examples = context.backbone, context.examples
        self.config, self.steps = config, config.rounds

    def begin(self) -> TrainState:
        return TrainState.over(self.backbone.parameters(), self.config.learning_rate)

    def step(self, state: TrainState) -> Metrics:
        example = self.examples[state.step % len(self.examples)]
        loss = -self.config.push * self.backbone.log_probs(example.row(0))[0]
        loss.backward()
        return {"loss": loss.item(), "grad_norm": apply_gradients(state, loss.item(), self.config.learning_rate)}


facts = MethodFacts("toy", "Toy: what people wrote", "demonstrations, one at a time", "by the toy")
register(Method(facts, ("demonstrations",), ToyConfig, ToyTrainer))
'''
DECLARED = ("feedback/records/methods.py", "training/algorithms/")  # where methods may be named
OWN_WORDS = ("feedback/formats/",)  # formats have names of their own


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of somebody else, named in the environment that a night or a server begins in."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "toy_method.py").write_text(TOY)
    monkeypatch.setenv("NIGHTSCHOOL_PLUGINS", "toy_method")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(REPOSITORY)]))
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def imported(toy: None) -> Iterator[None]:
    """The same in this process, as a server or a night does when it begins."""
    plugins.load()
    yield
    del methods.FACTS["toy"], registry._METHODS["toy"], sys.modules["toy_method"]


def test_a_method_from_one_file_makes_an_adapter(toy: None, tmp_path: Path, tiny: Base) -> None:
    data = tmp_path / "data"
    store = say(data)

    asked = arguments(data, tiny.name, ["--method", "toy", "--gate", "off"], ["push=2"])
    named = {name: os.environ[name] for name in ("NIGHTSCHOOL_PLUGINS", "PYTHONPATH")}
    done = Process(PROGRAM, asked, **named).wait()

    assert done.returncode == 0, done.stderr
    assert (last(store).state, last(store).method, last(store).adapter) == ("done", "toy", "night-0001")
    steps = nights.night_steps(store, 1)
    assert len(steps) == 3
    assert {"step", "loss", "grad_norm", "memory_gib"} <= set(steps[0])
    card = on_disk.read_card(data / "adapters" / "night-0001")
    assert (card.method, card.settings["push"], card.settings["rounds"]) == ("toy", 2.0, 3)
    assert card.counts["demonstration"] == 1
    store.close()


def test_its_help_and_its_settings_are_listed_and_a_value_out_of_range_is_refused(
    imported: None, tmp_path: Path, tiny: Base
) -> None:
    helped = " ".join(run(tmp_path, tiny.name, "--help").stdout.split())
    assert "toy: demonstrations, one at a time" in helped
    listed = run(tmp_path, tiny.name, "--method", "toy", "--settings").stdout
    assert "push=1.0  how hard it pushes (above 0, at most 10)" in listed
    refused = run(tmp_path, tiny.name, "--method", "toy", settings=["push=11"])
    assert refused.returncode == 2
    assert one_sentence(refused.stderr)
    assert "push must be at most 10, not 11.0" in refused.stderr


def test_the_page_lists_it_and_names_it_in_a_sentence(imported: None) -> None:
    with gr.Blocks():
        _, panel = build_night()
    assert ("Toy: what people wrote", "toy") in panel.method.choices
    assert word_of("toy") == "by the toy"


def test_the_api_starts_a_night_of_it(imported: None, web: TestClient, store: Database) -> None:
    begun = web.post("/api/nights", json={"method": "toy"}, headers=key())
    assert begun.status_code == 200, begun.text
    assert begun.json()["method"] == "toy"


def test_a_plugin_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Base) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_PLUGINS", "no_such_module_anywhere")
    with pytest.raises(Refused, match="NIGHTSCHOOL_PLUGINS names 'no_such_module_anywhere'"):
        plugins.load()
    refused = run(tmp_path, tiny.name, "--help")
    assert (refused.returncode, one_sentence(refused.stderr)) == (2, True)


def test_every_method_that_people_are_told_of_is_there_and_every_setting_is_described() -> None:
    assert set(methods.FACTS) == set(registry.every())
    for name, method in registry.every().items():
        assert set(method.learns_from) <= set(KINDS), name
        assert issubclass(method.config, Config)
        assert all(field.description or field.metadata for field in method.config.model_fields.values())
        schema = method.config.model_json_schema()["properties"]
        assert not [each for each, told in schema.items() if not told.get("description")], name
        assert len(in_lines(method.config)) == len(schema)


def test_help_comes_without_loading_what_trains() -> None:
    code = "import sys; from training.night.night import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_methods_are_named_nowhere_else() -> None:
    named = "|".join(name for name in registry.every() if name not in ("auto", "reward"))  # words with other meanings
    patterns = [rf"""["']({named})["']""", r"""(?<!request\.)\bmethod\s*[!=]=\s*["']"""]
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for package in ("assistant", "feedback", "training", "ui")
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        if not str(path.relative_to(REPOSITORY)).startswith(DECLARED + OWN_WORDS)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(re.search(each, line) for each in patterns)
    ]
    assert found == []


def test_nothing_that_trains_asks_which_method_it_is() -> None:
    for path in sorted((REPOSITORY / "training").rglob("*.py")):
        asks = r"\bmethod\s*[!=]=|isinstance\((settings|config|method|trainer)\b"
        assert not re.search(asks, path.read_text(encoding="utf-8")), path
