"""The migrations, as numbered steps that only go forward.

A step that has shipped is never edited; each change is a new step. Feedback and consent (votes, comparisons, rankings,
corrections, critiques, labels, consents) are appended, never updated: the newest row per person and target is current.
"""

from collections.abc import Mapping

from sqlite_utils import Database, Migrations

from feedback.database import later_tables, openings, tables

steps = Migrations("nightschool")
more_steps: dict[str, str] = {}  # name -> SQL, from kinds that bring their own table; applied after `steps`
MORE = "kinds"  # the name of that second set of migrations


@steps()
def m0001_first_tables(db: Database) -> None:
    """People, talk, ratings and school as first shipped."""
    for group in (tables.PEOPLE, tables.TALK, tables.RATINGS, tables.SCHOOL):
        run_each(db, group)


@steps()
def m0002_clock_and_gate(db: Database) -> None:
    """Occurrences of the schedule, verdicts and evidence of the gate, and people kept for judging."""
    run_each(db, tables.CLOCK_AND_GATE)


@steps()
def m0003_all_that_is_said(db: Database) -> None:
    """Every kind of feedback, questions to raters, imports and forgetting."""
    run_each(db, tables.ALL_THAT_IS_SAID)


@steps()
def m0004_reference_logprobs(db: Database) -> None:
    """A cache of reference-model log-probs, so that no night computes them again."""
    run_each(db, tables.REFERENCE_LOGPROBS)


@steps()
def m0005_whose_conversations(db: Database) -> None:
    """Which nights recorded the owners of the conversations they learn from, besides the raters."""
    run_each(db, tables.WHOSE_CONVERSATIONS)


@steps()
def m0006_sessions(db: Database) -> None:
    """Sessions that end on the server, and accounts that are disabled."""
    run_each(db, tables.SESSIONS)


@steps()
def m0007_split_openings(db: Database) -> None:
    """The split keyed by a secret, except for openings placed before; indexes of feedback by person and time."""
    run_each(db, tables.SPLIT_OPENINGS)
    openings.write_down(db)


@steps()
def m0008_imported_pieces(db: Database) -> None:
    """What each import said, so that the same in another file is known, and where an interrupted one goes on."""
    run_each(db, later_tables.IMPORTED_PIECES)


@steps()
def m0009_drawn_evenly(db: Database) -> None:
    """With what chance an evenly drawn question would have been the one that was asked."""
    run_each(db, later_tables.DRAWN_EVENLY)


@steps()
def m0010_members_scores(db: Database) -> None:
    """Each reward model's own score of a reply, from which follows where they disagree on two."""
    run_each(db, later_tables.MEMBERS_SCORES)


@steps()
def m0011_decisions(db: Database) -> None:
    """What was decided about adapters, at what risk, and which held-out conversations judged."""
    run_each(db, later_tables.DECISIONS)


def run_each(db: Database, script: str) -> None:
    """Run each statement inside the caller's transaction, which `executescript` would commit."""
    plain = "\n".join(line.split("--")[0] for line in script.splitlines())
    for statement in filter(str.strip, plain.split(";")):
        db.execute(statement)


def unknown_steps(db: Database) -> list[str]:
    """The applied steps that this program does not know."""
    ours = {step.name for step in steps.pending(Database(memory=True))}
    return [step.name for step in steps.applied(db) if step.name not in ours]


def add_steps(named: Mapping[str, str]) -> None:
    """Add steps, by name, for every database to apply. Raises `ValueError` on a name in use."""
    for name, script in named.items():
        if name in more_steps:
            raise ValueError(f"there is a step {name!r} already")
        more_steps[name] = script


def apply(db: Database) -> None:
    """Apply every step that a database lacks."""
    steps.apply(db)
    more = Migrations(MORE)
    for name, script in more_steps.items():
        more(name=name)(lambda db, script=script: run_each(db, script))
    more.apply(db)


def missing_steps(db: Database) -> list[str]:
    """The applied steps of kinds of feedback that are not registered in this process."""
    return [step.name for step in Migrations(MORE).applied(db) if step.name not in more_steps]
