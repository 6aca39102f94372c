"""Shared parts of the commands: the account for the audit trail, opening the database, and output."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from assistant.command_line import here_or_before
from feedback.errors import NotFound

if TYPE_CHECKING:  # heavy: a command imports what it needs when it runs
    from feedback.database.database import Database

json_option = click.option("--json", "as_json", is_flag=True, callback=here_or_before, help="Print JSON.")


class Command(click.Command):
    """A command whose actions are audited under the operating system's account that typed it."""

    def invoke(self, ctx: click.Context) -> Any:
        from feedback.records import audit

        with audit.at_terminal():
            return super().invoke(ctx)


class InOrder(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class Word(click.ParamType):
    """A choice of words that are looked up only when needed; the command itself refuses any other word."""

    name = "word"

    def __init__(self, words: Callable[[], Sequence[str]]) -> None:
        self.words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(self.words())}]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(each) for each in self.words() if each.startswith(incomplete)]


@contextmanager
def new_or_existing(data: Path) -> Iterator["Database"]:
    """Open the database of a data folder, and create it if there is none."""
    from feedback.database.database import Database

    store = Database(data)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def existing(data: Path) -> Iterator["Database"]:
    """Open the database of a data folder. Raises `NotFound` if there is none."""
    if not (data / "nightschool.db").is_file():
        raise NotFound(f"there is no Nightschool data in {data}; start one with: nightschool serve --data {data}")
    with new_or_existing(data) as store:
        yield store


def show(as_json: bool, facts: Any, lines: Sequence[str]) -> None:
    """Print facts as JSON if asked to, else as lines."""
    print(json.dumps(facts, indent=1) if as_json else "\n".join(lines))
