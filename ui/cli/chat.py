"""`nightschool chat`: chat in a terminal."""

from pathlib import Path

import click

from assistant.command_line import data_option, model_option
from assistant.environment import prepare
from ui.cli.command import Command, new_or_existing


@click.command("chat", cls=Command)
@data_option
@model_option
@click.option("--temperature", default=0.7, show_default=True, help="0 always takes the likeliest token.")
@click.option("--max-tokens", default=512, show_default=True, help="The longest reply, in tokens.")
def chat(data: Path, model: str, temperature: float, max_tokens: int) -> None:
    """Chat in this terminal."""
    prepare(model)
    from assistant.chat.assistant import open_assistant
    from assistant.engine.sampling.params import Sampling
    from feedback.accounts import users
    from ui.cli import terminal

    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    with new_or_existing(data) as store:
        terminal.sure_of_utf8()
        assistant = open_assistant(store, model)
        try:
            terminal.chat(assistant, users.local_owner(store), sampling)
        finally:
            assistant.close()
