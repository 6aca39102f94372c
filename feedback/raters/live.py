"""Choices between two adapters that people met without knowing which is which, as votes of nights.

A challenger meets what serves on a share of turns. What a person chose in one night is averaged before it counts, so
that an evening of clicks is one vote (`evidence`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from feedback.database.database import Database
from feedback.kinds import current
from feedback.kinds.comparison import COMPARISON
from feedback.raters import evidence, reliability
from feedback.raters.evidence import Preference, Votes
from feedback.raters.reliability import PEOPLE
from feedback.records.adapters import BASE

SIDES = {"left": 1.0, "tie": 0.5, "both_bad": 0.5, "right": 0.0}  # for the reply on the left; others say nothing
NEWEST = 100_000  # rows of comparisons that are considered


@dataclass(frozen=True)
class Met:
    """What people chose between a newer adapter and an older one (None: the base)."""

    votes: Votes
    choices: int  # that are no draw
    nights: int  # on which anybody chose

    @property
    def preference(self) -> Preference:
        """The mean over people."""
        return evidence.preference(self.votes)

    def words(self, alpha: float) -> str:
        """It in words: "e = 7.4 of 160, 212 decisive votes of 31 people, 56 % ± 6"."""
        found = self.preference
        value, people = float(evidence.e_value(found)), int(found.people)
        error = float(found.error)
        half = f" ± {196 * error:.0f}" if error < 0.25 else ""
        return (
            f"e = {value:.3g} of {1 / alpha:.3g}, {self.choices:,} decisive {_plural('vote', self.choices)} of "
            f"{people} {'person' if people == 1 else 'people'}, {50 + 100 * float(found.gain):.0f} %{half}"
        )

    def measurements(self) -> dict[str, Any]:
        """It as evidence."""
        found = self.preference
        return {
            "e": float(evidence.e_value(found)),
            "rate": 0.5 + float(found.gain),
            "error": float(found.error) if found.error < 1 else None,
            "people": int(found.people),
            "odd": int(found.odd),
            "choices": self.choices,
            "nights": self.nights,
        }


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def met(store: Database, newer: str, older: str | None, since: str) -> Met:
    """What people have chosen between two adapters since a moment, in pairs that were shown to them side by side."""
    nights: dict[int, dict[str, list[float]]] = {}
    choices = 0
    for user, night, side in _sides(store, newer, older or BASE, since):
        nights.setdefault(user, {}).setdefault(night, []).append(side)
        choices += side != 0.5
    units = {user: [sum(each) / len(each) for each in of.values()] for user, of in nights.items()}
    there = {night for of in nights.values() for night in of}
    return Met(evidence.votes_of(units, reliability.weights(store)), choices, len(there))


def _sides(store: Database, newer: str, older: str, since: str) -> Iterable[tuple[int, str, float]]:
    """Who chose, in which night (the day in UTC), and for whom: 1 for the newer adapter, 0 for the older."""
    first = {COMPARISON.table: max(current.position(store)[COMPARISON.table] - NEWEST, 0)}
    rows = [
        row
        for row in current.rows(store, COMPARISON, first)
        if row["at"] > since and row["usable"] and row["by"] in PEOPLE and row["choice"] in SIDES
    ]
    shown = {
        (row["left_reply"], row["right_reply"])
        for row in store.rows("SELECT left_reply, right_reply FROM pairs WHERE shown_at > ?", since)
    }
    told = current.briefs(store, [row[side] for row in rows for side in ("left_reply", "right_reply")])
    for row in rows:
        both = (row["left_reply"], row["right_reply"])
        authors = [told[each].model for each in both]
        if sorted(authors) == sorted((newer, older)) and (both in shown or both[::-1] in shown):
            side = SIDES[row["choice"]]
            yield row["user"], row["at"][:10], side if authors[0] == newer else 1 - side
