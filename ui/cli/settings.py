"""`nightschool set`: show and change the settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from assistant.command_line import data_option
from feedback.errors import Refused
from ui.cli.command import Command, Word, existing, json_option, show


def names() -> Sequence[str]:
    """The names of the settings."""
    from feedback.records.settings import SETTINGS

    return list(SETTINGS)


@click.command("set", cls=Command)
@click.argument("name", required=False, type=Word(names), metavar="[NAME]", help="The setting's name.")
@click.argument("value", required=False, help="Its new value.")
@data_option
@json_option
def set_(name: str | None, value: str | None, data: Path, as_json: bool) -> None:
    """Show the settings, or change one."""
    from feedback.records import settings

    with existing(data) as store:
        if name and value is not None:
            settings.set_setting(store, None, name, value_typed(name, value))
        facts = {name: settings.setting(store, name)} if name else settings.all_settings(store)
    lines = [f"{each} = {json.dumps(standing)}" for each, standing in facts.items()]
    show(as_json, facts, lines if name else [line_of(*each) for each in zip(facts, lines, strict=True)])


def value_typed(name: str, text: str) -> Any:
    """A setting's value as typed: JSON, or the bare word if it is one of the setting's choices. Raises `Refused`."""
    from feedback.records.settings import SETTINGS

    declared = SETTINGS.get(name)
    if declared and declared.choices and text in declared.choices:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        way_out = "a value is a number, true, false or a quoted text"
        raise Refused(f"{name} cannot be {text!r}; {way_out}") from None


def line_of(name: str, line: str) -> str:
    """A setting with its meaning and its choices."""
    from feedback.records.settings import SETTINGS

    declared = SETTINGS[name]
    of = f" One of: {', '.join(declared.choices)}." if declared.choices else ""
    return f"{line:<32}{declared.help}{of}"
