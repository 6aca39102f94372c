"""Write docs/reference from the declarations: `python scripts/reference.py`; with `--check`, fail if it is stale."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from fastapi import FastAPI

from assistant import command_line
from feedback.formats.registry import FORMATS
from feedback.kinds.base import KINDS
from feedback.records.settings import SETTINGS
from training.algorithms import registry
from training.loop.config import in_lines
from training.night.night import command as night
from training.rewards import registry as rewards
from ui import metrics, openai_errors
from ui.accounts import users
from ui.api import admin, api, feedback, settings, turns
from ui.api.openai import request, routes
from ui.cli.main import nightschool

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
WRITTEN = "<!-- Written by scripts/reference.py; edit the declarations instead. -->"


def commands() -> str:
    """The help of every command."""
    parts = ["# Commands", WRITTEN, "Bad input is one sentence on stderr and exit status 2, and changes nothing."]
    for path, each in sorted(walk(nightschool, ("nightschool",))):
        parts += [f"## {' '.join(path)}", fenced(help_of(night if path[1:] == ("night",) else each, " ".join(path)))]
    return "\n\n".join(parts)


def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The commands at the ends of a command tree, with their paths."""
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from walk(each, (*path, name))
    elif path[-1] != "rehearse":  # a program of training's own, which prints its own help
        yield path, command


def help_of(command: click.Command, name: str) -> str:
    """The output of `--help`."""
    more: dict[str, Any] = command_line.SETTINGS | {"terminal_width": 100}
    with click.Context(command, info_name=name, **more) as context:
        return command.get_help(context)


def fenced(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def operator_settings() -> str:
    """Every operator setting."""
    rows = [
        (f"`{each.name}`", each.help, "; ".join(f"`{word}`: {means}" for word, means in (each.choices or {}).items()),
         f"`{each.default}`")
        for each in SETTINGS.values()
    ]  # fmt: skip
    said = "Set by `nightschool set NAME VALUE`, on the operate page, or by `PUT /api/settings`."
    return "\n\n".join(["# Settings", WRITTEN, said, table(("name", "meaning", "values", "default"), rows)])


def methods() -> str:
    """Every training method with its settings."""
    parts = [
        "# Methods",
        WRITTEN,
        "`nightschool night --method NAME --set SETTING=VALUE`. See [the papers](../methods.md).",
    ]
    for name, each in registry.every().items():
        parts += [f"## {name}", f"{each.facts.title}. Learns from {', '.join(each.learns_from)}.",
                  fenced("\n".join(in_lines(each.config)))]  # fmt: skip
    return "\n\n".join([*parts, "## Sources of reward", *sources_of_reward()])


def sources_of_reward() -> list[str]:
    """What the setting `rewards` of on-policy methods may name."""
    said = (
        "The setting `rewards` of methods that learn from their own replies, as in "
        "`--set rewards=models=1,length:20-120=0.5`: one source or several, with weights."
    )
    rows = [
        (f"`{each.name}{':' + each.argument if each.argument else ''}`" + (" (or none)" if each.is_optional else ""),
         each.help)
        for each in rewards.every().values()
    ]  # fmt: skip
    return [said, table(("source", "score"), rows)]


def http() -> str:
    """Every route of the HTTP API."""
    app = FastAPI()
    for router in (api.router, turns.router, feedback.router(), users.router, admin.router, settings.routes(),
                   routes.router, metrics.router):  # fmt: skip
        app.include_router(router)
    rows = []
    for path, operations in app.openapi()["paths"].items():
        for verb, each in operations.items():
            said = " ".join((each.get("description") or each.get("summary") or "").split())
            rows.append((f"`{verb.upper()} {path}`", said))
    said = (
        "A running server describes bodies and answers at `/docs`. Each write under `/api` takes an `Idempotency-Key`."
    )
    return "\n\n".join(["# HTTP", WRITTEN, said, table(("route", "what it does"), rows), *like_openai()])


def like_openai() -> list[str]:
    """What /v1 takes and answers besides: the fields of its bodies, and the codes of its errors."""
    parts = ["## OpenAI's fields"]
    for path, body in (("/v1/chat/completions", request.ChatAsked), ("/v1/completions", request.TextAsked)):
        fields = [(f"`{name}`", field.description or "As OpenAI has it.") for name, field in body.model_fields.items()]
        parts += [f"`POST {path}`", table(("field", "meaning"), fields)]
    only = [
        (f"`{name}`", " or ".join(f"`{json.dumps(each)}`" for each in values)) for name, values in request.ONLY.items()
    ]
    ignored = ", ".join(f"`{each}`" for each in request.HARMLESS)
    parts += [
        f"Accepted, and of no effect: {ignored}. Accepted at these values only:",
        table(("field", "values"), only),
    ]
    codes = [
        (str(status), f"`{kind}`", f"`{code}`" if code else "") for status, (kind, code) in openai_errors.USUAL.items()
    ]
    own = sorted({*openai_errors.OWN_CODES.values(), *filter(None, openai_errors.VALIDATION.values()),
                  openai_errors.UNREADABLE, openai_errors.WRONG_VALUE, openai_errors.WRONG_TYPE})  # fmt: skip
    codes += [
        ("400, 404", f"`{openai_errors.INVALID}`", ", ".join(f"`{each}`" for each in own)),
        ("500, 503", "`server_error`", ""),
    ]
    return [*parts, "## OpenAI's errors", table(("status", "type", "code"), codes)]


def formats() -> str:
    """Every format, and every kind of feedback."""
    rows = [
        (f"`{each.name}`", each.words, ", ".join(sorted(each.kinds)) or "none", "yes" if each.write else "no")
        for each in FORMATS.values()
    ]
    kinds = [(f"`{each.table}`", each.name, each.help, "yes" if each.examples else "no") for each in KINDS.values()]
    return "\n\n".join(
        [
            "# Formats",
            WRITTEN,
            "`nightschool import FILE` tells them apart by their rows; `nightschool export OUT --format NAME` writes.",
            table(("name", "what it is", "holds", "written"), rows),
            "## Kinds of feedback",
            table(("table", "name", "what it is", "teaches"), kinds),
        ]
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([each.replace("|", "\\|") for each in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str]) -> int:
    """Write the pages; with `--check`, return 1 if one is out of date instead."""
    stale = []
    FOLDER.mkdir(exist_ok=True)
    for name, make in (("commands", commands), ("settings", operator_settings), ("methods", methods),
                       ("http", http), ("formats", formats)):  # fmt: skip
        page, text = FOLDER / f"{name}.md", make() + "\n"
        if not page.is_file() or page.read_text() != text:
            stale.append(page.name)
            if "--check" not in arguments:
                page.write_text(text)
    if stale and "--check" in arguments:
        print(f"docs/reference is out of date ({', '.join(stale)}): python scripts/reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
