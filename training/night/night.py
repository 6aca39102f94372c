"""`nightschool night` (`python -m training.night`): from people's feedback to an adapter that may be promoted.

A night is a process of its own, so its memory is freed at the end and a crash does not affect chats. It updates its row
as it goes. If it is killed at any moment, it resumes when it is started again; until its last write there is nothing
new to serve.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from assistant import command_line
from assistant.environment import prepare
from feedback import plugins, process_lock
from feedback.accounts import users
from feedback.database.database import Database, now
from feedback.errors import Refused
from feedback.examples.build import gather
from feedback.records import audit, methods, nights, settings
from feedback.upkeep import privacy, schedules
from training.night.signals import Cancellation, Cancelled

if TYPE_CHECKING:  # these import torch, which must wait until `NightCommand` has prepared the environment
    from assistant.models.base_model import Base
    from training.night.learning import Work
    from training.night.plan.stages import Wishes

DONE, FAILED, CANCELLED = 0, 1, 3  # 2: bad input
STAGES = ("start_from", "reference")  # settings that have options of their own

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one night; returns the exit status: 0 done or nothing to do, 1 failed, 2 bad input, 3 cancelled."""
    return command_line.run(command, arguments, "nightschool night")


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@command_line.model_option
def only_model(model: str) -> str:
    """The model that a command line names, all else ignored."""
    return model


class NightCommand(click.Command):
    """A command whose options include plug-ins' methods, so plug-ins are imported before the arguments are parsed."""

    def make_context(self, info_name: str | None, args: list[str], *others: Any, **more: Any) -> click.Context:
        prepare(only_model.make_context(info_name, list(args), resilient_parsing=True).params["model"])
        plugins.load()
        (option,) = (each for each in self.params if each.name == "method")
        assert isinstance(option, click.Option)
        option.type = click.Choice(list(methods.FACTS))
        words = "; ".join(f"{name}: {each.help}" for name, each in methods.FACTS.items())
        option.help = f"{words} (default: by the setting night_method; {methods.DEFAULT} with --set)."
        return super().make_context(info_name, args, *others, **more)


@click.command("night", cls=NightCommand, help="Train now on people's feedback.")
@command_line.data_option
@command_line.model_option
@click.option("--method")
@click.option("--set", multiple=True, metavar="NAME=VALUE", help="A setting, e.g. epochs=1; repeatable.")
@click.option("--from", "start_from", metavar="ADAPTER", help="The same as --set start_from=ADAPTER.")
@click.option("--reference", metavar="ADAPTER", help="The same as --set reference=ADAPTER.")
@click.option("--settings", is_flag=True, help="List the settings of the method, and do nothing.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--again", is_flag=True, help="Train even if nothing is new since the last night.")
@click.option("--fresh", is_flag=True, help="Do not resume an interrupted night.")
@click.option("--log", type=click.Choice(("tensorboard", "trackio")), help="Also log the steps there.")
@click.option("--asked-by", metavar="WHO", hidden=True)  # set by servers: "clock", or a person's id
@click.option(
    "--gate",
    type=click.Choice(list(settings.GATE)),
    help=f"{'; '.join(f'{name}: {words}' for name, words in settings.GATE.items())} (default: the setting 'gate').",
)
def command(**asked: Any) -> int:
    """Run a night with the options of the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if hasattr(os, "nice"):
        os.nice(10)  # chats come first
    try:
        return run(SimpleNamespace(**asked))
    except Cancelled:  # before a night had begun
        return CANCELLED


def run(options: SimpleNamespace) -> int:
    """Run one night from the first step to the last."""
    from assistant.models import base_model
    from training.algorithms import registry
    from training.loop import distributed, limits
    from training.loop.config import in_lines
    from training.night import tracking
    from training.night.learning import share

    # 1. check what was asked for
    if options.settings:
        method = registry.find(options.method or methods.DEFAULT)
        print(f"settings of {method.name}:", *in_lines(method.config), sep="\n  ")
        return DONE
    tracking.require_log(options.log or "")
    if not distributed.is_first():
        return DONE if share(options.data) else FAILED
    with distributed.leading():
        store = Database(options.data)
        require_asker(store, options.asked_by)
        wishes = wished(options, settings.setting(store, "night_method"))
        base = base_model.find_base(options.model)
        if wishes.method:
            limits.require_possible(base, registry.find(wishes.method).config(**wishes.settings), wishes.settings)
        return dry_run(store, base, wishes) if options.dry_run else whole_night(store, base, wishes, options)


def wished(options: SimpleNamespace, usual: str) -> "Wishes":
    """What the command line asks for; where it names no method, the `usual` one, `methods.PLAN` or a method's name.

    Settings are of a method: those of no named one are of `methods.DEFAULT`. Raises `Refused` on bad ones.
    """
    from training.algorithms import registry
    from training.loop import distributed
    from training.night.plan.stages import Wishes

    told = [*options.set, *(f"{each}={told}" for each in STAGES if (told := getattr(options, each)) is not None)]
    asked = options.method or (usual if usual != methods.PLAN else methods.DEFAULT if told else None)
    if asked is None:
        return Wishes(None, {}, options.fresh)
    if distributed.count() > 1 and not registry.find(asked).distributed:
        *others, last = (name for name, each in registry.every().items() if each.distributed)
        raise Refused(f"{asked} is for one process; several share the batches of {', '.join(others)} and {last}")
    return Wishes(asked, registry.parse_settings(asked, told), options.fresh)


def require_asker(store: Database, asked_by: str | None) -> None:
    """Raise `Refused` unless a night is asked for by nobody, the clock, or the number of a person."""
    if asked_by and asked_by not in (schedules.CLOCK, *(str(each.id) for each in users.users(store))):
        raise Refused(f"--asked-by is {schedules.CLOCK!r} or the number of a person, not {asked_by[:40]!r}")


def whole_night(store: Database, base: "Base", wishes: "Wishes", options: SimpleNamespace) -> int:
    """Run the steps from 2 on, in the process that reads and writes the ledger."""
    from training.night import resume, run_dir
    from training.night.learning import Work

    cancellation = Cancellation()
    with alone(store):
        # 2. resume an interrupted night, or close it
        with cancellation.held():
            saved = resume.go_on(store, base, gather(store), wishes)
            if saved:
                write_down_who(store, saved[0], options, resumed=True)
            run_dir.tidy(store.data, keep=saved[0] if saved else None)

        # 3. otherwise begin a new one, if there is something to learn
        with cancellation.held(longer=True):
            work = Work(*saved) if saved else begin(store, base, wishes, options)
            if work is None:
                return DONE
            work = replace(work, gate=options.gate or settings.setting(store, "gate"), log=options.log or "")

        # 4. to 10. train, judge, and record the outcome
        status = taught(store, base, work, cancellation)
        run_dir.tidy(store.data, keep=None)
        return status


@contextmanager
def alone(store: Database) -> Iterator[None]:
    """Hold the lock that allows one night at a time on a data folder. Raises `Conflict` while another one runs."""
    with process_lock.alone(store.data / "night.lock", "a night is running already; wait for it, or cancel it"):
        yield


def dry_run(store: Database, base: "Base", wishes: "Wishes") -> int:
    """Print what a night would do."""
    from training.night.plan import planner, report

    plan, examples = planner.make_plan(store, base, wishes)
    print(*report.lines(store, plan, examples), sep="\n")
    return DONE


def begin(store: Database, base: "Base", wishes: "Wishes", options: SimpleNamespace) -> "Work | None":
    """Begin a new night with its examples saved; None, with a row that says why, if there is nothing to learn."""
    from training.night import run_dir
    from training.night.learning import Work
    from training.night.plan import planner
    from training.night.plan.reasons import in_words
    from training.night.plan.stages import earlier_nights

    began = now()
    privacy.expire(store)
    plan, examples = planner.make_plan(store, base, wishes, settle=True)
    with store.transaction():
        night = nights.start_night(store, plan.method, planner.recorded_settings(plan), os.getpid(), began)
        write_down_who(store, night, options)
        counts, sha256 = examples.counts(), examples.sha256
        nights.update_night(store, night, counts=counts, data_sha256=sha256, phase="examples", reason=plan.why)
        nights.record_people(store, night, examples.people())
        for earlier in earlier_nights(store, plan):
            nights.inherit_people(store, night, earlier)
        reason = planner.why_nothing(store, examples, plan, options.again)
        if reason:
            end(store, night, "nothing", reason)
            return None
    run_dir.save_plan(run_dir.folder(store.data, night), plan, examples)
    for told in filter(None, (in_words(examples), plan.why)):
        print(f"night {night}: {told}", flush=True)
    return Work(night, plan, examples)


def write_down_who(store: Database, night: int, options: SimpleNamespace, resumed: bool = False) -> None:
    """Write an audit row of who started a night and how; not for the clock, which keeps a record of its own."""
    if options.asked_by == schedules.CLOCK:
        return
    told = {"again": options.again, "resumed": resumed, "gate": options.gate, "settings": ", ".join(options.set)}
    detail = {"method": nights.night(store, night).method} | {name: value for name, value in told.items() if value}
    with nullcontext() if options.asked_by else audit.at_terminal():
        user = int(options.asked_by) if options.asked_by else None
        audit.record(store, user, "start night", str(night), detail)


def taught(store: Database, base: "Base", work: "Work", cancellation: Cancellation) -> int:
    """Run steps 4 to 10, record any outcome, and return the exit status."""
    from training.data.tokenize import NothingFits
    from training.loop.optim import NotFinite
    from training.night.pipeline import run_pipeline
    from training.rollouts.sampler import Collapsed
    from training.rollouts.sign_check import SignFlipped

    try:
        with cancellation.held():
            nights.update_night(store, work.night, pid=os.getpid(), phase="loading")
        print(f"night {work.night}: done: {run_pipeline(store, base, work, cancellation)}", flush=True)
        return DONE
    except Cancelled:
        cancellation.too_late()
        if cancellation.typed:
            with audit.at_terminal():
                audit.record(store, None, "cancel night", str(work.night))
        end(store, work.night, "cancelled", "cancelled; nothing of it is kept")
        return CANCELLED
    except NothingFits as error:
        cancellation.too_late()
        end(store, work.night, "nothing", str(error))
        return DONE
    except (NotFinite, SignFlipped, Collapsed, Refused) as error:
        reason = str(error)
    except Exception as error:
        log.exception("night %s failed", work.night)
        reason = why_failed(error)
    cancellation.too_late()
    end(store, work.night, "failed", reason, to=sys.stderr)
    return FAILED


def why_failed(error: Exception) -> str:
    """An error that nobody foresaw, in words for the night's record."""
    from assistant.models.base_model import one_line
    from training.loop.optim import out_of_memory

    if out_of_memory(error):
        return "the memory of this machine was not enough; lower max_length or rank, or free some"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot use {str(error.filename or 'a file')!r}: {error.strerror.lower()}"
    return f"something went wrong in the program ({one_line(error)}); the night's log has the trace"


def end(store: Database, night: int, state: str, reason: str, to: Any = None) -> None:
    """Record and print the end of a night that made no adapter."""
    nights.end_night(store, night, state, reason)
    print(f"night {night}: {state}: {reason}", file=to, flush=True)


if __name__ == "__main__":
    sys.exit(main())
