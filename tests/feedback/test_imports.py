"""An import is whole or goes on; what several files say counts once; what was imported can be forgotten and mended."""

import itertools
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from feedback.accounts import users
from feedback.database.database import Database
from feedback.errors import Conflict
from feedback.examples import build
from feedback.formats import export, files, load
from feedback.formats.registry import FORMATS
from feedback.kinds.tally import counts
from feedback.upkeep import health, privacy
from feedback.upkeep.backup import facts
from feedback.upkeep.imports import alone
from tests.helpers.commands import nightschool, refused
from tests.helpers.processes import Process

HALF = "cut \ud83d"
PERSONAL = {"user": {"name": "Ada Lovelace", "email": "ada@example.org"}, "client_ip": "192.0.2.7", "score": 3}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def pairs(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"question {n}", "chosen": f"a {n}", "rejected": "b", **more} for n in range(count)]


def said_in(store: Database) -> list[dict[str, Any]]:
    """All that a ledger says, in its own format."""
    return list(export.rows(store, FORMATS["nightschool"], Counter()))


def conversation_of_three(count: int) -> list[dict[str, Any]]:
    """Rows that are about the same replies: a thumb, a choice and a label of each of some messages."""
    rows = []
    for number in range(count):
        every = [{"text": text, "model": "m", "id": f"{number}-{text}"} for text in ("left", "right")]
        says = [
            {"kind": "thumb", "of": [0], "value": 1, "rater": "ann"},
            {"kind": "comparison", "of": [0, 1], "choice": "both_bad", "rater": "ann"},
            {"kind": "label", "of": [1], "label": "unsafe", "rater": "ben"},
        ]
        row = {
            "message": str(number),
            "messages": [{"role": "user", "content": f"question {number}"}],
            "replies": every,
        }
        rows += [row | {"said": said | {"at": "2026-01-02T03:04:05.006+00:00"}} for said in says]
    return rows


@pytest.mark.parametrize("at", range(0, 12))
def test_an_import_that_ended_at_any_row_goes_on_as_if_it_had_not(
    store: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Also where rows after the end are about messages before it."""
    monkeypatch.setattr(load, "AT_ONCE", 2)
    path = write(tmp_path / "three.jsonl", conversation_of_three(4))

    def dying(rows: Any, doing: str) -> Iterator[Any]:
        for number, row in enumerate(rows):
            if doing == "importing" and number == at:
                raise KeyboardInterrupt
            yield row

    with pytest.raises(KeyboardInterrupt):
        load.import_file(store, path, watch=dying)
    build.gather(store)
    assert load.import_file(store, path) == load.Imported("nightschool", 12, {})
    whole = Database(tmp_path / "whole")
    load.import_file(whole, path)
    assert said_in(store) == said_in(whole)
    tables = ("conversations", "messages", "replies", "users", "imported_pieces")
    for table in tables:
        sql = f"SELECT count(*) AS n FROM {table}"
        assert store.row(sql) == whole.row(sql), table
    whole.close()


def test_one_that_was_killed_goes_on_and_nothing_counts_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "many.jsonl", pairs(2000))
    data = tmp_path / "data"
    kept = []
    for wait_s in (0.0, 0.02):
        process = Process("ui.cli.main:main", ("import", str(path), "--data", str(data)))
        until = time.monotonic() + 30
        while len(_imported(data)) <= (kept[-1] if kept else 0) and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(wait_s)
        process.signal(signal.SIGKILL)
        assert process.wait().returncode == -signal.SIGKILL
        kept.append(len(_imported(data)))
    assert 0 < kept[0] < 2000
    told = nightschool("doctor", "--data", str(data))
    assert "interrupted: many.jsonl" in told.stdout
    assert nightschool("import", str(path), "--data", str(data)).stdout.startswith("imported 2,000 rows (trl)")
    assert _imported(data) == list(range(2000))
    store = Database(data)
    assert (counts(store)["comparisons"], len(build.gather(store).pairs)) == (2000, 2000)
    store.close()


def _imported(data: Path) -> list[int]:
    """The rows that are on disk."""
    try:
        connection = sqlite3.connect(f"file:{data / 'nightschool.db'}?mode=ro", uri=True)
        try:
            return [row for (row,) in connection.execute("SELECT row FROM imported_rows ORDER BY row")]
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return []


def test_two_imports_at_once_are_one_after_the_other(store: Database, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(3))
    with alone(store), pytest.raises(Conflict, match="another import is running"):
        load.import_file(store, path)
    assert load.import_file(store, path).kept == 3


SAME = {"prompt": "Name a bird", "chosen": "Wren", "rejected": "Dog"}
TURNS = [{"role": "user", "content": "Name a bird"}]
AS = {
    "trl": SAME,
    "another column": SAME | {"score": 1.5},
    "conversational": {"prompt": TURNS, "chosen": [{"role": "assistant", "content": "Wren"}],
                       "rejected": [{"role": "assistant", "content": "Dog"}]},
    "implicit": {"chosen": [*TURNS, {"role": "assistant", "content": "Wren"}],
                 "rejected": [*TURNS, {"role": "assistant", "content": "Dog"}]},
    "hh": {"chosen": "\n\nHuman: Name a bird\n\nAssistant: Wren",
           "rejected": "\n\nHuman: Name a bird\n\nAssistant: Dog"},
    "arena": {"id": 1, "model_a": "m", "model_b": "n", "prompt": '["Name a bird"]', "response_a": '["Dog"]',
              "response_b": '["Wren"]', "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
}  # fmt: skip


@pytest.mark.parametrize(("first", "second"), itertools.permutations(AS, 2))
def test_the_same_comparison_in_two_files_counts_once(store: Database, tmp_path: Path, first: str, second: str) -> None:
    load.import_file(store, write(tmp_path / "first.jsonl", [AS[first]]))
    done = load.import_file(store, write(tmp_path / "second.jsonl", [AS[second]]))
    assert (done.kept, done.left_out, done.read) == (0, {load.ALREADY: 1}, 1)
    assert (counts(store)["comparisons"], len(build.gather(store).pairs)) == (1, 1)


def test_what_differs_is_another_piece(store: Database, tmp_path: Path) -> None:
    said = conversation_of_three(1)[0]
    different = [
        said,
        said | {"messages": [{"role": "user", "content": "another"}]},
        said | {"said": said["said"] | {"value": -1}},
        said | {"said": said["said"] | {"rater": "ben"}},
        said | {"said": said["said"] | {"rater": "Ann"}},
        said | {"said": said["said"] | {"of": [1]}},
        said | {"messages": [{"role": "system", "content": "x"}, *said["messages"]]},
    ]
    for number, row in enumerate(different):
        assert load.import_file(store, write(tmp_path / f"{number}.jsonl", [row])).kept == 1
    alike = [said | {"said": said["said"] | {"words": "because", "at": "2026-01-01"}}, said | {"message": "9"}]
    for number, row in enumerate(alike):
        assert load.import_file(store, write(tmp_path / f"alike-{number}.jsonl", [row])).kept == 0
    assert counts(store)["votes"] == len(different)


def test_a_file_that_says_a_thing_twice_says_it_twice_and_a_repaired_one_adds_what_is_new(
    store: Database, tmp_path: Path
) -> None:
    """Two people without a name may agree; the n-th time in one file is the n-th time in another."""
    assert load.import_file(store, write(tmp_path / "a.jsonl", [SAME, SAME, *pairs(3)])).kept == 5
    repaired = [*pairs(5, note="repaired"), SAME, SAME, SAME]
    done = load.import_file(store, write(tmp_path / "b.jsonl", repaired))
    assert (done.kept, done.left_out) == (3, {load.ALREADY: 5})
    again = load.import_file(
        store, write(tmp_path / "c.jsonl", [*repaired, {"prompt": "x", "chosen": "", "rejected": "b"}])
    )
    assert (again.kept, again.left_out) == (0, {load.ALREADY: 8, "an empty reply": 1})
    assert counts(store)["comparisons"] == 8


def test_what_an_older_version_imported_is_known_too(store: Database, tmp_path: Path) -> None:
    load.import_file(store, write(tmp_path / "a.jsonl", conversation_of_three(3)))
    load.import_file(store, write(tmp_path / "b.jsonl", [*pairs(5), SAME]))
    ours = store.rows("SELECT * FROM imported_pieces ORDER BY key")
    as_left_by_0_2(store)
    done = load.import_file(store, write(tmp_path / "c.jsonl", [*pairs(7), SAME, SAME]))
    assert (done.kept, done.left_out) == (3, {load.ALREADY: 6})
    sql = "SELECT * FROM imported_pieces WHERE import < 3 ORDER BY key"
    assert store.rows(sql) == ours


def as_left_by_0_2(store: Database, ended: bool = True) -> None:
    """What imports of this version left, as the one before would have left it."""
    with store.transaction() as db:
        db.conn.execute("DELETE FROM imported_pieces")
        db.conn.execute("UPDATE imports SET next_row = NULL")
        if not ended:
            db.conn.execute("UPDATE imports SET ended_at = NULL, kept = 0, left_out = '{}'")


def half_left_by_0_2(store: Database, tmp_path: Path) -> tuple[Path, Path]:
    """An import that failed at row 6 of 10, where a value was not a number; and the file repaired."""
    rows = pairs(10, score=1.5)
    rows[6]["score"] = float("nan")
    whole, half = write(tmp_path / "nan.jsonl", rows), write(tmp_path / "half.jsonl", rows[:6])
    load.import_file(store, half)
    with store.transaction() as db:
        _, sha256 = facts(whole)
        db.conn.execute("UPDATE imports SET name = 'nan.jsonl', sha256 = ?", (sha256,))
    as_left_by_0_2(store, ended=False)
    rows[6]["score"] = 1.5
    return whole, write(tmp_path / "repaired.jsonl", rows)


@pytest.mark.parametrize("which", ["the same file", "the repaired file", "the repaired file, then the same"])
def test_half_an_import_of_an_older_version_goes_on_and_nothing_counts_twice(
    store: Database, tmp_path: Path, which: str
) -> None:
    whole, repaired = half_left_by_0_2(store, tmp_path)
    assert len(build.gather(store).pairs) == 6
    assert "interrupted: nan.jsonl (import 1, 6 rows kept)" in finding(store, "imports").words
    if "repaired" in which:
        assert load.import_file(store, repaired).kept == 4
    if "same" in which:
        load.import_file(store, whole)
        assert finding(store, "imports").well
    assert (counts(store)["comparisons"], len(build.gather(store).pairs)) == (10, 10)


def finding(store: Database, name: str) -> health.Finding:
    return next(each for each in health.examine(store) if each.name == name)


def test_doctor_removes_half_an_import_which_may_then_begin_anew(store: Database, tmp_path: Path) -> None:
    whole, _ = half_left_by_0_2(store, tmp_path)
    store.close()
    done = nightschool("doctor", "--mend", "--data", str(store.data))
    assert "removed the 6 rows that the import of nan.jsonl left" in done.stderr
    opened = Database(store.data)
    assert finding(opened, "imports").well
    assert (len(build.gather(opened)), said_in(opened)) == (0, [])
    assert load.import_file(opened, whole).kept == 10
    assert len(build.gather(opened).pairs) == 10
    opened.close()


def test_doctor_leaves_an_import_alone_that_runs(store: Database, tmp_path: Path) -> None:
    half_left_by_0_2(store, tmp_path)
    with alone(store):
        assert finding(store, "imports").words.startswith("running")
        with pytest.raises(Conflict):
            health.mend(store)
    assert len(build.gather(store).pairs) == 6


def test_a_ledger_with_halves_of_characters_teaches_and_exports_and_doctor_mends_it(
    store: Database, tmp_path: Path
) -> None:
    """An older version let them in, in a model's name and in other columns."""
    rows = [{"prompt": "Name a bird", "response": "Wren", "thumb": 1, "model": "m", "note": "🦉"}]
    load.import_file(store, write(tmp_path / "a.jsonl", rows))
    with store.transaction() as db:
        db.conn.execute("UPDATE replies SET sampling = ?", (json.dumps({"model": HALF}),))
        db.conn.execute("UPDATE imported_rows SET extra = ?", (json.dumps({"note": HALF, HALF: "🦉"}),))
    for name in ("trl-unpaired", "nightschool", "open-webui"):
        export.export_file(store, tmp_path / f"{name}.jsonl", FORMATS[name], Counter())
    (row,) = files.read(tmp_path / "trl-unpaired.jsonl")
    assert isinstance(row, dict)
    assert (row["note"], row["cut \ufffd"]) == ("cut \ufffd", "🦉")
    (thumb,) = build.gather(store).thumbs
    assert thumb.answer.text == "Wren"
    assert "2 hold half of a character" in finding(store, "texts").words
    assert health.mend(store) == ["mended 1 texts in replies", "mended 1 texts in imported_rows"]
    assert (finding(store, "texts").well, health.mend(store)) == (True, [])
    assert json.loads(store.rows("SELECT extra FROM imported_rows")[0]["extra"]) == row_extra(row)
    assert store.rows("SELECT json_extract(sampling, '$.model') AS model FROM replies") == [{"model": "cut \ufffd"}]


def row_extra(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("prompt", "completion", "label")}


def test_personal_fields_are_not_kept_unless_asked_for_and_never_leave(store: Database, tmp_path: Path) -> None:
    rows = pairs(1, **PERSONAL, contact="ada@example.org", meta=[{"E-Mail": "x", "lang": "en"}])
    done = load.import_file(store, write(tmp_path / "a.jsonl", rows))
    assert done.without == {"personal": 4}
    assert b"example.org" not in whole_file(store)
    assert said_in_format(store, "trl")[0].keys() == {"prompt", "chosen", "rejected", "score", "meta"}

    kept = Database(tmp_path / "kept")
    done = load.import_file(kept, tmp_path / "a.jsonl", keep_personal=True)
    assert done.without == {}
    assert b"ada@example.org" in whole_file(kept)
    assert said_in_format(kept, "trl") == said_in_format(store, "trl")
    kept.close()


def said_in_format(store: Database, name: str) -> list[dict[str, Any]]:
    return list(export.rows(store, FORMATS[name], Counter()))


def whole_file(store: Database) -> bytes:
    store.checkpoint()
    return b"".join(each.read_bytes() for each in store.data.glob("nightschool.db*"))


def test_a_rater_whose_name_is_an_address_is_kept_under_another(store: Database, tmp_path: Path) -> None:
    rows = conversation_of_three(2)
    rows = [row | {"said": row["said"] | {"rater": f"{row['said']['rater']}@example.org"}} for row in rows]
    load.import_file(store, write(tmp_path / "a.jsonl", rows))
    assert b"example.org" not in whole_file(store)
    named = {row["said"]["rater"] for row in said_in(store)}
    assert len(named) == 2
    assert all(each.startswith("address-") for each in named)


def test_forgetting_an_imported_rater_removes_all_of_theirs_and_nothing_of_others(
    store: Database, tmp_path: Path
) -> None:
    rows = []
    for number, rater in enumerate(["ann", "ann", "ben"]):
        row = conversation_of_three(1)[1]
        row |= {"message": str(number), "messages": [{"role": "user", "content": f"secret of {rater} {number}"}]}
        row["said"] |= {"rater": rater, "words": f"words of {rater}"}
        rows.append(row | {"snapshot": f"chat of {rater}", "message": str(number)})
    rows.append(rows[1] | {"said": rows[1]["said"] | {"rater": "ben", "words": "ben, too"}, "snapshot": "of both"})
    load.import_file(store, write(tmp_path / "a.jsonl", rows), keep_personal=True)
    ann = users.find_user(store, "import 1: ann")
    assert ann is not None
    done = privacy.forget(store, ann)
    assert (done.conversations, done.ratings) == (1, 2)
    contents = whole_file(store)
    for gone in (b"secret of ann 0", b"words of ann", b"chat of ann", b"import 1: ann"):
        assert gone not in contents, gone
    for left in (
        b"secret of ann 1",
        b"secret of ben 2",
        b"words of ben",
        b"chat of ben",
    ):  # ben rated one of ann's, too
        assert left in contents, left
    assert {row["said"]["rater"] for row in said_in(store)} == {"ben"}
    # What she said does not come back with a repaired file.
    done_again = load.import_file(store, write(tmp_path / "b.jsonl", [row | {"note": 1} for row in rows]))
    assert done_again.left_out == {load.ALREADY: 4}


def test_forgetting_a_whole_import_takes_its_raters_along_and_the_file_may_come_again(
    store: Database, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", conversation_of_three(2))
    load.import_file(store, path)
    load.import_file(store, write(tmp_path / "b.jsonl", pairs(2)))
    whole = users.find_user(store, "import 1")
    assert whole is not None
    assert privacy.forget(store, whole).ratings == 6
    assert b"import 1: ann" not in whole_file(store)
    assert len(said_in(store)) == 2
    assert load.import_file(store, path).kept == 6
    assert len(said_in(store)) == 8


def test_a_file_of_which_nothing_could_be_read_ends_with_1_and_one_that_is_known_with_0(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    write(tmp_path / "bad.jsonl", [{"prompt": "x", "chosen": "", "rejected": "b"}] * 3)
    done = nightschool("import", str(tmp_path / "bad.jsonl"), "--data", data)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no row of" in done.stderr
    write(tmp_path / "good.jsonl", pairs(3, name="Ada"))
    told = nightschool("import", str(tmp_path / "good.jsonl"), "--data", data).stdout
    assert told == "imported 3 rows (trl); left out 3 values (personal: 3)\n"
    write(tmp_path / "same.jsonl", pairs(3))
    done = nightschool("import", str(tmp_path / "same.jsonl"), "--data", data)
    assert (done.returncode, done.stdout) == (0, "imported 0 rows (trl); left out 3 (said by an earlier file: 3)\n")
    refused(nightschool("import", str(tmp_path / "same.jsonl"), "--data", data), "was imported already")


def test_a_file_whose_name_is_no_text_is_imported(store: Database, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    assert load.import_file(store, write(path, pairs(2))).kept == 2
    assert store.rows("SELECT name FROM imports") == [{"name": "caf\ufffd.jsonl"}]


def test_progress_is_shown_with_the_number_of_rows_to_come(store: Database, tmp_path: Path) -> None:
    seen = {}

    def watch(rows: Any, doing: str) -> Any:
        seen[doing] = len(rows) if hasattr(rows, "__len__") else None
        return rows

    load.import_file(store, write(tmp_path / "a.jsonl", pairs(7)), watch=watch)
    assert seen == {"reading": None, "importing": 7}
