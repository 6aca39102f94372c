"""The tables, as numbered steps that only ever go forward.

A step that has shipped is never edited; the next change is the next step.
What people said (votes, comparisons, rankings, corrections, critiques, labels, consents) is appended, never updated:
the newest row of a person about a thing is what stands.
"""

from collections.abc import Mapping

from sqlite_utils import Database, Migrations

from feedback.database import openings, tables

steps = Migrations("nightschool")
more_steps: dict[str, str] = {}  # name -> SQL, of kinds of feedback that bring a table of their own: after the others
MORE = "kinds"  # what the set of these is called


@steps()
def m0001_first_tables(db: Database) -> None:
    """People, talk, ratings and school as first shipped."""
    for group in (tables.PEOPLE, tables.TALK, tables.RATINGS, tables.SCHOOL):
        run_each(db, group)


@steps()
def m0002_clock_and_gate(db: Database) -> None:
    """What the clock did, what the gate found, and whose feedback is kept for judging."""
    run_each(db, tables.CLOCK_AND_GATE)


@steps()
def m0003_all_that_is_said(db: Database) -> None:
    """Every kind of feedback, questions put to raters, imports, what is forgotten."""
    run_each(db, tables.ALL_THAT_IS_SAID)


@steps()
def m0004_reference_logprobs(db: Database) -> None:
    """What the reference says of replies, so that no night computes it again."""
    run_each(db, tables.REFERENCE_LOGPROBS)


@steps()
def m0005_whose_conversations(db: Database) -> None:
    """Which nights wrote down whose conversations they learn from, beside who rated them."""
    run_each(db, tables.WHOSE_CONVERSATIONS)


@steps()
def m0006_sessions(db: Database) -> None:
    """Sessions that end on the server, and accounts that are disabled."""
    run_each(db, tables.SESSIONS)


@steps()
def m0007_split_openings(db: Database) -> None:
    """A secret decides what judges from here on; what was placed without it stays. Feedback by person and time."""
    run_each(db, tables.SPLIT_OPENINGS)
    openings.write_down(db)


def run_each(db: Database, script: str) -> None:
    """Run every statement inside the caller's transaction; `executescript` would commit it."""
    plain = "\n".join(line.split("--")[0] for line in script.splitlines())
    for statement in filter(str.strip, plain.split(";")):
        db.execute(statement)


def unknown_steps(db: Database) -> list[str]:
    """The steps that a database went through and this program does not know."""
    ours = {step.name for step in steps.pending(Database(memory=True))}
    return [step.name for step in steps.applied(db) if step.name not in ours]


def add_steps(named: Mapping[str, str]) -> None:
    """Steps, by name, that every database goes through besides. Raises `ValueError` on a name in use."""
    for name, script in named.items():
        if name in more_steps:
            raise ValueError(f"there is a step {name!r} already")
        more_steps[name] = script


def apply(db: Database) -> None:
    """Take every step that a database has not gone through."""
    steps.apply(db)
    more = Migrations(MORE)
    for name, script in more_steps.items():
        more(name=name)(lambda db, script=script: run_each(db, script))
    more.apply(db)


def missing_steps(db: Database) -> list[str]:
    """The steps of kinds of feedback that a database went through and nobody has added here."""
    return [step.name for step in Migrations(MORE).applied(db) if step.name not in more_steps]
