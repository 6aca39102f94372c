"""Command-line handling shared by all programs: the data and model options, exit statuses, one-sentence errors.

Imports nothing heavy, so that help and completion are fast.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem, shell_complete

from feedback.database.private_files import keep_private
from feedback.errors import Refused

PROGRAM = "nightschool"
COMPLETE = "_NIGHTSCHOOL_COMPLETE"  # set by the shell when it asks for completions
REFUSED, INTERRUPTED = 2, 130
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def run(command: click.Command, arguments: Sequence[str] | None = None, name: str = PROGRAM) -> int:
    """Run a command and return its exit status: the command's own, 2 after a one-sentence error, 130 if interrupted."""
    keep_private()
    if asked := os.environ.get(COMPLETE):
        return shell_complete(command, {}, name, COMPLETE, asked)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        require_text(arguments)
        with command.make_context(name, list(arguments), **SETTINGS) as context:
            status = command.invoke(context)
        sys.stdout.flush()
        return int(status or 0)
    except click.exceptions.Exit as end:  # after --help
        return end.exit_code
    except click.ClickException as error:
        print(f"nightschool: {in_one_sentence(error, called(command, name, arguments))}", file=sys.stderr)
        return REFUSED
    except Refused as error:
        print(f"nightschool: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:  # the reader of our output has closed the pipe
        sys.stdout = None
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        name = shortened(str(error.filename))
        print(f"nightschool: cannot use {name!r}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED


def require_text(arguments: Sequence[str]) -> None:
    """Raise `Refused` on bytes that are no UTF-8, which Python reads as lone surrogates and nothing can keep."""
    for each in arguments:
        if not each.isprintable():
            try:
                each.encode()
            except UnicodeEncodeError:
                raise Refused(f"{shortened(each)!r} is not UTF-8; type it in UTF-8, or rename the file") from None


def shortened(text: str, most: int = 80) -> str:
    """A text as a sentence shows it: its beginning, if it is long."""
    return text if len(text) <= most else f"{text[:most]}..."


def called(command: click.Command, name: str, arguments: Sequence[str]) -> str:
    """The full name of the command that a command line calls, as far as it can be recognised."""
    for word in arguments:
        if isinstance(command, click.Group) and word in command.commands:
            command, name = command.commands[word], f"{name} {word}"
    return name


def in_one_sentence(error: click.ClickException, name: str) -> str:
    """A command-line error as one sentence, with similar words and the help command to run."""
    near = getattr(error, "possibilities", None)
    words = " ".join((error.message if near else error.format_message()).split()).rstrip(".")
    if near:
        words += f" (did you mean {' or '.join(map(repr, near))}?)"
    context = getattr(error, "ctx", None)  # click sets none when an option lacks its value
    way_out = f"see {context.command_path if context else name} --help"
    return f"{words[:1].lower()}{words[1:]}{' ' if words.endswith('?') else '; '}{way_out}"


class Place(click.Path):
    """A path as typed; the command itself validates it. The shell completes it as a file or a folder."""

    def __init__(self, kind: str) -> None:
        super().__init__(readable=False, path_type=Path)
        self.kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type=self.kind)]


FILE, FOLDER = Place("file"), Place("dir")


def here_or_before(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """An option's value, whether it was typed after the command's name or before it."""
    assert option.name is not None
    at: click.Context | None = context
    while at and at.get_parameter_source(option.name) is not ParameterSource.COMMANDLINE:
        at = at.parent
    return value if at in (None, context) else at.params[option.name]


data_option = click.option(
    "--data",
    type=FOLDER,
    default="data",
    envvar="NIGHTSCHOOL_DATA",
    show_default=True,
    show_envvar=True,
    callback=here_or_before,
    metavar="DIR",
    help="The data folder.",
)
model_option = click.option(
    "--model",
    default="embedded",
    show_default=True,
    callback=here_or_before,
    help="The base model: embedded, a directory, or a hub id.",
)
