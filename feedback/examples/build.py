"""Makes training examples from the current feedback, with a counted reason for everything left out.

Each kind of feedback defines in its file what its rows teach. Rows that were taken back, that lack the consent of the
rater or of the conversation's owner (`consent`), or whose replies are empty or equal teach nothing. A person's repeated
feedback on the same texts counts once, and of contradictory feedback only the newest (`filtering`). What a cap would
leave out is not read where that takes long (`recent`). Weights follow agreement with others (`reliability`), and nobody
carries more than their share of the whole (`caps`).
The same feedback gives the same examples in the same order, with the same hash.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

from feedback.database.database import Database
from feedback.example_types import KINDS, TIE, Demonstration, Examples, PreferencePair, UnpairedExample
from feedback.examples import caps, filtering, recent
from feedback.kinds import current
from feedback.kinds.base import answer_of as answer_of
from feedback.kinds.base import teaching
from feedback.kinds.current import Position
from feedback.records import settings


def gather(store: Database, since: Position | None = None) -> Examples:
    """All current feedback, or that added since a position, as examples, oldest first within each kind of feedback."""
    left_out: Counter[str] = Counter()
    most = imported_most(store)
    if since is None:
        made = recent.made(store, left_out, most)
    else:
        rows = {kind.table: current.rows(store, kind, since) for kind in teaching()}
        made = [each for _, each in recent.made_from(store, rows, left_out)]
    kept = filtering.sift([(at, replace(each, at=at)) for at, each in made], left_out, most)
    found = Examples(
        pairs=tuple(each for each in kept if isinstance(each, PreferencePair) and each.kind != TIE),
        thumbs=tuple(each for each in kept if isinstance(each, UnpairedExample)),
        left_out=dict(sorted(left_out.items())),
        ties=tuple(each for each in kept if isinstance(each, PreferencePair) and each.kind == TIE),
        demonstrations=tuple(each for each in kept if isinstance(each, Demonstration)),
    )
    return caps.bounded(store, found)


def imported_most(store: Database) -> dict[int, int]:
    """The most prompts of each imported rater while few people rate."""
    most = settings.setting(store, "imported_prompts")
    return {row["id"]: most for row in store.rows("SELECT id FROM users WHERE kind = 'imported'")}


def still_standing(store: Database, examples: Examples) -> Examples:
    """The previously gathered examples that may still be used: not taken back, and with both consents."""
    now = set(gather(store))
    kept: dict[str, Any] = {kind: tuple(each for each in getattr(examples, kind) if each in now) for kind in KINDS}
    return replace(examples, **kept)
