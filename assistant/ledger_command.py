"""The commands about what people said: import, export, backup, restore, doctor.

Left out on purpose: what they do; that is `feedback`'s.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from feedback import backup, doctor, people
from feedback.formats import exporting, files, importing
from feedback.formats.catalog import EXPORTED, FORMATS, format_named
from feedback.store import NotFound, Refused, Store, now


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add every one of them; `command(name, run, words, reads)` makes a parser."""
    taking = command("import", run_import, "keep what people said elsewhere; every format known is told by its rows")
    taking.add_argument("file", type=Path, metavar="FILE", help=".jsonl, .json, .csv, .parquet, or an exported folder")
    taking.add_argument("--format", default="", metavar="NAME", help=f"one of: {', '.join(FORMATS)}")
    taking.add_argument("--source", default="", help="where it comes from, kept with every row")
    taking.add_argument("--licence", default="", help="under what licence, kept with every row")
    giving = command("export", run_export, "write what people said, and let be used, in a format of your choice")
    giving.add_argument("out", type=Path, metavar="OUT", help=".jsonl, .json, .csv, .parquet, or a new folder")
    formats = "; ".join(f"{name}: {FORMATS[name].words}" for name in EXPORTED)
    giving.add_argument("--format", default="nightschool", metavar="NAME", help=f"{formats} (default: nightschool)")
    giving.add_argument("--user", metavar="NAME", help="all that one person said, and nothing of others")
    giving.add_argument("--licence", default="other", help="what a folder's card says")
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


def watched(rows: Iterator[Any], doing: str) -> Iterator[Any]:
    """Rows with a bar on a terminal that says how many there were."""
    return iter(tqdm(rows, doing, unit=" rows", disable=None, leave=False))


def counted(left_out: dict[str, int]) -> str:
    """What was left out and why, in words."""
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(left_out.items()))
    return f"; left out {sum(left_out.values()):,} ({reasons})" if left_out else ""


def run_import(options: argparse.Namespace) -> None:
    """`nightschool import FILE`."""
    store = Store(options.data)
    done = importing.import_file(store, options.file, options.format, options.source, options.licence, watched)
    print(f"imported {done.kept:,} rows ({done.format}){counted(done.left_out)}")


def run_export(options: argparse.Namespace) -> None:
    """`nightschool export OUT`."""
    store, form = existing(options.data), format_named(options.format)
    if form.write is None:
        raise Refused(f"{form.name} is for import only; a format to export is one of {', '.join(EXPORTED)}")
    person = people.find_user(store, options.user) if options.user else None
    if options.user and person is None:
        raise NotFound(f"there is no user {options.user!r}")
    left_out: Counter[str] = Counter()
    rows = watched(exporting.rows(store, form, left_out, person), "exporting")
    if options.out.suffix:
        count = files.write(options.out, rows)
    else:
        card = {"format": form.name, "words": form.words, "licence": options.licence, "at": now()[:10]}
        count = files.write_folder(options.out, rows, card)
    print(f"exported {count:,} rows ({form.name}) to {options.out}{counted(left_out)}")


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
