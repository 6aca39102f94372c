"""Files and folders of every sort: what is compressed, encoded, divided, named or laid out in another way."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from feedback.errors import NotFound, Refused
from tests.feedback.test_formats_in_the_wild import BETTER, PAIR, in_short, look
from tests.helpers.commands import nightschool, refused

LINE = json.dumps(PAIR)
TABLE = "prompt,chosen,rejected\nName a bird,A wren.,A dog.\n"
ASKED = {"role": "user", "content": "Name a bird"}
GOOD = {"role": "assistant", "content": "A wren."}
BAD = {"role": "assistant", "content": "A dog."}


def cells(*values: str) -> bytes:
    """A table of one row, as a program writes it that puts a list into a cell."""
    out = io.StringIO()
    csv.writer(out).writerows([("prompt", "chosen", "rejected"), values])
    return out.getvalue().encode()


FILES: dict[str, bytes] = {
    "bom.jsonl": b"\xef\xbb\xbf" + LINE.encode(),
    "utf-16.jsonl": LINE.encode("utf-16"),
    "utf-16-be.json": b"\xfe\xff" + f"[{LINE}]".encode("utf-16-be"),
    "packed.jsonl.gz": gzip.compress(LINE.encode()),
    "packed.csv.gz": gzip.compress(b"\xef\xbb\xbf" + TABLE.encode()),
    "array.json.gz": gzip.compress(f"[{LINE}]".encode()),
    "lines.json": f"\n{LINE}\n".encode(),
    "array.jsonl": f"[\n {LINE}\n]".encode(),
    "lines.ndjson": LINE.encode(),
    "LOUD.JSONL": LINE.encode(),
    "rows.CSV": TABLE.encode(),
    "excel.csv": b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode(),
    "europe.csv": b"\xef\xbb\xbf" + TABLE.replace(",", ";").replace("\n", "\r\n").encode(),
    "declared.csv": ("sep=;\r\n" + TABLE.replace(",", ";")).encode(),
    "unicode.csv": TABLE.replace(",", "\t").encode("utf-16"),
    "tabs.tsv": TABLE.replace(",", "\t").encode(),
    "quoted.csv": b'"prompt";"chosen";"rejected"\n"Name a bird";"A wren.";"A dog."\n',
    "json_cells.csv": cells(json.dumps([ASKED]), "A wren.", "A dog."),
    "python_cells.csv": cells(str([ASKED]), str([GOOD]), "A dog."),
    "numpy_cells.csv": cells("Name a bird", *(f"[{ASKED}\n {reply}]" for reply in (GOOD, BAD))),
    "one_turn.csv": cells("Name a bird", str(GOOD), "A dog."),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_sort_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    found = look(tmp_path / name)
    assert ([in_short(row) for row in found.rows], found.left_out) == ([BETTER], {})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cut.jsonl.gz", gzip.compress(LINE.encode() * 100)[:-20], "cut.jsonl.gz is no whole gzip file"),
        ("plain.jsonl.gz", LINE.encode(), "plain.jsonl.gz is no whole gzip file"),
        (
            "latin.csv",
            TABLE.replace("wren", "Zaunkönig").encode("latin-1"),
            "latin.csv is not UTF-8 text .*; save it as UTF-8",
        ),
        ("pretty.json", json.dumps(PAIR, indent=1).encode(), "pretty.json is neither a list of rows nor JSON Lines"),
        ("rows.parquet.gz", b"", "ends in none of .jsonl"),
        ("rows.xlsx", b"", "ends in none of .jsonl"),
        ("rows.arrow", b"ARROW1", "rows.arrow is no Arrow stream"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=says):
        look(tmp_path / name)


def table(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def lines(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


TEST = {**PAIR, "prompt": "for judging"}
SECOND = {**PAIR, "prompt": "Name another"}
BOTH = [BETTER, "u: Name another => A wren. > A dog."]


def test_a_folder_of_the_hub_gives_its_training_split(tmp_path: Path) -> None:
    table(tmp_path / "data" / "train-00000-of-00002.parquet", PAIR)
    table(tmp_path / "data" / "train-00001-of-00002.parquet", SECOND)
    table(tmp_path / "data" / "test-00000-of-00001.parquet", TEST)
    assert [in_short(row) for row in look(tmp_path).rows] == BOTH
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test-*\n"
        "  - split: train\n    path: data/train-*\n---\n# Birds\n"
    )
    assert [in_short(row) for row in look(tmp_path).rows] == BOTH


def test_a_folder_with_several_sets_is_refused_by_name_and_its_parts_are_read(tmp_path: Path) -> None:
    lines(tmp_path / "helpful" / "train.jsonl", PAIR)
    lines(tmp_path / "helpful" / "test.jsonl", TEST)
    lines(tmp_path / "harmless" / "train.jsonl", SECOND)
    with pytest.raises(Refused, match=r"holds several data sets .*harmless/train.jsonl"):
        look(tmp_path)
    assert [in_short(row) for row in look(tmp_path / "helpful").rows] == [BETTER]
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: helpful\n  data_files: helpful/train.jsonl\n"
        "- config_name: harmless\n  data_files: harmless/train.jsonl\n---\n"
    )
    with pytest.raises(Refused, match=r"holds several data sets \(helpful, harmless\)"):
        look(tmp_path)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: x\n  data_files: ../*.jsonl\n---\n")
    with pytest.raises(Refused, match="names files that are elsewhere"):
        look(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="there is no file in"):
        look(tmp_path / "empty")


def test_what_datasets_saved_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    train, test = datasets.Dataset.from_list([PAIR, SECOND]), datasets.Dataset.from_list([TEST])
    train.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict({"test": test, "train": train}).save_to_disk(str(tmp_path / "dict"))
    datasets.DatasetDict({"a": test, "b": train}).save_to_disk(str(tmp_path / "other"))
    assert [in_short(row) for row in look(tmp_path / "one").rows] == BOTH
    assert [in_short(row) for row in look(tmp_path / "dict").rows] == BOTH
    with pytest.raises(Refused, match="has the splits a, b"):
        look(tmp_path / "other")
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}')
    with pytest.raises(Refused, match="names a file that is not there"):
        look(tmp_path / "one")


# The command.


def test_a_dry_run_shows_ten_rows_and_keeps_nothing(tmp_path: Path) -> None:
    lines(
        tmp_path / "rows.jsonl",
        *({**PAIR, "system": "Be kind.\x1b[2J", "id": 7} for _ in range(12)),
        {**PAIR, "chosen": ""},
    )
    arguments = ("import", str(tmp_path / "rows.jsonl"), "--dry-run", "--data", str(tmp_path / "data"))
    shown = nightschool(*arguments)
    assert shown.returncode == 0
    assert shown.stdout.count("reply 1 is better than reply 2") == 10
    assert "system: Be kind. [2J" in shown.stdout
    assert shown.stdout.endswith("would import 12 rows (trl); left out 1 (an empty reply: 1)\n")
    facts = json.loads(nightschool(*arguments, "--json").stdout)
    assert (facts["kept"], len(facts["rows"]), facts["left_out"]) == (12, 10, {"an empty reply": 1})
    assert facts["rows"][0]["said"] == [{"kind": "comparison", "of": [0, 1], "choice": "left"}]
    assert facts["rows"][0]["extra"] == {"id": 7}
    assert not (tmp_path / "data").exists()


def test_a_refused_file_comes_in_with_the_line_that_it_shows(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", {"question": "Name a bird", "best": "A wren.", "worst": "A dog."})
    arguments = ("import", str(tmp_path / "rows.jsonl"), "--data", str(tmp_path / "data"))
    told = nightschool(*arguments)
    refused(told, "no format known here has rows with best, question, worst")
    columns = told.stderr.rstrip().rpartition("--columns ")[2]
    assert nightschool(*arguments, "--columns", columns).stdout == "imported 1 rows (columns)\n"
    refused(nightschool(*arguments, "--columns", columns, "--format", "trl"), "give one of them")
    lines(tmp_path / "more.jsonl", {"question": "q", "best": "", "worst": "b"})
    nothing = nightschool("import", str(tmp_path / "more.jsonl"), "--dry-run", "--columns", columns)
    assert nothing.returncode == 1
