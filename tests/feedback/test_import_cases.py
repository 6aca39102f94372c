"""Every case of `../shared/cases/data` is imported as `import_cases.json` says, and leaves again whole."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from feedback.database.database import Database
from feedback.formats import files
from tests.conftest import REPOSITORY
from tests.feedback.test_formats_in_the_wild import in_short, look
from tests.helpers.commands import nightschool

CASES = REPOSITORY.parent / "shared" / "cases" / "data"
EXPECTED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("import_cases.json").read_text("utf-8"))


@pytest.fixture
def cases() -> Path:
    if not CASES.is_dir():
        pytest.skip("the shared cases are not on this machine")
    return CASES


def test_every_case_has_an_expected_outcome(cases: Path) -> None:
    assert {path.name for path in cases.iterdir()} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_case_is_imported_as_expected_and_leaves_again(cases: Path, tmp_path: Path, name: str) -> None:
    expected, data = EXPECTED[name], str(tmp_path / "data")
    done = nightschool("import", str(cases / name), "--data", data, "--json")
    if "refused" in expected:
        assert (done.returncode, expected["refused"] in done.stderr) == (2, True), done
        assert done.stderr.count("\n") == 1
        return
    found = look(cases / name)
    assert [in_short(row) for row in found.rows][: len(expected["rows"]) or None] == expected["rows"]
    if not expected["kept"]:
        assert done.returncode == 1
        assert all(reason in done.stderr for reason in expected["left_out"])
        return
    assert done.returncode == 0, done
    said = json.loads(done.stdout)
    assert {key: said[key] for key in ("format", "kept", "left_out")} == {
        key: expected[key] for key in ("format", "kept", "left_out")
    }
    for form, out in (("nightschool", tmp_path / "all.jsonl"), (said["format"], tmp_path / "same.parquet")):
        assert nightschool("export", str(out), "--format", form, "--data", data).returncode == 0
        assert not any("example.org" in str(row) for row in files.read(out))
    with closing(Database(Path(data))) as store:
        assert store.rows("SELECT count(*) AS rows FROM imported_rows")[0]["rows"] == expected["kept"]
