"""The command line: `nightschool`.

Bad input gets one sentence and exit status 2, and changes nothing.
"""

from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import get_completion_class

from assistant import command_line
from assistant.command_line import COMPLETE, PROGRAM, data_option, model_option
from ui.cli import adapters, chat, data, programs, raters, schedule, settings, status, users
from ui.cli.command import InOrder

COMMANDS = (
    *(programs.serve, chat.chat, programs.night, programs.rehearse),
    *(status.status, adapters.adapters, adapters.promote, adapters.rollback, schedule.schedule, settings.set_),
    *(raters.raters, raters.leaderboard),
    *(data.import_, data.export, data.backup, data.restore, data.forget, data.doctor),
    users.user,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    return command_line.run(nightschool, arguments)


def show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the installed version and end."""
    from importlib.metadata import PackageNotFoundError, version

    if wanted and not context.resilient_parsing:
        try:
            print(f"nightschool {version('nightschool')}")
        except PackageNotFoundError:
            print("nightschool, run from its source without being installed")
        context.exit()


@click.group(PROGRAM, cls=InOrder, no_args_is_help=False, help="A chat assistant that goes to school every night.")
@data_option
@model_option
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Print the version."
)
def nightschool(**_: Any) -> None:
    """The group of every command; they look up here the options typed before their names."""


@click.command("completion", epilog='In bash: eval "$(nightschool completion bash)", best in ~/.bashrc.')
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")), help="The shell it is for.")
def completion(shell: str) -> None:
    """Print the script that completes for a shell."""
    script = get_completion_class(shell)
    assert script is not None
    print(script(nightschool, {}, PROGRAM, COMPLETE).source())


for each in (*COMMANDS, completion):
    nightschool.add_command(each)
