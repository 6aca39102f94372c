"""The commands on the data: import, export, forget, backup, restore, and doctor, which examines it."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assistant.command_line import FILE, FOLDER, data_option
from feedback.errors import NotFound, Refused
from ui.cli.command import Command, Word, existing, json_option, new_or_existing, show

if TYPE_CHECKING:
    from feedback.accounts.users import User
    from feedback.database.database import Database

OWN = "own"  # as a format: all that is kept of one person
KINDS_OF_FILE = ".jsonl, .json, .csv, .parquet"
READ = "JSON Lines, a JSON array, CSV, TSV (each also as .gz), Parquet, or a folder of the Hub's or an exported one"


def importable() -> Sequence[str]:
    """The formats that can be imported."""
    from feedback.formats.registry import FORMATS

    return list(FORMATS)


def exportable() -> Sequence[str]:
    """The formats that can be exported."""
    from feedback.formats.registry import writable

    return [*writable(), OWN]


class WithFormats(Command):
    """A command whose help ends with a description of each format."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from feedback.formats.registry import FORMATS

        with formatter.section("Formats"):
            told = [(each.name, each.words) for each in FORMATS.values()]
            formatter.write_dl([*told, (OWN, "all that is kept of one person (export only, with --user)")])


@click.command("import", cls=WithFormats)
@click.argument("file", type=FILE, help=f"{READ}.")
@click.option("--format", "form", type=Word(importable), default="", metavar="NAME", help="One of the formats below.")
@click.option(
    "--columns",
    default="",
    metavar="NAME=COLUMN,...",
    help="What the columns of a file in no known format are, as prompt=question,chosen=best,rejected=worst.",
)
@click.option("--dry-run", is_flag=True, help="Show ten rows as they would be kept, and keep nothing.")
@click.option("--source", default="", help="The source, kept with every row.")
@click.option("--licence", default="", help="The licence, kept with every row.")
@click.option(
    "--keep-personal", is_flag=True, help="Keep fields such as name and e-mail; exports leave them out anyway."
)
@data_option
@json_option
def import_(
    file: Path,
    form: str,
    columns: str,
    dry_run: bool,
    source: str,
    licence: str,
    keep_personal: bool,
    data: Path,
    as_json: bool,
) -> int:
    """Import feedback from elsewhere. Without --format or --columns, the first rows tell the format."""
    from feedback.formats import load

    if dry_run:
        return look_at(file, form, columns, keep_personal, as_json)
    with new_or_existing(data) as store:
        done = load.import_file(
            store, file, form, source, licence, watched, keep_personal=keep_personal, columns=columns
        )
    if not done.read:
        print(f"nightschool: no row of {file} could be kept ({done.format}){counted(done.left_out)}", file=sys.stderr)
        return 1
    words = f"imported {done.kept:,} rows ({done.format}){counted(done.left_out)}{counted(done.without, ' values')}"
    show(as_json, asdict(done), [words])
    return 0


def look_at(file: Path, form: str, columns: str, keep_personal: bool, as_json: bool) -> int:
    """Show what an import would keep, without a data folder; return 1 if that is nothing."""
    from feedback.formats import preview
    from feedback.formats.registry import format_of_file

    found = preview.look(file, format_of_file(file, form, columns), watched, keep_personal)
    total = f"would import {found.kept:,} rows ({found.format}){counted(found.left_out)}"
    show(as_json, preview.as_facts(found), [*preview.as_lines(found), total])
    return int(not found.kept)


@click.command("export", cls=WithFormats)
@click.argument("out", type=FILE, help=f"{KINDS_OF_FILE}, or a new folder.")
@click.option(
    "--format",
    "form",
    type=Word(exportable),
    default="nightschool",
    show_default=True,
    metavar="NAME",
    help="One of the formats below.",
)
@click.option("--user", metavar="NAME", help="Export everything that one person said, and nothing by others.")
@click.option("--mask", is_flag=True, help="Mask e-mail addresses, telephone numbers and the like.")
@click.option("--licence", default="other", show_default=True, help="The licence on the card of an exported folder.")
@data_option
def export(out: Path, form: str, user: str | None, mask: bool, licence: str, data: Path) -> None:
    """Export consented feedback."""
    with existing(data) as store:
        if form == OWN:
            export_own(store, out, user)
        else:
            export_rows(store, out, form, user, mask, licence)


def export_own(store: "Database", out: Path, user: str | None) -> None:
    """Write all that is kept of one person. Raises `Refused` without one."""
    from feedback.formats import export

    if not user:
        raise Refused("whose? nightschool export OUT --format own --user NAME")
    export.export_own(store, out, person_named(store, user))
    print(f"exported all that is kept of {user} to {out}")


def export_rows(store: "Database", out: Path, name: str, user: str | None, mask: bool, licence: str) -> None:
    """Write rows in a format. Raises `Refused` on one that is unknown or for import only."""
    from feedback.examples import pii
    from feedback.formats import export
    from feedback.formats.registry import format_named, writable

    form = format_named(name)
    if form.write is None:
        raise Refused(f"{form.name} is for import only; a format to export is one of {', '.join(writable())}")
    person = person_named(store, user) if user else None
    left_out: Counter[str] = Counter()

    def change(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        seen = watched(rows, "exporting")
        return pii.masked(seen) if mask else seen

    count = export.export_file(store, out, form, left_out, person, change=change, licence=licence)
    print(f"exported {count:,} rows ({form.name}) to {out}{counted(left_out)}")


def person_named(store: "Database", name: str) -> "User":
    """The person of that name. Raises `NotFound`."""
    from feedback.accounts import users

    person = users.find_user(store, name)
    if person is None:
        raise NotFound(f"there is no user {name!r}")
    return person


def watched(rows: Iterator[Any], doing: str) -> Iterator[Any]:
    """The rows, counted by a progress bar on a terminal."""
    from tqdm import tqdm

    return iter(tqdm(rows, doing, unit=" rows", disable=None, leave=False))


def counted(left_out: dict[str, int], what: str = "") -> str:
    """The counts of rows, or of what else was left out, by reason, in words."""
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(left_out.items()))
    return f"; left out {sum(left_out.values()):,}{what} ({reasons})" if left_out else ""


@click.command("forget", cls=Command)
@click.argument("user", help="The account's name.")
@click.option("--yes", is_flag=True, help="Really.")
@data_option
def forget(user: str, yes: bool, data: Path) -> None:
    """Delete everything that one person wrote. This cannot be undone."""
    from feedback.upkeep import privacy

    with existing(data) as store:
        person = person_named(store, user)
        if not yes:
            raise Refused(
                f"all that {person.name} wrote would be gone for ever; say --yes, after a backup if you keep any"
            )
        done = privacy.forget(store, person)
    print(f"forgotten: {done.conversations} conversations, {done.messages} messages, {done.ratings} pieces of feedback")
    for adapter in done.trained_on_it:
        print(f"{adapter} learned from it; train again (nightschool night --again) and promote that instead")
    for night in done.nights:
        print(f"night {night} is learning from it; what it makes is not promoted by itself, so train again after it")
    for adapter in done.perhaps:
        print(f"{adapter} may have learned from it, and kept no list; train again to be sure")


@click.command("backup", cls=Command)
@click.argument("folder", type=FOLDER, help="A new folder.")
@data_option
def backup(folder: Path, data: Path) -> None:
    """Copy everything into a new folder. The server may go on running."""
    from feedback.upkeep.backup import back_up

    with existing(data) as store:
        made = back_up(store, folder)
    print(f"backed up {len(made.files)} files, {made.size / 2**20:,.1f} MB, checked, in {folder}")


@click.command("restore", cls=Command)
@click.argument("folder", type=FOLDER, help="A folder that backup made.")
@click.option("--replace", is_flag=True, help="Move the data that is already there aside.")
@data_option
def restore(folder: Path, replace: bool, data: Path) -> None:
    """Put a backup into the data folder."""
    from feedback.upkeep import backup

    aside = backup.restore(folder, data, replace)
    print(f"restored {folder} into {data}" + (f"; what was there is in {aside}" if aside else ""))


@click.command("doctor", cls=Command)
@click.option("--mend", is_flag=True, help="Mend texts that cannot be read, and remove what interrupted imports left.")
@data_option
@json_option
def doctor(mend: bool, data: Path, as_json: bool) -> int:
    """Check that everything is well. Exits with 1 if it is not."""
    from feedback.upkeep import health

    with existing(data) as store:
        done = health.mend(store) if mend else []
        findings = health.examine(store)
    print(*done, sep="\n", end="\n" * bool(done), file=sys.stderr)
    lines = [f"{'ok     ' if each.well else 'TROUBLE'}  {each.name:<10}  {each.words}" for each in findings]
    show(as_json, [asdict(each) for each in findings], lines)
    return int(not all(each.well for each in findings))
