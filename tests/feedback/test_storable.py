"""Any row whatever is kept in a form that the ledger can hold, or left out with a counted reason."""

import json
import math
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedback.database.database import Database
from feedback.examples import build
from feedback.formats import export, files, load
from feedback.formats.record import Annotation, Record, Reply
from feedback.formats.registry import FORMATS, writable
from feedback.formats.storable import DEEPEST, Storing, is_address, is_personal, json_form
from feedback.messages import Message
from feedback.upkeep import health

GOOD = {"prompt": "Name a bird", "chosen": "Wren", "rejected": "Dog"}
THUMB = {
    "message": "1",
    "messages": [{"role": "user", "content": "hi"}],
    "replies": [{"text": "a", "model": "base", "id": "2"}, {"text": "b", "model": "", "id": "3"}],
    "said": {"kind": "thumb", "of": [0], "value": 1, "rater": "r", "at": "2026-01-01T00:00:00.000+00:00"},
}
FAST = settings(deadline=None, suppress_health_check=list(HealthCheck))

texts = st.text(st.characters(), max_size=8)  # halves of characters, too
scalars = st.none() | st.booleans() | st.integers() | st.integers(-(10**30), 10**30) | st.floats() | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "elf"]), "content": values | texts}),
    max_size=3,
)
FIELDS = sorted(
    {name for each in FORMATS.values() for row in each.rows for name in (row.fields + " " + row.perhaps).split()}
)
rows = st.dictionaries(st.sampled_from(FIELDS) | texts, values | turns | texts, max_size=8)


RIGHT: dict[str, dict[str, Any]] = {  # a row of each format that only reads
    "votes": {"prompt": "hi", "response_a": "a", "response_b": "b", "model_a": "m",
              "votes": [{"rater": "r", "vote": "a", "strength": 2, "comment": "c", "a_acceptable": "yes"}]},
    "safety": {"context": "USER: hi", "response": "a", "safe_votes": ["No", "Yes", "Unsure"]},
    "critiques": {"prompt": "hi", "response": "a", "critique": "c", "revision": "b"},
    "prompts": {"turns": ["hi"]},
}  # fmt: skip
SAID = {
    "comparison": Annotation("comparison", (0, 1), "r", choice="left", strength=2),
    "ranking": Annotation("ranking", (0, 1), "r", ranks=(1, 2)),
    "thumb": Annotation("thumb", (0,), "r", value=1, reasons=("untrue",)),
    "demonstration": Annotation("label", (0,), "r", label="demonstration"),
    "everything": Annotation("thumb", (0,), "r", "2026-01-02", value=1, words="w"),
}


def right(name: str) -> dict[str, Any]:
    """A row as a format has it, with another column."""
    form = FORMATS[name]
    if form.write is None:
        return RIGHT[name] | {"score": 1.5}
    said = next(each for kind, each in SAID.items() if kind in form.kinds)
    replies = (Reply("a", "m", "1"), Reply("b", "n", "2"))
    messages = (Message("user", "hi"), Message("assistant", "hello"), Message("user", "so?"))
    one_turn = name == "ultrafeedback"
    return form.write(Record(messages[2:] if one_turn else messages, replies, (said,), message="3"), 1) | {"score": 1.5}


def near(row: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Rows that are as one that is right but for some field, at any depth."""

    def changed(value: Any) -> st.SearchStrategy[Any]:
        same = st.just(value)
        if isinstance(value, dict):
            inner = st.fixed_dictionaries({name: changed(each) for name, each in value.items()})
            return inner | st.builds(lambda one, more: one | more, inner, st.dictionaries(texts, values, max_size=2))
        if isinstance(value, list):
            return (
                st.tuples(*map(changed, value)).map(list) | st.lists(changed(value[0]), max_size=3) if value else same
            )
        return st.integers(0, 24).flatmap(lambda number: same if number else values | texts)

    return changed(row)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(FAST, max_examples=12)
def test_any_row_is_storable_or_has_a_reason(name: str, data: st.DataObject) -> None:
    raw = data.draw(near(right(name)) | rows)
    row = load.row_or_reason(raw, FORMATS[name], Storing(str))
    if isinstance(row, str):
        assert 0 < len(row) < 80
    else:
        plain = json.dumps([row.extra, [vars(each) for each in row.said]], ensure_ascii=False, allow_nan=False)
        plain.encode()


@given(data=st.data())
@settings(FAST, max_examples=2)
def test_files_of_any_rows_end_with_every_row_kept_or_counted(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_files(data, tmp_path_factory.mktemp("any"))


@pytest.mark.soak
@given(data=st.data())
@settings(FAST, max_examples=300)
def test_files_of_any_rows_end_so_for_long(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    check_files(data, tmp_path_factory.mktemp("any"))


def check_files(data: st.DataObject, folder: Path) -> None:
    """Import a file of every format into one ledger."""
    store = Database(folder / "data")
    for name in FORMATS:
        some = data.draw(st.lists(near(right(name)) | rows, min_size=1, max_size=3), name)
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in [*some, {"file": name}]))
        done = load.import_file(store, folder / f"{name}.jsonl", name)
        assert done.kept + sum(done.left_out.values()) == len(some) + 1
    usable_in_full(store, folder)
    store.close()


def usable_in_full(store: Database, folder: Path) -> None:
    """What the ledger holds can be gathered, exported in every format, and found well."""
    build.gather(store)
    for each in writable():
        export.export_file(store, folder / "out.jsonl", FORMATS[each], Counter())
    assert [each for each in health.examine(store) if not each.well and each.name != "disk"] == []


ODD: dict[str, tuple[Any, Any]] = {
    "not a number": (math.nan, None),
    "infinity": (-math.inf, None),
    "timestamp": (datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "2026-01-02T03:04:05.000006+00:00"),
    "date": (date(2026, 1, 2), "2026-01-02"),
    "time": (time(3, 4), "03:04:00"),
    "duration": (timedelta(days=1), "1 day, 0:00:00"),
    "decimal": (Decimal("0.10"), "0.10"),
    "half of a character": ("cut \ud83d", "cut \ufffd"),
    "a key with half of a character": ({"cut \ud83d": 1}, {"cut \ufffd": 1}),
    "a key that is a number": ({1: "a"}, {"1": "a"}),
    "more than 64 bits": (2**64, str(2**64)),
    "within 64 bits": (-(2**63), -(2**63)),
    "numpy's number": (numpy.float32(0.5), 0.5),
    "numpy's array": (numpy.array([[1, 2]]), [[1, 2]]),
    "numpy's not a time": (numpy.datetime64("NaT"), None),
    "uuid": (UUID(int=7), str(UUID(int=7))),
    "tuple": ((1, math.nan), [1, None]),
}
LEFT_OUT = {
    "bytes": (b"\xff", "bytes"),
    "an object": (object(), "no value of JSON"),
    "a number of 10,000 digits": (10**10_000, "too large a number"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_value_has_the_form_that_json_has_for_it(name: str) -> None:
    value, stored = ODD[name]
    assert json_form({"odd": value}, without := Counter()) == {"odd": stored}
    assert without == {}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_value_without_such_a_form_is_left_out_and_counted(name: str) -> None:
    value, reason = LEFT_OUT[name]
    assert json_form({"odd": value, "list": [value, 1]}, without := Counter()) == {"list": [None, 1]}
    assert without == {reason: 2}


def test_what_is_nested_too_deeply_is_left_out_and_counted() -> None:
    deep: Any = 1
    for _ in range(5 * DEEPEST):
        deep = [deep]
    kept = json_form({"deep": deep}, without := Counter())
    assert (json.dumps(kept).count("["), without) == (DEEPEST - 1, {"nested too deeply": 1})


def test_a_file_with_such_values_is_kept_whole(store: Database, tmp_path: Path) -> None:
    """Each made its import end in a traceback, with half of the file kept."""
    columns: dict[str, list[Any]] = {name: [f"{name} {number}" for number in range(3)] for name in GOOD}
    columns |= {
        "at": [datetime(2026, 1, 2, tzinfo=UTC)] * 3,
        "day": [date(2026, 1, 2)] * 3,
        "price": [Decimal("1.50")] * 3,
        "image": [{"bytes": b"\x89PNG", "path": "a.png"}] * 3,
        "score": [1.5, math.nan, math.inf],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "odd.parquet")
    done = load.import_file(store, tmp_path / "odd.parquet")
    assert (done.kept, done.left_out, done.without) == (3, {}, {"bytes": 3})
    extra = [json.loads(row["extra"]) for row in store.rows("SELECT extra FROM imported_rows ORDER BY row")]
    assert [each["score"] for each in extra] == [1.5, None, None]
    assert extra[0] | {"score": 0} == {
        "at": "2026-01-02T00:00:00+00:00",
        "day": "2026-01-02",
        "price": "1.50",
        "image": {"path": "a.png"},
        "score": 0,
    }
    usable_in_full(store, tmp_path)


WRONG: dict[str, dict[str, Any]] = {
    "at is a list": {"at": [1]},
    "at is no time": {"at": "yesterday"},
    "rater is an object": {"rater": {"id": 1}},
    "rater is a list": {"rater": ["a"]},
    "words are a number": {"words": 3},
    "words hold half of a character": {"words": "\ud83d"},
    "value is true": {"value": True},
    "value is text": {"value": "1"},
    "of is text": {"of": "0"},
    "of is beyond the replies": {"of": [2]},
    "of is negative": {"of": [-1]},
    "strength is true": {"kind": "comparison", "of": [0, 1], "choice": "left", "strength": True},
    "strength is beyond": {"kind": "comparison", "of": [0, 1], "choice": "left", "strength": 6},
    "ranks are no whole numbers": {"kind": "ranking", "of": [0, 1], "ranks": [1.5, 2]},
    "a rank is true": {"kind": "ranking", "of": [0, 1], "ranks": [True, 2]},
    "a rank is beyond 64 bits": {"kind": "ranking", "of": [0, 1], "ranks": [1, 2**63]},
    "a reason is a list": {"reasons": [[]]},
    "kind is a list": {"kind": ["thumb"]},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_feedback_is_left_out_with_a_reason(store: Database, tmp_path: Path, what: str) -> None:
    wrong = THUMB | {"said": THUMB["said"] | WRONG[what]}  # type: ignore[operator]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, (wrong, THUMB))))
    done = load.import_file(store, tmp_path / "odd.jsonl", "nightschool")
    assert (done.kept, sum(done.left_out.values())) == (1, 1)


@pytest.mark.parametrize("change", [{"role": "elf"}, {"content": {"a": 1}}, {"content": None}])
def test_a_turn_that_is_no_text_is_left_out_with_a_reason(
    store: Database, tmp_path: Path, change: dict[str, Any]
) -> None:
    wrong = THUMB | {"messages": [{"role": "user", "content": "hi"} | change]}
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, (wrong, THUMB))))
    assert load.import_file(store, tmp_path / "odd.jsonl", "nightschool").kept == 1


def test_a_line_of_brackets_is_one_row_left_out(store: Database, tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    lines = [json.dumps(GOOD), '{"a": ' + deep + "}", deep, json.dumps(GOOD | {"chosen": "Owl"})]
    (tmp_path / "deep.jsonl").write_text("\n".join(lines))
    done = load.import_file(store, tmp_path / "deep.jsonl")
    assert (done.kept, done.left_out) == (2, {"nested too deeply": 2})


def test_names_that_are_numbers_or_halves_of_characters_stay_different(store: Database, tmp_path: Path) -> None:
    raters = [7, "8", "cut \ud83d", "cut \ud83e", "Ann", "ann", "", None]
    rows = [THUMB | {"message": str(number), "said": THUMB["said"] | {"rater": each}}  # type: ignore[operator]
            for number, each in enumerate(raters)]  # fmt: skip
    (tmp_path / "names.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load.import_file(store, tmp_path / "names.jsonl").kept == len(raters)
    out = [row["said"].get("rater", "") for row in export.rows(store, FORMATS["nightschool"], Counter())]
    assert out == ["7", "8", "cut \\ud83d", "cut \\ud83e", "Ann", "ann", "", ""]
    assert len({row["user"] for row in store.rows("SELECT user FROM votes")}) == 7


@pytest.mark.parametrize("name", ["name", "Name", "e-mail", "user_email", "userName", "client_ip", "IP", "user"])
def test_a_field_that_says_who_somebody_is_is_known_by_its_name(name: str) -> None:
    assert is_personal(name)


@pytest.mark.parametrize("name", ["filename", "model_name", "prompt", "id", "user_id", "script", "users_liked"])
def test_other_fields_are_not(name: str) -> None:
    assert not is_personal(name)


def test_addresses_are_known_by_their_form() -> None:
    assert all(map(is_address, ["ada@example.org", " a.b+c@d-e.co.uk ", "192.0.2.1", "2001:db8::1"]))
    assert not any(map(is_address, ["", "1", "write to ada@example.org", "@ada", "1.2.3", "12:30"]))


def test_an_array_is_read_as_the_same_lines_are(tmp_path: Path) -> None:
    rows = [GOOD | {"score": math.inf}, GOOD | {"n": 7}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(files.read(tmp_path / "a.json")) == list(files.read(tmp_path / "a.jsonl")) == rows
