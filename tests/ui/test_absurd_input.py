"""Every option of every command, and every field of the operators' API, with values that nobody can mean.

The answer is one sentence of ours, never Python's words; and what was refused has changed nothing.
"""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from fastapi.testclient import TestClient

from assistant.models.base_model import Base
from feedback.accounts import users
from feedback.database.database import Database
from tests.conftest import two_replies
from tests.helpers import nights
from tests.helpers.commands import nightschool
from tests.helpers.over_http import assistant, key, loaded, web
from tests.helpers.over_http import rows as counted
from tests.helpers.processes import Done
from tests.ui.test_cli import OWN
from training.night.night import command as night
from training.rehearsal import run as rehearsal

__all__ = ["assistant", "loaded", "web"]  # fixtures
LONGEST = 2000  # characters of a sentence
PYTHONS = re.compile(r"Traceback|\b[A-Za-z]*(Error|Exception)\b|<class|object at 0x|Errno|NoneType")
NUMBERS = ["99999999999999999999", "-1", "1e300", "nan", "inf"]
ABSURD = [*NUMBERS, "", "x" * 100_000, "a\nb", "\udcff", "../../..", "/dev/null", "{'a': 1}", "☃", "9" * 5000]
STARTS = ("serve", "chat")  # they would go on for ever with what they can use: a model that is not there ends them
ACCOUNT = "ada"


def fine(done: Done, typed: Sequence[str]) -> None:
    """A command ended well, or with one sentence."""
    said = (typed[:6], done.returncode, done.stderr[-400:])
    assert done.returncode in (0, 1, 2), said
    assert not PYTHONS.search(done.stderr.replace("x" * 1000, "")), said
    if done.returncode:
        assert done.stderr.startswith("nightschool: ") or done.returncode == 1, said
        assert done.stderr.count("\n") <= 1, said


def typed_for(path: tuple[str, ...], command: click.Command, file: Path) -> dict[str, list[str]]:
    """What each argument of a command is given where another one is tried, by name."""
    words = {"file": str(file), "out": str(file.with_name("out.jsonl")), "folder": str(file.with_name("copy"))}
    words |= {"adapter": "no-such-adapter", "name": ACCOUNT, "user": ACCOUNT, "shell": "bash", "role": "rater"}
    if path == ("set",):
        words = {"name": "gate", "value": "on"}
    return {each.name or "": [words[each.name or ""]] for each in command.params if isinstance(each, click.Argument)}


def lines(path: tuple[str, ...], command: click.Command, data: Path, file: Path, values: Sequence[str]) -> Any:
    """Every command line that has one absurd value in it."""
    given = typed_for(path, command, file)
    model = ["--model", "no-such-model"] if path[-1:] and path[-1] in STARTS else []
    for each, value in itertools.product(command.params, values):
        if isinstance(each, click.Option) and (each.is_flag or each.name == "data"):
            continue
        before = [word for name, words in given.items() for word in ([value] if name == each.name else words)]
        option = [each.opts[-1], value] if isinstance(each, click.Option) else []
        yield [*path, "--data", str(data), *model, *option, "--", *before]


def places() -> list[Any]:
    """The commands that take anything at all."""
    taking = [(path, each) for path, each in OWN if path and not isinstance(each, click.Group)]
    return [pytest.param(path, each, id=" ".join(path)) for path, each in taking if path[0] != "completion"]


@pytest.fixture
def prepared(store: Database, tmp_path: Path) -> Path:
    """A data folder with a rater and something said, and beside it a file to import."""
    users.add_user(store, ACCOUNT, "rater", None)
    two_replies(store, users.local_owner(store))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hello", "chosen": "good day", "rejected": "go away"}\n')
    return tmp_path / "rows.jsonl"


def tried(path: tuple[str, ...], command: click.Command, store: Database, file: Path, values: Sequence[str]) -> None:
    for typed in lines(path, command, store.data, file, values):
        done = nightschool(*typed, said="a fine password of mine\n")
        fine(done, typed)


@pytest.mark.parametrize(("path", "command"), places())
def test_a_command_with_an_absurd_value(store: Database, prepared: Path, path, command) -> None:
    tried(path, command, store, prepared, ["99999999999999999999", "\udcff", "x" * 5000])


@pytest.mark.soak
@pytest.mark.parametrize(("path", "command"), places())
def test_a_command_with_every_absurd_value(store: Database, prepared: Path, path, command) -> None:
    tried(path, command, store, prepared, ABSURD)


@pytest.mark.parametrize("value", ["\udcff", "a\nb", "x" * 5000, "/dev/null"])
@pytest.mark.parametrize("path", [("status",), ("import", "x"), ("user", "list"), ("backup", "y"), ("night",)])
def test_a_data_folder_that_cannot_be(tmp_path: Path, monkeypatch, tiny: Base, path, value) -> None:
    monkeypatch.chdir(tmp_path)
    if path == ("night",):
        done = nights.run(Path(value), tiny.name, "--dry-run")
    else:
        done = nightschool(*path, "--data", value)
    fine(done, [*path, value])


def options_of(command: click.Command) -> Iterator[click.Option]:
    for each in command.params:
        if isinstance(each, click.Option) and not each.is_flag and each.name != "data":
            yield each


def test_a_night_with_absurd_options(tmp_path: Path, tiny: Base) -> None:
    absurd = [*NUMBERS, "x" * 5000, "\udcff", "a=b=c", "seed=", "=1"]
    for option, value in itertools.product(options_of(night), absurd):
        done = nights.run(tmp_path, tiny.name, "--dry-run", option.opts[0], value)
        fine(done, [option.opts[0], value])
        assert done.returncode == 2, (option.name, value, done)


def test_a_rehearsal_with_absurd_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").write_text("so that no rehearsal can begin here")
    for option, value in itertools.product(
        options_of(rehearsal.command), [*NUMBERS, "x" * 5000, "\udcff", "/dev/null"]
    ):
        status = rehearsal.main(["--data", str(tmp_path), option.opts[0], value])
        said = capsys.readouterr()
        fine(Done(status, said.out, said.err), [option.opts[0], value])
        assert status == 2
        if option.name not in ("model", "json"):
            assert "holds something already" not in said.err, (option.name, value)  # refused for what it is


# The operators' API


ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/api/nights", {"method": "auto", "again": False}),
    ("POST", "/api/promotions", {"adapter": "no-such", "reason": "because", "instead_of": "no-such"}),
    (
        "PUT",
        "/api/schedule",
        {"cron": "", "time_zone": "UTC", "enabled": False, "grace_minutes": 60, "every_new": None},
    ),
]
NO_VALUES = [10**20, -(10**20), 10**400, -1, 1e300, True, "", "x" * 100_000, "\x00", "\ud800", [], [[1]], {}, {"a": {}}]


@pytest.mark.parametrize(("verb", "route", "body"), ROUTES)
def test_an_operators_route_with_absurd_values(web: TestClient, store: Database, verb, route, body) -> None:
    users.local_owner(store)  # whom the first request makes
    before = counted(store)
    for field, value in itertools.product(body, NO_VALUES):
        if (field, value) in (("again", True), ("enabled", True), ("cron", "")):
            continue  # these are no absurdities
        headers = key() | {"Content-Type": "application/json"}
        answer = web.request(verb, route, content=json.dumps(body | {field: value}), headers=headers)
        assert 400 <= answer.status_code < 500, (field, str(value)[:40], answer.status_code, answer.text[:300])
        sentence = answer.json()["error"]
        assert not PYTHONS.search(sentence), (field, sentence)
        assert len(sentence) < LONGEST
        assert "\n" not in sentence
    assert {name: count for name, count in counted(store).items() if before[name] != count} == {}


@pytest.mark.parametrize("number", ["0", "-1", "99999999999999999999", "1e300", "nan", "x" * 5000, "%00", "☃"])
def test_a_night_that_cannot_be_is_not_there(web: TestClient, number: str) -> None:
    for verb in ("GET", "DELETE"):
        answer = web.request(verb, f"/api/nights/{number}", headers=key())
        assert 400 <= answer.status_code < 500, (verb, answer.text[:300])
        assert not PYTHONS.search(answer.json()["error"]), answer.text[:300]
