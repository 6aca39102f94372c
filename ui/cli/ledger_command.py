"""The commands about what people said: import, export, forget, raters, leaderboard, backup, restore, doctor."""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import NotFound, Refused
from feedback.examples import pii
from feedback.formats import export, load
from feedback.formats.registry import FORMATS, format_named, writable
from feedback.raters import agreement, leaderboard
from feedback.raters.agreement import Rater, Share
from feedback.raters.leaderboard import Rank
from feedback.upkeep import backup, health, privacy

OWN = "own"  # as a format: all that is kept of one person


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add every one of them; `command(name, run, words, reads)` makes a parser."""
    taking = command("import", run_import, "keep what people said elsewhere; every format known is told by its rows")
    taking.add_argument("file", type=Path, metavar="FILE", help=".jsonl, .json, .csv, .parquet, or an exported folder")
    taking.add_argument("--format", default="", metavar="NAME", help=f"one of: {', '.join(FORMATS)}")
    taking.add_argument("--source", default="", help="where it comes from, kept with every row")
    taking.add_argument("--licence", default="", help="under what licence, kept with every row")
    giving = command("export", run_export, "write what people said, and let be used, in a format of your choice")
    giving.add_argument("out", type=Path, metavar="OUT", help=".jsonl, .json, .csv, .parquet, or a new folder")
    formats = "; ".join(f"{name}: {FORMATS[name].words}" for name in writable())
    giving.add_argument(
        "--format",
        default="nightschool",
        metavar="NAME",
        help=f"{formats}; {OWN}: with --user, all that is kept of them (default: nightschool)",
    )
    giving.add_argument("--user", metavar="NAME", help="all that one person said, and nothing of others")
    giving.add_argument("--mask", action="store_true", help="take out e-mail addresses, telephone numbers and the like")
    giving.add_argument("--licence", default="other", help="what a folder's card says")
    forgetting = command("forget", run_forget, "remove all that one person wrote, for ever")
    forgetting.add_argument("user", metavar="USER")
    forgetting.add_argument("--yes", action="store_true", help="really")
    command("raters", run_raters, "how far people agree, what sways them, what each weighs", reads=True)
    command("leaderboard", run_leaderboard, "how good each adapter is by what people chose", reads=True)
    copying = command("backup", run_backup, "copy everything into a new folder, while chats go on")
    copying.add_argument("folder", type=Path, metavar="FOLDER")
    restoring = command("restore", run_restore, "put a backup into the data folder")
    restoring.add_argument("folder", type=Path, metavar="FOLDER")
    restoring.add_argument("--replace", action="store_true", help="put data that is there already aside")
    command("doctor", run_doctor, "look whether everything is well; exits with 1 where it is not", reads=True)


def existing(data: Path) -> Database:
    """The store of a data folder that is there. Raises `NotFound`."""
    if not (data / "nightschool.db").is_file():
        raise NotFound(f"there is no Nightschool data in {data}; start one with: nightschool serve --data {data}")
    return Database(data)


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
    store = Database(options.data)
    done = load.import_file(store, options.file, options.format, options.source, options.licence, watched)
    print(f"imported {done.kept:,} rows ({done.format}){counted(done.left_out)}")


def run_export(options: argparse.Namespace) -> None:
    """`nightschool export OUT`."""
    store = existing(options.data)
    if options.format == OWN:
        if not options.user:
            raise Refused("whose? nightschool export OUT --format own --user NAME")
        export.export_own(store, options.out, person_named(store, options.user))
        print(f"exported all that is kept of {options.user} to {options.out}")
        return
    form = format_named(options.format)
    if form.write is None:
        raise Refused(f"{form.name} is for import only; a format to export is one of {', '.join(writable())}")
    person = person_named(store, options.user) if options.user else None
    left_out: Counter[str] = Counter()

    def change(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        seen = watched(rows, "exporting")
        return pii.masked(seen) if options.mask else seen

    count = export.export_file(store, options.out, form, left_out, person, change=change, licence=options.licence)
    print(f"exported {count:,} rows ({form.name}) to {options.out}{counted(left_out)}")


def person_named(store: Database, name: str) -> User:
    """Raises `NotFound`."""
    person = users.find_user(store, name)
    if person is None:
        raise NotFound(f"there is no user {name!r}")
    return person


def run_forget(options: argparse.Namespace) -> None:
    """`nightschool forget USER`."""
    store = existing(options.data)
    person = person_named(store, options.user)
    if not options.yes:
        raise Refused(f"all that {person.name} wrote would be gone for ever; say --yes, after a backup if you keep any")
    done = privacy.forget(store, person)
    print(f"forgotten: {done.conversations} conversations, {done.messages} messages, {done.ratings} pieces of feedback")
    for adapter in done.trained_on_it:
        print(f"{adapter} learned from it; train again (nightschool night --again) and promote that instead")
    for night in done.nights:
        print(f"night {night} is learning from it; what it makes is not promoted by itself, so train again after it")
    for adapter in done.perhaps:
        print(f"{adapter} may have learned from it, and kept no list; train again to be sure")


def run_raters(options: argparse.Namespace) -> None:
    """`nightschool raters`."""
    found = agreement.report(existing(options.data))
    meters = {
        "two people agree": found.agreement,
        "people agree with themselves": found.consistency,
        "the left reply was chosen": found.left,
        "the longer reply was chosen": found.longer,
    }
    lines = [f"{words:<30}{in_words(each)}" for words, each in meters.items()]
    lines += [f"{'Krippendorff alpha':<30}{'nothing yet' if found.alpha is None else f'{found.alpha:.3f}'}", ""]
    lines += [f"{each.name:<30}{one_rater(each)}" for each in found.raters]
    show(options, asdict(found), lines)


def in_words(share: Share) -> str:
    """A share with its interval."""
    if not share.whole:
        return "nothing yet"
    return f"{share.share:.1%} of {share.whole:,} ({share.low:.1%} to {share.high:.1%})"


def one_rater(rater: Rater) -> str:
    """A rater's weight and labels."""
    known = rater.reliability
    words = [rater.label] if rater.label else []
    words += [f"weight {known.weight:.2f}, {known.ratings} shared ratings"] if known else ["not compared yet"]
    words += [f"gold {in_words(rater.gold)}"] if rater.gold.whole else []
    return ", ".join(words)


def run_leaderboard(options: argparse.Namespace) -> None:
    """`nightschool leaderboard`."""
    found = leaderboard.board(leaderboard.choices(existing(options.data)))
    lines = [
        f"{ranks(each):<8}{each.name:<24}{each.strength:+.2f} ({each.analytic[0]:+.2f} to {each.analytic[1]:+.2f})"
        f"  {each.choices:,} choices"
        for each in found.standings
    ]
    show(options, asdict(found), lines or ["nobody has chosen between two adapters yet"])


def ranks(standing: Rank) -> str:
    """A rank as far as it is known."""
    best, worst = standing.rank
    return f"{best}." if best == worst else f"{best}.-{worst}."


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
    findings = health.examine(existing(options.data))
    lines = [f"{'ok     ' if each.well else 'TROUBLE'}  {each.name:<10}  {each.words}" for each in findings]
    show(options, [asdict(each) for each in findings], lines)
    return int(not all(each.well for each in findings))
