"""A night: from what people said to an adapter that may be promoted. `python -m training.night`.

A process of its own: its memory leaves with it and its crash hurts no chat. It writes its row as it goes; killed at
any moment it goes on when it is started again, and until its last write there is nothing new to serve.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from assistant.environment import prepare
from feedback import plugins
from feedback.database.database import Database, now
from feedback.database.private_files import keep_private
from feedback.errors import Conflict, Refused
from feedback.examples.build import gather
from feedback.records import adapters, methods, nights
from feedback.upkeep import privacy, schedules
from training.night.signals import Cancellation, Cancelled

if TYPE_CHECKING:  # torch and the like come late: `main` sets the environment first
    from assistant.models.base_model import Base
    from training.night.learning import Work
    from training.night.planner import Wishes

DONE, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 3
log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one night; its exit status: 0 done or nothing to do, 1 failed, 2 bad input, 3 cancelled."""
    keep_private()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    prepare(with_model(argparse.ArgumentParser(add_help=False)).parse_known_args(arguments)[0].model)
    try:
        plugins.load()  # what they declare is among the options
    except Refused as error:
        print(f"nightschool: {error}", file=sys.stderr)
        return BAD_INPUT
    options = parser().parse_args(arguments)
    if hasattr(os, "nice"):
        os.nice(10)  # chats come first
    try:
        return run(options)
    except Refused as error:
        print(f"nightschool: {error}", file=sys.stderr)
        return BAD_INPUT
    except Cancelled:  # before there was a night
        return CANCELLED


def parser() -> argparse.ArgumentParser:
    """The options of a night."""
    top = argparse.ArgumentParser(prog="nightschool night", description="Train now on what people said.")
    data = Path(os.environ.get("NIGHTSCHOOL_DATA", "data"))
    top.add_argument("--data", type=Path, default=data, metavar="DIR", help="the data folder")
    with_model(top)
    choices = "; ".join(f"{name}: {each.help}" for name, each in methods.FACTS.items())
    top.add_argument("--method", choices=methods.FACTS, help=f"{choices} (default: {methods.DEFAULT})")
    top.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, e.g. epochs=1")
    top.add_argument("--settings", action="store_true", help="list the settings of the method, and do nothing")
    top.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    top.add_argument("--again", action="store_true", help="train even if nothing is new since the last night")
    top.add_argument("--fresh", action="store_true", help="do not go on with an interrupted night")
    top.add_argument("--log", choices=("tensorboard", "trackio"), help="write the steps there, too")
    top.add_argument("--asked-by", metavar="WHO", help=argparse.SUPPRESS)  # of servers: "clock", or a person's id
    gates = "; ".join(f"{name}: {words}" for name, words in nights.GATE.items())
    top.add_argument("--gate", choices=nights.GATE, help=f"{gates} (default: the setting 'gate')")
    return top


def with_model(options: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same, with the option that names the base model."""
    options.add_argument("--model", default="embedded", help="embedded, a directory, or a hub id")
    return options


def run(options: argparse.Namespace) -> int:
    """One night from the first step to the last."""
    from assistant.models import base_model
    from training.algorithms import registry
    from training.loop import distributed
    from training.loop.config import in_lines
    from training.night import tracking
    from training.night.learning import share
    from training.night.planner import Wishes

    # 1. what is asked, and whether it can be done
    method = registry.find(options.method or methods.DEFAULT)
    wishes = Wishes(options.method, registry.parse_settings(method.name, options.set), options.fresh)
    if options.settings:
        print(f"settings of {method.name}:", *in_lines(method.config), sep="\n  ")
        return DONE
    tracking.require_log(options.log or "")
    if distributed.count() > 1 and not method.distributed:
        *others, last = (name for name, each in registry.every().items() if each.distributed)
        shared = f"{', '.join(others)} and {last}"
        raise Refused(f"{method.name} is for one process; several share the batches of {shared}")
    if not distributed.is_first():
        return DONE if share(options.data) else FAILED
    with distributed.leading():
        store = Database(options.data)
        base = base_model.find_base(options.model)
        return dry_run(store, base, wishes) if options.dry_run else whole_night(store, base, wishes, options)


def whole_night(store: Database, base: "Base", wishes: "Wishes", options: argparse.Namespace) -> int:
    """The steps from 2 on, in the process that reads and writes."""
    from training.night import resume, run_dir
    from training.night.learning import Work

    cancellation = Cancellation()
    with alone(store):
        # 2. an interrupted night goes on, or is closed
        with cancellation.held():
            saved = resume.go_on(store, base, gather(store), wishes)
            if saved:
                write_down_who(store, saved[0], options, resumed=True)
            run_dir.tidy(store.data, keep=saved[0] if saved else None)

        # 3. or a new one begins, if there is something to learn
        with cancellation.held(longer=True):
            work = Work(*saved) if saved else begin(store, base, wishes, options)
            if work is None:
                return DONE
            work = replace(work, gate=options.gate or nights.setting(store, "gate"), log=options.log or "")

        # 4. to 10. it learns and is judged, and what came of it is written down
        status = taught(store, base, work, cancellation)
        run_dir.tidy(store.data, keep=None)
        return status


@contextmanager
def alone(store: Database) -> Iterator[None]:
    """One night at a time on a data folder. Raises `Conflict` while there is another."""
    lock = FileLock(store.data / "night.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Conflict("a night is running already; wait for it, or cancel it") from error
    try:
        yield
    finally:
        lock.release()


def dry_run(store: Database, base: "Base", wishes: "Wishes") -> int:
    """Say what a night would do."""
    from training.night import planner

    plan, examples = planner.make_plan(store, base, wishes)
    reason = planner.why_nothing(store, examples, plan, again=False)
    print(reason or f"would train on {planner.in_words(examples)}")
    print(f"method {plan.method}, {plan.precision}, {plan.threads} threads, settings {json.dumps(plan.settings)}")
    return DONE


def begin(store: Database, base: "Base", wishes: "Wishes", options: argparse.Namespace) -> "Work | None":
    """A new night with its examples saved; None, with a row that says why, where there is nothing to learn."""
    from training.night import planner, run_dir
    from training.night.learning import Work

    began = now()
    privacy.expire(store)
    plan, examples = planner.make_plan(store, base, wishes, settle=True)
    with store.transaction():
        night = nights.start_night(store, plan.method, planner.recorded_settings(plan), os.getpid(), began)
        write_down_who(store, night, options)
        counts, sha256 = examples.counts(), examples.sha256
        nights.update_night(store, night, counts=counts, data_sha256=sha256, phase="examples")
        nights.record_people(store, night, examples.people())
        reason = planner.why_nothing(store, examples, plan, options.again)
        if reason:
            end(store, night, "nothing", reason)
            return None
    run_dir.save_plan(run_dir.folder(store.data, night), plan, examples)
    print(f"night {night}: {planner.in_words(examples)}", flush=True)
    return Work(night, plan, examples)


def write_down_who(store: Database, night: int, options: argparse.Namespace, resumed: bool = False) -> None:
    """Leave an audit row of who started a night, and how; the clock keeps a record of its own."""
    if options.asked_by == schedules.CLOCK:
        return
    told = {"again": options.again, "resumed": resumed, "gate": options.gate, "settings": ", ".join(options.set)}
    detail = {"method": options.method or methods.DEFAULT} | {name: value for name, value in told.items() if value}
    with nullcontext() if options.asked_by else adapters.at_terminal():
        user = int(options.asked_by) if options.asked_by else None
        adapters.audit(store, user, "start night", str(night), detail)


def taught(store: Database, base: "Base", work: "Work", cancellation: Cancellation) -> int:
    """Run steps 4 to 10 and write down whatever came of them; the exit status."""
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
            with adapters.at_terminal():
                adapters.audit(store, None, "cancel night", str(work.night))
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
        reason = f"{type(error).__name__}: {error}"
    cancellation.too_late()
    end(store, work.night, "failed", reason, to=sys.stderr)
    return FAILED


def end(store: Database, night: int, state: str, reason: str, to: Any = None) -> None:
    """Close a night that made no adapter, on paper and aloud."""
    nights.end_night(store, night, state, reason)
    print(f"night {night}: {state}: {reason}", file=to, flush=True)


if __name__ == "__main__":
    sys.exit(main())
