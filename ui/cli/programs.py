"""The commands that are whole programs: the server, and those of `training`, which nothing in `ui` imports."""

import os
import shlex
import subprocess
import sys
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from assistant.command_line import COMPLETE
from assistant.environment import program
from ui.serve_options import ServeOptions, serve_command


class Program(click.Command):
    """A command that replaces its process by another program, which parses the arguments and prints the help itself."""

    def __init__(self, name: str, module: str, words: str) -> None:
        super().__init__(name, short_help=words, add_help_option=False)
        self.module = module

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = args
        return args

    def invoke(self, ctx: click.Context) -> Any:
        sys.stdout.flush()
        os.execv(sys.executable, program(self.module, *typed_before(ctx), *ctx.args))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        words = ["nightschool", *ctx.args, incomplete]
        asked = {COMPLETE: "zsh_complete", "COMP_WORDS": shlex.join(words), "COMP_CWORD": str(len(words) - 1)}
        command = program(self.module)
        done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        found = zip(lines[::3], lines[1::3], lines[2::3], strict=False)  # as click writes them for zsh
        return [CompletionItem(value, kind, None if words == "_" else words) for kind, value, words in found]


def typed_before(context: click.Context) -> list[str]:
    """The options that were typed before the command's name."""
    before = context.parent
    assert before is not None
    typed = [each for each in before.params if before.get_parameter_source(each) is ParameterSource.COMMANDLINE]
    return [text for name in typed for text in (f"--{name}", str(before.params[name]))]


night = Program("night", "training.night", "Train now on people's feedback.")
rehearse = Program("rehearse", "training.rehearsal.run", "Show on the spot that feedback changes behaviour.")


def start(options: ServeOptions) -> int:
    """Import the server, which is slow, and run it."""
    from ui import app

    return app.start(options)


serve = serve_command(start)
