"""How much the answer to a question counts in an estimate, as questions are not drawn evenly.

Questions favour what teaches (`questions`), so their answers are of harder conversations than people have. In an
estimate over all conversations that might have been asked about, an answer therefore weighs by how much likelier its
question would have been, drawn evenly (inverse propensity: Horvitz and Thompson, 1952). As a share of all questions is
drawn evenly, no weight is above `MOST`. Training uses none of this: there, what teaches is wanted. It holds while few
of those that may be asked have been; arXiv 2101.11665 also accounts for a pool that runs dry, if nothing is added.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from feedback.database.database import Database
from feedback.raters.questions import EVENLY

MOST = 1 / EVENLY  # clips the weights of questions that another version drew


def weights(store: Database) -> dict[str, float]:
    """The weight of the answer to each question, by the question's id; 1 where an older version asked it.

    A repeated question is about what its first asking chose, and weighs as that.
    """
    first: dict[tuple[Any, ...], float] = {}
    found: dict[str, float] = {}
    for row in store.rows("SELECT id, user, parent, replies, propensity, evenly FROM questions ORDER BY seq"):
        weight = 1.0 if row["evenly"] is None else min(row["evenly"] / row["propensity"], MOST)
        about = (row["user"], row["parent"], *sorted(json.loads(row["replies"])))
        found[row["id"]] = first.setdefault(about, weight)
    return found


def of_rows(store: Database, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """`weights`, if any of these rows of feedback answers a question; else nothing."""
    return weights(store) if any(row.get("question") for row in rows) else {}


def effective(given: Iterable[float]) -> float:
    """The number of evenly drawn answers that tell as much as these weights: (sum w)^2 / sum w^2 (Kish, 1965)."""
    own = list(given)
    return sum(own) ** 2 / sum(each**2 for each in own) if own else 0.0
