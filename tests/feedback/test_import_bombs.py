"""A file to import that is made to do harm is refused in one sentence and in bounded memory; nothing of it is kept."""

import gzip
import json
import resource
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from feedback.database.database import Database
from feedback.errors import Refused
from feedback.formats import files
from feedback.formats.load import import_file
from feedback.formats.registry import format_of_file
from feedback.formats.sources import opened
from feedback.formats.turns import cells
from tests.feedback.test_audit import typed_in

GOOD = {"prompt": "hello", "chosen": "good day", "rejected": "go away"}
MB = 1 << 20


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bombs(folder: Path) -> Iterator[Path]:
    """Files of which each is odd in a way of its own."""
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    texts: dict[str, str] = {
        "deep.json": f"[{deep}]",
        "brackets.json": "[" * 200_000,
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
    (folder / "blank.jsonl.gz").write_bytes(gzip.compress(b"\n" * 64 * MB, 1))
    yield folder / "blank.jsonl.gz"
    (folder / "blank.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"\n" * 64 * MB, 1))
    yield folder / "blank.csv.gz"
    (folder / "line.csv.gz").write_bytes(gzip.compress(b"x" * 96 * MB, 1))
    yield folder / "line.csv.gz"


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


def stream(path: Path, table: Any, compression: str | None = None) -> Path:
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema, options=options) as writer:
        writer.write_table(table)
    return path


def test_arrow_that_would_unpack_or_that_points_outside_of_itself_is_refused(store: Database, tmp_path: Path) -> None:
    table = pyarrow.table({name: [text] for name, text in GOOD.items()})
    assert list(files.read(stream(tmp_path / "sound.arrow", table))) == [GOOD]
    zeros = pyarrow.table({"prompt": pyarrow.array(["x" * (64 * MB)])})
    before = peak_mb()
    packed = [stream(tmp_path / "packed.arrow", zeros, "zstd")]
    packed += [
        stream(
            tmp_path / "words.arrow",
            pyarrow.table({"prompt": pyarrow.array(["a" * 99] * 9).dictionary_encode()}),
            "lz4",
        )
    ]
    for path in packed:
        with pytest.raises(Refused, match="is compressed Arrow data"):
            import_file(store, path)
    assert peak_mb() - before < 300
    sound = (tmp_path / "sound.arrow").read_bytes()
    at = sound.rindex(len(GOOD["prompt"]).to_bytes(4, "little"), 0, sound.index(b"hello"))  # where the text ends
    (tmp_path / "outside.arrow").write_bytes(sound[:at] + (1 << 30).to_bytes(4, "little") + sound[at + 4 :])
    with pytest.raises(Refused, match="is no Arrow stream"):
        import_file(store, tmp_path / "outside.arrow")


def test_what_unpacks_to_far_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "MOST_UNPACKED", MB)
    rows = f"{json.dumps(GOOD)}\n".encode() * 60_000
    (tmp_path / "same.jsonl.gz").write_bytes(gzip.compress(rows))
    with pytest.raises(Refused, match=r"same.jsonl.gz unpacks to more than \d MB"):
        sum(1 for _ in files.read(tmp_path / "same.jsonl.gz"))
    varied = b"".join(f'{{"prompt": "{n * 7919}", "chosen": "a", "rejected": "b"}}\n'.encode() for n in range(30_000))
    (tmp_path / "varied.jsonl.gz").write_bytes(gzip.compress(varied))
    assert sum(1 for _ in files.read(tmp_path / "varied.jsonl.gz")) == 30_000


def test_the_first_rows_are_looked_at_one_by_one(tmp_path: Path) -> None:
    row = {**GOOD, "prompt": "x" * (8 * MB)}
    with (tmp_path / "long.jsonl").open("w") as file:
        for _ in range(12):
            file.write(f"{json.dumps(row)}\n")
    before = peak_mb()
    assert format_of_file(tmp_path / "long.jsonl").name == "trl"
    assert peak_mb() - before < 60


def test_a_cell_that_is_nested_or_long_is_text(tmp_path: Path) -> None:
    for cell in ("[{'a':" + "[" * 100_000, "[{'" + "a" * 2_000_000, '[{"a":' * 50_000):
        assert cells.opened(cell) is cell


def test_parquet_of_the_usual_kind_is_read_as_before(tmp_path: Path) -> None:
    rows = [GOOD | {"number": number, "tags": ["a", "b"]} for number in range(5000)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert list(files.read(parquet(tmp_path / "rows.parquet", columns))) == rows


def test_the_command_says_it_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.jsonl").write_text(json.dumps(GOOD)[:-1])
    assert typed_in(["import", str(tmp_path / "cut.jsonl")], tmp_path / "data") == 2
    said = capsys.readouterr().err
    assert ("line 1" in said, said.count("\n")) == (True, 1)
    with closing(Database(tmp_path / "data")) as store:
        assert store.row("SELECT * FROM messages") is None
