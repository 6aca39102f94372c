"""What comes in goes out: export, import and export again give the same, in every format, whatever was said."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.database.database import Database
from feedback.formats import export, files, load
from feedback.formats.registry import FORMATS, writable
from feedback.kinds.vote import REASONS
from tests.feedback.test_formats import SUFFIX, bare
from tests.feedback.test_storable import FAST, values

HARD = [
    "\n\nHuman: x",
    "<|im_end|>",
    "\r\n",
    "\u2028",
    "\x00",
    "a,\"b'",
    '["a"]',
    "🦉",
    "NaN",
    "1",
    "\ufeff",
    " x ",
    "Δ\t",
]
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(HARD)
said_words = st.builds(lambda first, more: f"a{first}{more}", words, words) | words
users_words = said_words.filter(lambda text: bool(text.strip()))
raters = st.sampled_from(["", "ann", "Ann", "7", "worker: 2"])
times = st.datetimes().map(lambda at: f"{at.isoformat(timespec='milliseconds')}+00:00")


def conversation(before: list[tuple[str, str]], last: str, system: str) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": system}] if system.strip() else []
    for asked, answered in before:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*turns, {"role": "user", "content": last}]


conversations = st.builds(
    conversation, st.lists(st.tuples(users_words, said_words), max_size=2), users_words, st.just("") | words
)
statements = st.one_of(
    st.fixed_dictionaries({"kind": st.just("thumb"), "of": st.just([0]), "value": st.sampled_from([1, -1]),
                           "reasons": st.lists(st.sampled_from(list(REASONS)), max_size=2, unique=True),
                           "words": words}),
    st.fixed_dictionaries({"kind": st.just("comparison"), "of": st.sampled_from([[0, 1], [1, 0], [2, 0]]),
                           "choice": st.sampled_from(["left", "right", "tie", "both_bad", "cannot_tell"]),
                           "strength": st.none() | st.integers(1, 5), "words": words}),
    st.fixed_dictionaries({"kind": st.just("ranking"), "of": st.sampled_from([[0, 1, 2], [2, 1, 0], [1, 2]]),
                           "ranks": st.just([2, 1, 1]), "all_wrong": st.booleans()}).map(
        lambda said: said | {"ranks": said["ranks"][: len(said["of"])]}),
    st.fixed_dictionaries({"kind": st.sampled_from(["correction", "critique"]), "of": st.just([1]),
                           "text": users_words}),
    st.fixed_dictionaries({"kind": st.just("label"), "of": st.just([2]), "words": words,
                           "label": st.sampled_from(["unsafe", "demonstration", "custom:odd"])}),
)  # fmt: skip
replies = st.lists(st.fixed_dictionaries({"text": said_words, "model": words}), min_size=3, max_size=3)
pieces = st.lists(st.tuples(conversations, replies, statements, raters, times), min_size=1, max_size=6)


def ledger_row(number: int, piece: Any) -> dict[str, Any]:
    messages, every, said, rater, at = piece
    told = [reply | {"id": f"{number}-{each}"} for each, reply in enumerate(every)]
    return {"message": str(number), "messages": messages, "replies": told, "said": said | {"rater": rater, "at": at}}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def import_into(folder: Path, path: Path, name: str) -> tuple[Database, load.Imported]:
    store = Database(folder)
    return store, load.import_file(store, path, name)


def exported(store: Database, name: str, path: Path) -> list[dict[str, Any]]:
    """The rows of a whole export, apart from where the ledger has them from."""
    export.export_file(store, path, FORMATS[name], Counter())
    store.close()
    rows = list(files.read(path))
    assert all(isinstance(row, dict) for row in rows)
    return [{name: value for name, value in row.items() if name != "imported"} for row in rows]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", writable())
@given(some=pieces)
@settings(FAST, max_examples=2)
def test_out_in_and_out_again_is_the_same(name: str, some: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    check_identity(name, some, tmp_path_factory.mktemp("trip"))


@pytest.mark.soak
@pytest.mark.parametrize("name", writable())
@given(some=pieces)
@settings(FAST, max_examples=300)
def test_out_in_and_out_again_is_the_same_for_long(
    name: str, some: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_identity(name, some, tmp_path_factory.mktemp("trip"))


def check_identity(name: str, some: list[Any], folder: Path) -> None:
    suffix = SUFFIX.get(name, ".jsonl")
    said = write_lines(folder / "said.jsonl", [ledger_row(*each) for each in enumerate(some)])
    store, _ = import_into(folder / "a", said, "nightschool")
    first = exported(store, name, folder / f"first{suffix}")
    if not first:
        return
    store, done = import_into(folder / "b", folder / f"first{suffix}", name)
    assert (done.kept, done.left_out) == (len(first), {})
    assert exported(store, name, folder / f"second{suffix}") == first


@pytest.mark.parametrize("name", writable())
@given(some=pieces, more=st.lists(st.dictionaries(words, values, max_size=3), min_size=6, max_size=6))
@settings(FAST, max_examples=1)
def test_other_columns_of_any_kind_go_out_as_they_came_in(
    name: str, some: list[Any], more: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also as Parquet, which has no types for columns of numbers and texts, or of empty objects."""
    check_columns(name, some, more, tmp_path_factory.mktemp("columns"))


@pytest.mark.soak
@pytest.mark.parametrize("name", writable())
@given(some=pieces, more=st.lists(st.dictionaries(words, values, max_size=3), min_size=6, max_size=6))
@settings(FAST, max_examples=150)
def test_other_columns_of_any_kind_go_out_as_they_came_in_for_long(
    name: str, some: list[Any], more: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_columns(name, some, more, tmp_path_factory.mktemp("columns"))


def check_columns(name: str, some: list[Any], more: list[dict[str, Any]], folder: Path) -> None:
    said = write_lines(folder / "said.jsonl", [ledger_row(*each) for each in enumerate(some)])
    store, _ = import_into(folder / "a", said, "nightschool")
    plain = exported(store, name, folder / "plain.jsonl")
    rows = [
        {f"more {key}": value for key, value in other.items()} | row for row, other in zip(plain, more, strict=False)
    ]
    if not rows:
        return
    store, done = import_into(folder / "b", write_lines(folder / "more.jsonl", rows), name)
    assert done.kept == len(rows)
    first = exported(store, name, folder / "first.jsonl")
    store, _ = import_into(folder / "c", folder / "first.jsonl", name)
    assert exported(store, name, folder / "second.jsonl") == first
    store, _ = import_into(folder / "d", folder / "first.jsonl", name)
    assert list(map(bare, exported(store, name, folder / "first.parquet"))) == list(map(bare, first))
    store, done = import_into(folder / "e", folder / "first.parquet", name)
    assert done.kept == len(rows)
    assert list(map(bare, exported(store, name, folder / "third.jsonl"))) == list(map(bare, first))


COLUMNS: dict[str, list[Any]] = {
    "empty objects": [{}, {}],
    "an empty object in a list": [[{}], []],
    "numbers and texts": [7, "abc"],
    "numbers and truths": [1, True],
    "objects and texts": [{"a": 1}, "abc"],
    "objects of different kinds": [{"a": 1}, {"a": "x"}],
    "an object that is empty once": [{"a": {}}, {"a": {"b": 1}}],
    "large numbers and fractions": [2**60 + 1, 0.5],
    "nothing at all": [None, None],
    "lists and objects": [[], {}],
    "an empty name": [{"": 1}, {"": 2}],
}


@pytest.mark.parametrize("columns", COLUMNS)
def test_parquet_of_what_arrow_has_no_type_for_is_read_back_and_loaded(
    store: Database, tmp_path: Path, columns: str
) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"p {each}", "chosen": "a", "rejected": "b", "more": COLUMNS[columns][each % 2]}
            for each in range(4)]  # fmt: skip
    load.import_file(store, write_lines(tmp_path / "rows.jsonl", rows))
    count = export.export_file(store, tmp_path / "out.parquet", FORMATS["trl"], Counter())
    assert count == 4
    read = list(files.read(tmp_path / "out.parquet"))
    assert [bare(row.get("more")) for row in read] == [bare(row["more"]) for row in rows]  # type: ignore[union-attr]
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train",
                                   cache_dir=str(tmp_path / "cache"))  # fmt: skip
    assert len(loaded) == 4


def test_a_column_that_only_later_rows_have_is_in_csv(store: Database, tmp_path: Path) -> None:
    row = {"id": 1, "prompt": '["a"]', "response_a": '["x"]', "response_b": '["y"]', "model_a": "m", "model_b": "n"}
    row |= {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
    rows = [row, row | {"prompt": '["b"]', "language": "English"}]
    load.import_file(store, write_lines(tmp_path / "rows.jsonl", rows))
    export.export_file(store, tmp_path / "out.csv", FORMATS["arena"], Counter())
    assert [each["language"] for each in files.read(tmp_path / "out.csv")] == ["", "English"]  # type: ignore[index]


def test_a_reply_that_would_lose_its_last_mark_is_not_exported(tmp_path: Path) -> None:
    replies = [{"text": text, "model": ""} for text in ("a", "", "a<|im_end|>")]
    said = {"kind": "ranking", "of": [0, 1, 2], "ranks": [2, 1, 1], "all_wrong": False}
    row = ([{"role": "user", "content": "0"}], replies, said, "", "2000-01-01T00:00:00.000+00:00")
    for name in ("trl", "trl-implicit", "nightschool"):
        (tmp_path / name).mkdir()
        check_identity(name, [row], tmp_path / name)
