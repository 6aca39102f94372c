"""A file to import that is made to do harm is refused in one sentence and in bounded memory; nothing of it is kept."""

import json
import resource
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from feedback.database.database import Database
from feedback.errors import Refused
from feedback.formats import files
from feedback.formats.load import import_file
from tests.feedback.test_audit import typed_in

GOOD = {"prompt": "hello", "chosen": "good day", "rejected": "go away"}
MB = 1 << 20


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bombs(folder: Path) -> Iterator[Path]:
    """Files of which each is odd in a way of its own."""
    deep, line = '{"a":' * 100_000 + "1" + "}" * 100_000, json.dumps(GOOD)
    texts: dict[str, str] = {
        "deep.jsonl": f"{line}\n{deep}\n",
        "deep.json": f"[{deep}]",
        "brackets.json": "[" * 200_000,
        "nan.jsonl": f'{line[:-1]}, "score": NaN}}\n',
        "infinity.json": f'[{line[:-1]}, "score": -Infinity}}]',
        "huge.jsonl": f'{line[:-1]}, "score": 1e999}}\n',
        "digits.jsonl": f'{line[:-1]}, "score": {"9" * 10_000}}}\n',
        "field.csv": "prompt,chosen,rejected\na,b," + "x" * 11_000_000 + "\n",
        "quote.csv": 'prompt,chosen,rejected\na,b,"' + "x\n" * 6_000_000,
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        yield folder / name
    with (folder / "line.jsonl").open("wb") as file:  # one line of 2 GB, none of it on the disk
        file.truncate(2 << 30)
    yield folder / "line.jsonl"
    with (folder / "array.json").open("wb") as file:
        file.truncate(2 << 30)
    yield folder / "array.json"
    with (folder / "line.csv").open("wb") as file:
        file.truncate(2 << 30)
    yield folder / "line.csv"


def test_a_file_made_to_do_harm_is_one_sentence_in_little_memory(store: Database, tmp_path: Path) -> None:
    before = peak_mb()
    for path in bombs(tmp_path):
        with pytest.raises(Refused) as told:
            import_file(store, path)
        assert (path.name, "\n" in str(told.value), len(str(told.value)) < 300) == (path.name, False, True)
        path.unlink()
    assert peak_mb() - before < 500
    assert (store.row("SELECT * FROM imports"), store.row("SELECT * FROM audit")) == (None, None)


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd", **options)
    return path


def test_a_small_parquet_file_of_gigabytes_is_refused_in_little_memory(store: Database, tmp_path: Path) -> None:
    word = pyarrow.array(["x" * (4 * MB)])
    same = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 2000, pyarrow.int32()), word)  # 8 GB, once written
    lists = pyarrow.LargeListArray.from_arrays(
        pyarrow.array([0, 30_000_000]), pyarrow.nulls(30_000_000, pyarrow.int8())
    )
    made = [parquet(tmp_path / "words.parquet", {"prompt": same, "chosen": same, "rejected": same})]
    made += [parquet(tmp_path / "lists.parquet", {"prompt": lists})]
    before = peak_mb()
    for path in made:
        assert path.stat().st_size < MB
        with suppress(Refused):
            assert import_file(store, path).kept == 0
    assert peak_mb() - before < 600


def test_parquet_of_the_usual_kind_is_read_as_before(tmp_path: Path) -> None:
    rows = [GOOD | {"number": number, "tags": ["a", "b"]} for number in range(5000)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert list(files.read(parquet(tmp_path / "rows.parquet", columns))) == rows


def test_the_command_says_it_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nan.jsonl").write_text(f'{json.dumps(GOOD)[:-1]}, "score": NaN}}\n')
    assert typed_in(["import", str(tmp_path / "nan.jsonl")], tmp_path / "data") == 2
    said = capsys.readouterr().err
    assert ("line 1" in said, said.count("\n")) == (True, 1)
    with closing(Database(tmp_path / "data")) as store:
        assert store.row("SELECT * FROM messages") is None
