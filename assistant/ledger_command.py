"""The commands about what people said: backup, restore, doctor.

Left out on purpose: what they do; that is `feedback`'s.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from feedback import backup, doctor
from feedback.store import NotFound, Store


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add every one of them; `command(name, run, words, reads)` makes a parser."""
    copying = command("backup", run_backup, "copy everything into a new folder, while chats go on")
    copying.add_argument("folder", type=Path, metavar="FOLDER")
    restoring = command("restore", run_restore, "put a backup into the data folder")
    restoring.add_argument("folder", type=Path, metavar="FOLDER")
    restoring.add_argument("--replace", action="store_true", help="put data that is there already aside")
    command("doctor", run_doctor, "look whether everything is well; exits with 1 where it is not", reads=True)


def existing(data: Path) -> Store:
    """The store of a data folder that is there. Raises `NotFound`."""
    if not (data / "nightschool.db").is_file():
        raise NotFound(f"there is no Nightschool data in {data}; start one with: nightschool serve --data {data}")
    return Store(data)


def show(options: argparse.Namespace, facts: Any, lines: Sequence[str]) -> None:
    """Print facts as JSON where asked to, else as lines."""
    print(json.dumps(facts, indent=1) if options.json else "\n".join(lines))


def run_backup(options: argparse.Namespace) -> None:
    """`nightschool backup FOLDER`."""
    made = backup.back_up(existing(options.data), options.folder)
    print(f"backed up {len(made.files)} files, {made.size / 2**20:,.1f} MB, checked, in {options.folder}")


def run_restore(options: argparse.Namespace) -> None:
    """`nightschool restore FOLDER`."""
    aside = backup.restore(options.folder, options.data, options.replace)
    print(f"restored {options.folder} into {options.data}" + (f"; what was there is in {aside}" if aside else ""))


def run_doctor(options: argparse.Namespace) -> int:
    """`nightschool doctor`; 1 where something is not well."""
    findings = doctor.examine(existing(options.data))
    lines = [f"{'ok     ' if each.well else 'TROUBLE'}  {each.name:<10}  {each.words}" for each in findings]
    show(options, [asdict(each) for each in findings], lines)
    return int(not all(each.well for each in findings))
