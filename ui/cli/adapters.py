"""`nightschool adapters`, `promote` and `rollback`: list the adapters, and change which one serves."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from assistant.command_line import data_option, model_option
from assistant.environment import prepare
from ui.cli.command import Command, existing, json_option, show

if TYPE_CHECKING:
    from feedback.database.database import Database

reason_option = click.option(
    "--reason", default="by hand, from the command line", show_default=True, help="The reason, kept with the promotion."
)


@click.command("adapters", cls=Command)
@data_option
@json_option
def adapters(data: Path, as_json: bool) -> None:
    """List the adapters, newest first; * serves."""
    from feedback.records.adapters import adapters, serving

    with existing(data) as store:
        at_work, found = serving(store), adapters(store)
    facts = [asdict(each) | {"serving": each.id == at_work} for each in found]
    mark = {at_work: "*"}
    lines = [
        f"{mark.get(each.id, ' ')} {each.id}  {each.created_at[:16]}  {each.method}  {each.verdict}: {each.reason}"
        for each in found
    ]
    show(as_json, facts, [*lines, f"{mark.get(None, ' ')} base"])


@click.command("promote", cls=Command)
@click.argument("adapter", metavar="ID", help="The adapter, or 'base'.")
@data_option
@model_option
@reason_option
def promote(adapter: str, data: Path, model: str, reason: str) -> None:
    """Promote an adapter, or 'base'. It serves from the next message on."""
    from feedback.records.adapters import BASE

    with existing(data) as store:
        serve_from_now_on(store, model, None if adapter == BASE else adapter, reason)


@click.command("rollback", cls=Command)
@data_option
@model_option
@reason_option
def rollback(data: Path, model: str, reason: str) -> None:
    """Roll back to what served before."""
    from feedback.records.adapters import before_serving

    with existing(data) as store:
        serve_from_now_on(store, model, before_serving(store), reason)


def serve_from_now_on(store: "Database", model: str, name: str | None, reason: str) -> None:
    """Prove and promote an adapter, and print what serves now."""
    from feedback.records.adapters import require_promotable

    require_promotable(store, name)  # before anything heavy is loaded
    prepare(model)
    from assistant.chat.adapter_manager import prove_and_promote

    proof = prove_and_promote(store, model, name, None, reason)
    if proof:
        print(f"proved: {proof.from_trainer:.1g} nats a token from the trainer, {proof.from_base:.2g} from the base")
    print(f"{name or 'the base'} serves from now on")
