"""Formats are declared: a row's is told by evidence, in whatever order they stand, and a new one is one file."""

import importlib.util
import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.formats import export, registry
from feedback.formats.registry import FORMATS, format_of, register
from feedback.kinds.vote import DOWN, UP, vote
from tests.conftest import two_replies
from ui.cli.main import main

TURNS = [{"role": "user", "content": "hello"}]
REPLY = [{"role": "assistant", "content": "good day"}]
OTHER = [{"role": "assistant", "content": "go away"}]
SAMPLES: dict[str, list[dict[str, Any]]] = {  # as its own programs write them, with what else such files hold
    "arena": [
        {
            "id": 1,
            "model_a": "a",
            "model_b": "b",
            "prompt": '["hello"]',
            "response_a": '["good day"]',
            "response_b": '["go away"]',
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        }
    ],
    "argilla": [{"id": "1", "fields": {"prompt": TURNS}, "metadata": {}, "responses": {"preference": []}}],
    "chatml": [{"text": "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\ngood day<|im_end|>\n"}],
    "critiques": [{"prompt": "hello", "response": "go away", "critique": "rude", "revision": "hi", "source": "x"}],
    "hh": [
        {"chosen": "\n\nHuman: hello\n\nAssistant: hi", "rejected": "\n\nHuman: hello\n\nAssistant: go"},
        {"prompt": None, "chosen": "\n\nHuman: hello\n\nAssistant: hi", "rejected": "\n\nHuman: hello"},
    ],
    "nightschool": [{"message": "1", "messages": TURNS, "replies": [], "said": {}, "imported": {}}],
    "open-webui": [
        {"id": "1", "user_id": "u", "version": 0, "type": "rating", "data": {}, "meta": {}, "snapshot": {}},
        {"id": "1", "user_id": "u", "type": "rating", "data": {"rating": 1}, "meta": {}, "snapshot": None},
    ],
    "prompts": [
        {"suite": "mt_bench", "id": 81, "category": "writing", "turns": ["hello"], "reference": []},
        {"suite": "sycophancy", "bio": "", "prompt": "hello", "corrects": ["a"], "incorrects": ["b"]},
    ],
    "safety": [{"item_id": 1, "context": "USER: hello", "response": "go away", "safe_votes": ["No"], "majority": "No"}],
    "sft": [{"messages": [*TURNS, *REPLY], "source": "x"}, {"prompt": "hello", "completion": "good day"}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "hello"}], "system": "be kind"}],
    "trl": [
        {"prompt": TURNS, "chosen": REPLY, "rejected": OTHER, "id": 7, "split": "x"},
        {"prompt": "hello", "chosen": "good day", "rejected": "go away"},
        {"prompt": TURNS, "chosen": REPLY, "rejected": OTHER, "messages": [*TURNS, *REPLY], "score_chosen": 8.0},
    ],
    "trl-implicit": [{"chosen": [*TURNS, *REPLY], "rejected": [*TURNS, *OTHER]}],
    "trl-unpaired": [
        {"prompt": TURNS, "completion": REPLY, "label": True},
        {"prompt": "hello", "response": "go away", "thumb": -1, "rater": "r", "model": "m"},
    ],
    "ultrafeedback": [{"source": "x", "instruction": "hello", "models": [], "completions": []}],
    "votes": [
        {"item_id": 1, "prompt": "hello", "response_a": "hi", "response_b": "go away", "votes": []},
        {"prompt": "hello", "model_a": "a", "model_b": "b", "response_a": "hi", "response_b": "go", "votes": []},
    ],
}
ROWS = [(name, row) for name, rows in SAMPLES.items() for row in rows]
TOY = '''"""Fortune cookies: what was said, the answer, and how many stars it got."""

from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Record, Reply, messages, text


def read(raw: dict[str, Any]) -> Record:
    said = Annotation("thumb", (0,), value=1 if raw["stars"] > 3 else -1)
    return Record(messages(raw["wish"]), (Reply(text(raw["cookie"])),), (said,))


def write(row: Record, number: int) -> dict[str, Any]:
    stars = 5 if row.said[0].value == 1 else 1
    return {"wish": row.messages[-1].content, "cookie": row.replies[0].text, "stars": stars}


FORMAT = Format("cookies", "fortune cookies", (Row("wish cookie stars"),), read, write, frozenset({"thumb"}))
'''


def test_there_is_a_sample_of_every_format() -> None:
    assert SAMPLES.keys() == FORMATS.keys()


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_one_format_alone_accounts_for_most_of_a_row(name: str, row: dict[str, Any]) -> None:
    found = Counter({each.name: each.evidence(row) for each in FORMATS.values()})
    (first, most), (_, next_best) = found.most_common(2)
    assert (first, most > next_best) == (name, True)


def test_of_every_two_formats_each_knows_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    every = dict(FORMATS)
    for pair in permutations(every, 2):
        monkeypatch.setattr(registry, "FORMATS", {name: every[name] for name in pair})
        for name in pair:
            assert {format_of(row).name for row in SAMPLES[name]} == {name}, pair


@given(order=st.permutations(sorted(FORMATS)), fields=st.randoms(use_true_random=False))
def test_the_order_of_formats_and_of_fields_says_nothing(order: list[str], fields: random.Random) -> None:
    shuffled = {name: FORMATS[name] for name in order}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FORMATS", shuffled)
        for name, row in ROWS:
            mixed = dict(fields.sample(sorted(row.items(), key=str), len(row)))
            assert format_of(mixed).name == name


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"prompt": "x", "response": "y", "thumb": 1, "critique": "z"}, "critiques or trl-unpaired"),
        ({"conversations": [], "messages": []}, "sft or sharegpt"),
        ({"conversations": [], "corrects": []}, "prompts or sharegpt"),
    ],
)
def test_a_row_that_two_formats_fit_equally_well_is_refused(
    store: Database, tmp_path: Path, row: dict[str, Any], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Refused, match=rf"^a row with .* may be {names}; name one of them with --format$"):
        format_of(row)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert main(["import", str(tmp_path / "rows.jsonl"), "--data", str(store.data)]) == 2
    assert names in capsys.readouterr().err
    assert store.rows("SELECT * FROM imports") == []


def test_real_files_are_told_by_any_of_their_rows(shared_data: Path) -> None:
    told: dict[str, set[str]] = {}
    for path in sorted(shared_data.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            told[path.stem] = {format_of(json.loads(line)).name for line in file}
    expected = {
        "critiques": "critiques",
        "instructions": "sft",
        "pairs_harmless_test": "trl",
        "pairs_helpful_test": "trl",
        "prompts_mt_bench": "prompts",
        "prompts_xstest": "prompts",
        "raters_dices350": "safety",
        "raters_pandalm": "votes",
        "raters_tulu": "votes",
        "sycophancy": "prompts",
        "thumbs": "trl-unpaired",
    }
    assert {name: told[name] for name in expected} == {name: {each} for name, each in expected.items()}


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[ModuleType]:
    """A format in a file of its own, registered."""
    (tmp_path / "cookies.py").write_text(TOY)
    spec = importlib.util.spec_from_file_location("cookies", tmp_path / "cookies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    register(module.FORMAT)
    yield module
    del FORMATS["cookies"]


def test_a_format_in_one_file_is_imported_told_and_exported(
    toy: ModuleType, store: Database, consenting: User, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, left, right = two_replies(store, consenting)
    vote(store, consenting, left, UP)
    vote(store, consenting, right, DOWN)
    first, second, new = tmp_path / "first.jsonl", tmp_path / "second.jsonl", tmp_path / "new"
    assert main(["export", str(first), "--format", "cookies", "--data", str(store.data)]) == 0
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert rows == [
        {"wish": "hello", "cookie": "good day to you", "stars": 5},
        {"wish": "hello", "cookie": "go away", "stars": 1},
    ]
    assert format_of(rows[0]) is toy.FORMAT
    assert main(["import", str(first), "--data", str(new)]) == 0  # told by its rows
    assert "imported 2 rows (cookies)" in capsys.readouterr().out
    assert main(["export", str(second), "--format", "cookies", "--data", str(new)]) == 0
    assert second.read_bytes() == first.read_bytes()
    again = Database(tmp_path / "again")
    assert main(["import", str(first), "--format", "cookies", "--data", str(again.data)]) == 0
    assert list(export.rows(again, toy.FORMAT, Counter())) == rows
    again.close()


def test_the_commands_help_lists_it(toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("import", "export"):
        assert main([command, "--help"]) == 0
        assert "cookies" in capsys.readouterr().out


def test_a_name_is_taken_once(toy: ModuleType) -> None:
    with pytest.raises(ValueError, match="'cookies' already"):
        register(toy.FORMAT)
