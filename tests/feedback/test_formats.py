"""Every format: out, in and out again is the same file; others' loaders take it; real files come in whole."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.errors import Conflict, NotFound, Refused
from feedback.examples import build
from feedback.formats import export, files, load
from feedback.formats.registry import FORMATS, format_of, writable
from feedback.kinds.comparison import compare
from feedback.kinds.correction import correct
from feedback.kinds.critique import critique
from feedback.kinds.label import label
from feedback.kinds.ranking import rank
from feedback.kinds.tally import counts
from feedback.kinds.vote import DOWN, NONE, UP, vote
from feedback.messages import Message
from tests.conftest import BY_BASE
from tests.helpers.commands import as_process, nightschool, refused

SUFFIX = {"arena": ".csv", "open-webui": ".json"}


def replies_to(store: Database, user: User, messages: list[Message], *texts: str) -> list[str]:
    parent = conversations.record_messages(store, user, "chat", messages)
    return [conversations.add_reply(store, parent, text, BY_BASE) for text in texts]


@pytest.fixture
def said(store: Database, consenting: User) -> Database:
    """A ledger in which two people said something of every kind, in words that formats find hard."""
    with store.transaction():
        say_everything(store, consenting)
    return store


def say_everything(store: Database, consenting: User) -> None:
    ada = users.add_user(store, "ada", "rater", None)
    users.set_consent(store, ada, True)
    talks = [
        [Message("user", 'One, "two"; three?\n\nFour — ünïcode 🦉')],
        [Message("user", "And?"), Message("assistant", " Well,\n"), Message("user", "go on")],
        [Message("system", "Be kind."), Message("user", "Who are you?")],
    ]
    for number, messages in enumerate(talks):
        for user in (consenting, ada):
            left, right, third = replies_to(store, user, messages, f"Yes, {number}.\n", f"no, {user.name}", "  maybe ")
            compare(store, user, left, right, ("left", "right", "tie")[number], number + 1, "since so", ["style"])
            compare(store, user, left, third, ("both_bad", "cannot_tell", "left")[number])
            rank(store, user, [left, right, third], [(1, 2, 2), (3, 1, 2), (5, 1, 9)][number], all_wrong=number == 1)
            vote(store, user, left, UP, ["untrue", "other"][: number or 1], "hm")
            vote(store, user, right, DOWN)
            correct(store, user, right, f"No, thank you, {number}.")
            critique(store, user, third, "Too vague; say which.")
            label(store, user, left, "demonstration")
            label(store, user, right, "custom:rude")
            vote(store, user, third, UP)
            vote(store, user, third, NONE)  # taken back


def exported(store: Database, name: str, path: Path) -> tuple[bytes, Counter[str]]:
    left_out: Counter[str] = Counter()
    files.write(path, export.rows(store, FORMATS[name], left_out))
    return path.read_bytes(), left_out


@pytest.mark.parametrize("name", writable())
def test_out_in_and_out_again_is_the_same_file(said: Database, tmp_path: Path, name: str) -> None:
    suffix = SUFFIX.get(name, ".jsonl")
    first, left_out = exported(said, name, tmp_path / f"first{suffix}")
    assert len(first.splitlines()) > 1
    again = Database(tmp_path / "again")
    done = load.import_file(again, tmp_path / f"first{suffix}", source="here", licence="CC0")
    assert (done.format, done.left_out) == (name, {})
    second, _ = exported(again, name, tmp_path / f"second{suffix}")
    if name == "nightschool":  # the second says besides where it comes from
        rows = [json.loads(line) for line in second.splitlines()]
        assert {json.dumps(row.pop("imported")) for row in rows} == {
            json.dumps({"name": "first.jsonl", "format": name, "source": "here", "licence": "CC0"})
        }
        second = "".join(files.as_line(row) for row in rows).encode()
        assert left_out == {"taken back": 6}
    assert second == first
    again.close()


def bare(value: Any) -> Any:
    """A row without its fields that are None."""
    if isinstance(value, dict):
        return {name: bare(each) for name, each in value.items() if each is not None}
    return [bare(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", [name for name in writable() if name != "arena"])
def test_parquet_holds_the_same(said: Database, tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    plain, _ = exported(said, name, tmp_path / "rows.jsonl")
    exported(said, name, tmp_path / "rows.parquet")
    store = Database(tmp_path / "again")
    load.import_file(store, tmp_path / "rows.parquet")
    again, _ = exported(store, name, tmp_path / "again.jsonl")
    rows = [json.loads(line) for line in again.splitlines()]
    for row in rows:
        row.pop("imported", None)
    # A column holds no difference between nothing and no field.
    assert list(map(bare, rows)) == [bare(json.loads(line)) for line in plain.splitlines()]
    store.close()


def test_nothing_of_what_was_said_is_lost_in_the_ledgers_own_format(said: Database, tmp_path: Path) -> None:
    exported(said, "nightschool", tmp_path / "all.jsonl")
    again = Database(tmp_path / "again")
    load.import_file(again, tmp_path / "all.jsonl")
    ours, theirs = build.gather(said), build.gather(again)
    assert [(pair.messages, pair.chosen.text, pair.rejected.text, pair.kind) for pair in theirs.pairs] == [
        (pair.messages, pair.chosen.text, pair.rejected.text, pair.kind) for pair in ours.pairs
    ]
    assert [(thumb.messages, thumb.answer.text, thumb.wanted) for thumb in theirs.thumbs] == [
        (thumb.messages, thumb.answer.text, thumb.wanted) for thumb in ours.thumbs
    ]
    assert {pair.by for pair in theirs.pairs} == {"imported"}
    again.close()


@pytest.mark.parametrize("name", writable())
def test_datasets_loads_the_folder(said: Database, tmp_path: Path, name: str) -> None:
    datasets = pytest.importorskip("datasets")
    card = {"format": name, "words": FORMATS[name].words, "licence": "cc0-1.0", "at": "today"}
    count = files.write_folder(tmp_path / "set", export.rows(said, FORMATS[name], Counter()), card)
    loaded = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == count > 0
    assert "SHA-256" in (tmp_path / "set" / "README.md").read_text()
    importing_again = Database(tmp_path / "again")
    assert load.import_file(importing_again, tmp_path / "set", name).kept == count
    importing_again.close()


@pytest.mark.parametrize("name", ["trl", "trl-implicit", "trl-unpaired", "sft"])
def test_trl_takes_the_rows(said: Database, tmp_path: Path, name: str) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from assistant.models.base_model import EMBEDDED, find_base, load_tokenizer

    exported(said, name, tmp_path / "rows.jsonl")
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert trl.is_conversational(loaded[0])
    fields = {"trl": {"prompt", "chosen", "rejected"}, "trl-unpaired": {"prompt", "completion", "label"}}
    if name == "trl-implicit":
        loaded = loaded.map(trl.extract_prompt)
    if name != "sft":
        assert set(loaded.column_names) >= fields.get(name, fields["trl"])
    tokenizer = load_tokenizer(find_base(EMBEDDED))
    templated = trl.apply_chat_template(dict(loaded[0]), tokenizer)
    assert all(isinstance(text, str | bool) for text in templated.values())


def test_real_files_come_in_with_every_drop_explained(shared_data: Path, tmp_path: Path) -> None:
    expected = {
        "pairs_harmless_test": ("trl", 364),
        "pairs_helpful_test": ("trl", 923),
        "raters_tulu": ("votes", 1079),
        "raters_pandalm": ("votes", 999),
        "raters_dices350": ("safety", 350),
        "thumbs": ("trl-unpaired", 2293),
        "critiques": ("critiques", 1120),
        "instructions": ("sft", 3000),
        "prompts_mt_bench": ("prompts", 80),
        "prompts_xstest": ("prompts", 450),
        "sycophancy": ("prompts", 500),
    }
    store = Database(tmp_path / "data")
    unexplained = Counter[str]()
    for file, (name, rows) in expected.items():
        done = load.import_file(store, shared_data / f"{file}.jsonl", source=file, licence="see the file")
        assert (file, done.format, done.kept + sum(done.left_out.values())) == (file, name, rows)
        unexplained += Counter({f"{file} {why}": n for why, n in done.left_out.items() if why.startswith("not as")})
        if name not in ("prompts", "critiques"):
            assert done.read >= 0.9 * rows, done  # some thumbs are of raters who say the same in another file
    assert unexplained == {}
    assert store.rows("PRAGMA foreign_key_check") == []
    assert len(build.gather(store).pairs) > 1500
    store.close()


def test_imported_rows_are_told_from_what_people_said_here(said: Database, tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "chosen": "a", "rejected": "b", "id": 7, "split": "x"}]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    load.import_file(said, tmp_path / "more.jsonl", source="elsewhere", licence="MIT")
    (pair,) = [pair for pair in build.gather(said).pairs if pair.by == "imported"]
    assert pair.chosen.text == "a"
    assert not users.has_accounts(said)
    (row,) = said.rows("SELECT i.source, i.licence, r.extra, c.source AS kind FROM imported_rows r JOIN imports i"
                       " ON i.id = r.import JOIN conversations c ON c.id = r.conversation")  # fmt: skip
    assert (row["source"], row["licence"], row["kind"]) == ("elsewhere", "MIT", "import")
    assert json.loads(row["extra"]) == {"id": 7, "split": "x"}
    with pytest.raises(Conflict, match="imported already"):
        load.import_file(said, tmp_path / "more.jsonl")


def test_an_import_that_was_killed_goes_on_where_it_was(
    store: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(50)]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(load, "AT_ONCE", 8)
    passes = 0

    def dying(found: Any, doing: str) -> Any:
        for number, row in enumerate(found):
            if doing == "importing" and number == 30:
                raise KeyboardInterrupt
            yield row

    with pytest.raises(KeyboardInterrupt):
        load.import_file(store, tmp_path / "many.jsonl", watch=dying)
    passes = counts(store)["comparisons"]
    assert 0 < passes < 50
    assert load.import_file(store, tmp_path / "many.jsonl").kept == 50
    prompts = [pair.messages[0].content for pair in build.gather(store).pairs]
    assert prompts == [f"question {n}" for n in range(50)]


@pytest.mark.parametrize(
    ("name", "contents", "says"),
    [
        ("a.jsonl", '{"prompt": "x", "chosen": "a", "rejected": "b"}\n{broken', "line 2 of a.jsonl is no JSON"),
        ("a.jsonl", "[1]\n", "row 1 of a.jsonl is no object"),
        ("a.jsonl", "", "holds no row"),
        ("a.jsonl", '{"colour": 1}', "no format known here has rows with colour"),
        ("a.json", '{\n"prompt": 1}', "is neither a list of rows nor JSON Lines"),
        ("a.txt", "x", "ends in none of"),
        ("a.parquet", "PAR0", "is no Parquet file"),
        ("a.csv", "id,winner_model_a\n1,2,3\n", "more or fewer fields"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence_and_changes_nothing(
    store: Database, tmp_path: Path, name: str, contents: str, says: str
) -> None:
    (tmp_path / name).write_text(contents)
    with pytest.raises(Refused, match=says):
        load.import_file(store, tmp_path / name)
    assert store.rows("SELECT * FROM imports") == []
    with pytest.raises(NotFound):
        load.import_file(store, tmp_path / "none.jsonl")


def test_rows_that_cannot_be_kept_are_counted_by_reason(store: Database, tmp_path: Path) -> None:
    good = {"prompt": "x", "chosen": "a", "rejected": "b"}
    bad = [{"chosen": ""}, {"rejected": 3}, {"prompt": []}, {"prompt": [{"role": "elf", "content": "x"}]}]
    bad += [{"chosen": "x" * 200_000}, {"rejected": "\ud800"}, {"prompt": None}]
    rows = [good, *({**good, **each} for each in bad)]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = load.import_file(store, tmp_path / "mixed.jsonl")
    assert (done.kept, sum(done.left_out.values())) == (1, len(bad))
    assert not any(reason.startswith("not as") for reason in done.left_out)


def test_a_row_of_each_format_is_known_by_its_fields(said: Database) -> None:
    for name in writable():
        row = next(iter(export.rows(said, FORMATS[name], Counter())))
        assert format_of(row).name == name


def test_only_what_may_be_used_leaves_and_ones_own_words_always(said: Database, consenting: User) -> None:
    everything = list(export.rows(said, FORMATS["nightschool"], Counter()))
    users.set_consent(said, consenting, False)
    left_out: Counter[str] = Counter()
    remaining = list(export.rows(said, FORMATS["nightschool"], left_out))
    assert len(remaining) * 2 == len(everything)
    assert left_out["no consent"] > 0
    mine = list(export.rows(said, FORMATS["nightschool"], Counter(), consenting))
    assert len(mine) * 2 == len(everything)
    assert {row["said"]["rater"] for row in mine} == {f"rater-{consenting.id}"}


def test_the_commands_import_and_export(said: Database, tmp_path: Path) -> None:
    data, out = str(said.data), str(tmp_path / "out.jsonl")
    done = as_process("export", out, "--format", "trl", "--data", data)
    assert done.stdout.startswith("exported "), done.stderr
    assert "left out" in done.stdout
    came = nightschool("import", out, "--data", str(tmp_path / "new"), "--source", "there", "--licence", "MIT")
    assert came.stdout.startswith("imported "), came.stderr
    refused(nightschool("import", out, "--data", str(tmp_path / "new")), "imported already")
    refused(nightschool("export", out, "--format", "votes", "--data", data), "is for import only")
    refused(nightschool("export", out, "--user", "nobody", "--data", data), "there is no user 'nobody'")
