"""The command line: `nightschool`.

Bad input is one sentence and exit status 2, and changes nothing. Serving and training are programs of their own,
started from here, so that nothing in this package imports them.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from assistant.environment import prepare, program
from feedback.accounts import users
from feedback.database.database import Database
from feedback.database.private_files import keep_private
from feedback.errors import Refused
from feedback.kinds import tally
from feedback.records import adapters, nights, settings
from feedback.upkeep import schedules
from ui.cli import ledger_command, user_command
from ui.cli.ledger_command import existing, show

PROGRAMS = {  # commands that are programs with options of their own
    "serve": "ui.app",
    "night": "training.night",
    "schedule": "ui.cli.schedule_command",
    "rehearse": "training.rehearsal.run",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    keep_private()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in PROGRAMS:
        sys.stdout.flush()
        os.execv(sys.executable, program(PROGRAMS[arguments[0]], *arguments[1:]))
    options = parser().parse_args(arguments)
    try:
        with adapters.at_terminal():
            return options.run(options) or 0
    except Refused as error:
        print(f"nightschool: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has enough
        sys.stdout = None
        return 0


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    top = argparse.ArgumentParser(prog="nightschool", description="A chat assistant that goes to school every night.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("serve", help="serve the chat page and the HTTP API (serve --help)")
    commands.add_parser("night", help="train now on what people said (night --help)")
    commands.add_parser("schedule", help="show, or change, when nights start (schedule --help)")
    commands.add_parser("rehearse", help="see on the spot that feedback changes behaviour (rehearse --help)")

    def command(name: str, run: Any, words: str, reads: bool = False) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=words, description=words)
        added.add_argument("--data", type=Path, default=default_data(), metavar="DIR", help="the data folder")
        if reads:
            added.add_argument("--json", action="store_true", help="print JSON")
        added.set_defaults(run=run)
        return added

    chat = command("chat", run_chat, "chat in this terminal")
    add_model(chat)
    chat.add_argument("--temperature", type=float, default=0.7)
    chat.add_argument("--max-tokens", type=int, default=512)
    command("adapters", run_adapters, "list the adapters, newest first", reads=True)
    promote = command("promote", run_promote, "let an adapter (or 'base') serve")
    promote.add_argument("adapter", metavar="ID")
    rollback = command("rollback", run_rollback, "let what served before serve again")
    for each in (promote, rollback):
        add_model(each)
        each.add_argument("--reason", default="by hand, from the command line")
    command("status", run_status, "what serves, what runs, what was said", reads=True)
    setting = command("set", run_set, "show the settings, or change one", reads=True)
    setting.add_argument("name", nargs="?", metavar="NAME")
    setting.add_argument("value", nargs="?", metavar="VALUE")
    ledger_command.add(command)
    user_command.add(command)
    return top


def add_model(command: argparse.ArgumentParser) -> None:
    """The option that names the base model."""
    command.add_argument("--model", default="embedded", help="embedded, a directory, or a hub id")


def default_data() -> Path:
    """The data folder where none is named."""
    return Path(os.environ.get("NIGHTSCHOOL_DATA", "data"))


def run_chat(options: argparse.Namespace) -> None:
    """`nightschool chat`."""
    prepare(options.model)
    from assistant.chat.chat import open_assistant
    from assistant.engine.sampling.params import Sampling
    from ui.cli import terminal

    sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens)
    store = Database(options.data)
    terminal.sure_of_utf8()
    assistant = open_assistant(store, options.model)
    try:
        terminal.chat(assistant, users.local_owner(store), sampling)
    finally:
        assistant.close()
        store.close()


def run_adapters(options: argparse.Namespace) -> None:
    """`nightschool adapters`."""
    store = existing(options.data)
    serving = adapters.serving(store)
    found = adapters.adapters(store)
    facts = [asdict(each) | {"serving": each.id == serving} for each in found]
    mark = {serving: "*"}
    lines = [
        f"{mark.get(each.id, ' ')} {each.id}  {each.created_at[:16]}  {each.method}  {each.verdict}: {each.reason}"
        for each in found
    ]
    show(options, facts, [*lines, f"{mark.get(None, ' ')} base"])


def run_promote(options: argparse.Namespace) -> None:
    """`nightschool promote ID`."""
    store = existing(options.data)
    name = None if options.adapter == adapters.BASE else options.adapter
    promote(store, options, name)


def run_rollback(options: argparse.Namespace) -> None:
    """`nightschool rollback`."""
    store = existing(options.data)
    promote(store, options, adapters.before_serving(store))


def promote(store: Database, options: argparse.Namespace, name: str | None) -> None:
    """Prove and promote, and say what serves now."""
    adapters.require_promotable(store, name)  # before anything heavy is loaded
    prepare(options.model)
    from assistant.chat.adapter_manager import prove_and_promote

    proof = prove_and_promote(store, options.model, name, None, options.reason)
    if proof:
        print(f"proved: {proof.from_trainer:.1g} nats a token from the trainer, {proof.from_base:.2g} from the base")
    print(f"{name or 'the base'} serves from now on")


def run_status(options: argparse.Namespace) -> None:
    """`nightschool status`."""
    store = existing(options.data)
    from ui.schedule.processes import running_night

    running = running_night(store)
    last = nights.nights(store, 1)
    standing = schedules.schedule(store)
    facts = {
        "serving": adapters.serving(store),
        "feedback": tally.counts(store),
        "night": asdict(running) if running else None,
        "last_night": asdict(last[0]) if last else None,
        "schedule": asdict(standing) if standing else None,
    }
    lines = [f"serving    {facts['serving'] or 'the base'}"]
    lines += [f"feedback   {', '.join(f'{count} {kind}' for kind, count in tally.counts(store).items())}"]
    if running:
        eta = f", about {running.eta_s / 60:.0f} min left" if running.eta_s else ""
        lines += [f"night {running.id}    {running.phase}, step {running.step} of {running.steps}{eta}"]
        steps = nights.night_steps(store, running.id)
        lines += (
            ["           " + "  ".join(f"{name} {value:.4g}" for name, value in steps[-1].items())] if steps else []
        )
    elif last:
        lines += [f"night {last[0].id}    {last[0].state}: {last[0].reason}"]
    else:
        lines += ["night      none yet; start one with: nightschool night"]
    show(options, facts, lines)


def run_set(options: argparse.Namespace) -> None:
    """`nightschool set [NAME [VALUE]]`."""
    store = existing(options.data)
    if options.name and options.value is not None:
        settings.set_setting(store, None, options.name, value_typed(options.name, options.value))
    facts = {options.name: settings.setting(store, options.name)} if options.name else settings.all_settings(store)
    lines = [f"{name} = {json.dumps(value)}" for name, value in facts.items()]
    show(options, facts, lines if options.name else [line_of(*each) for each in zip(facts, lines, strict=True)])


def value_typed(name: str, text: str) -> Any:
    """A setting's value as typed: JSON, or the bare word where it is one of some words. Raises `Refused`."""
    declared = settings.SETTINGS.get(name)
    if declared and declared.choices and text in declared.choices:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        way_out = "a value is a number, true, false or a quoted text"
        raise Refused(f"{name} cannot be {text!r}; {way_out}") from None


def line_of(name: str, line: str) -> str:
    """A setting with what it means."""
    declared = settings.SETTINGS[name]
    of = f" One of: {', '.join(declared.choices)}." if declared.choices else ""
    return f"{line:<32}{declared.help}{of}"


if __name__ == "__main__":
    sys.exit(main())
