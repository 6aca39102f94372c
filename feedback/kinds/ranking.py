"""Rankings of two or more replies to one message.

A ranking makes a pair of every two replies (tied ones make a tie), all with the ranking's `group`. It takes K - 1
comparisons to put K replies in order, so each of the K (K - 1) / 2 pairs counts as 2 / K of one. If all replies are
wrong, a ranking also makes a thumbs-down on each that the person gave no thumb themselves.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

from pydantic import Field

from feedback.accounts.users import User
from feedback.annotations import Annotation, Record
from feedback.chats import conversations
from feedback.database.database import Database, now
from feedback.errors import Refused
from feedback.example_types import TIE, Made
from feedback.kinds.base import Body, Context, Daily, Kind, Row, of_two, register
from feedback.kinds.comparison import COMPARISON, answered
from feedback.kinds.rate_limit import require_pace
from feedback.kinds.vote import VOTE


class Ranking(Body):
    """Two or more replies to one message, in order."""

    replies: list[str]
    ranks: list[int] = Field(description="One for each reply: 1 is best, equal ranks are ties.")
    all_wrong: bool = Field(False, description="Even the best of them will not do.")
    taken_back: bool = Field(False, description="The ranking of these replies no longer stands.")


def rank(
    store: Database,
    user: User,
    replies: Sequence[str],
    ranks: Sequence[int],
    all_wrong: bool = False,
    taken_back: bool = False,
) -> int:
    """Record ranks (1 is best, equal ranks are ties) of two or more replies to one message; return the row's id.

    `all_wrong` says that even the best of them will not do. Raises `Refused` on a malformed ranking, and `NotFound` as
    `vote` does.
    """
    if len(replies) < 2 or len(set(replies)) != len(replies):
        raise Refused("a ranking needs two or more different replies")
    if len(ranks) != len(replies) or any(type(each) is not int or each < 1 for each in ranks):
        raise Refused("a ranking gives every reply a whole number from 1")
    with store.transaction():
        parents = {conversations.ratable_reply(store, user, reply, taken_back).parent for reply in replies}
        if len(parents) != 1:
            raise Refused("a ranking is of replies to the same message")
        if not taken_back:
            require_pace(store, user)
        row = {"user": user.id, "parent": parents.pop(), "replies": list(replies), "ranks": list(ranks)}
        row |= {"all_wrong": int(all_wrong), "taken_back": int(taken_back)}
        return store.insert(RANKING.table, row | {"question": answered(store, user, replies), "at": now()})


def _replies(row: Row) -> list[str]:
    return list(json.loads(row["replies"]))


def _examples(row: Row, context: Context) -> Iterator[Made]:
    ranked = sorted(zip(json.loads(row["ranks"]), _replies(row), strict=True), key=itemgetter(0))
    whole = {"group": f"ranking {row['id']}", "counts_as": 2 / len(ranked)}
    for (better_rank, better), (worse_rank, worse) in itertools.combinations(ranked, 2):
        if better_rank == worse_rank:
            context.left_out["tie"] += 1
            yield from context.pair(row, better, worse, TIE, **whole)
        else:
            yield from context.pair(row, better, worse, RANKING.name, **whole)
    for _, reply in ranked:
        if row["all_wrong"] and not context.has_said(VOTE, row["user"], reply):
            yield from context.thumb(row, reply, False)


def _ratings(row: Row) -> Iterator[tuple[str, float]]:
    ranked = zip(_replies(row), json.loads(row["ranks"]), strict=True)
    for (left, above), (right, below) in itertools.combinations(ranked, 2):
        yield of_two(left, right, float((above < below) - (above > below)))


def _says(row: Row) -> dict[str, Any]:
    return {"ranks": tuple(json.loads(row["ranks"])), "all_wrong": bool(row["all_wrong"])}


def _possible(said: Annotation) -> bool:
    whole = all(type(each) is int and each >= 1 for each in said.ranks)  # a file may say 1.5, true or NaN
    return len(said.of) > 1 and len(said.ranks) == len(said.of) and whole


def _row(said: Annotation, parent: str | None, replies: list[str]) -> Row:
    return {"parent": parent, "replies": replies, "ranks": list(said.ranks), "all_wrong": int(said.all_wrong)}


def _pairs(whole: Record) -> Iterator[Record]:
    """A ranking as a comparison of every two of its replies."""
    (said,) = whole.said
    for first, second in itertools.combinations(range(len(whole.replies)), 2):
        above, below = said.ranks[first], said.ranks[second]
        choice = "tie" if above == below else "left" if above < below else "right"
        compared = Annotation(COMPARISON.name, (0, 1), said.rater, said.at, choice=choice)
        yield replace(whole, replies=(whole.replies[first], whole.replies[second]), said=(compared,))


RANKING = register(
    Kind(
        table="rankings",
        name="ranking",
        help="Rank two or more replies to one message.",
        body=Ranking,
        write=rank,
        thing=("parent",),
        about="parent",
        of_reply="parent = :parent AND instr(replies, :reply)",
        replies=_replies,
        taken_back=("taken_back", 1),
        json_columns=("replies", "ranks"),
        daily=(Daily("rankings", "rankings"),),
        examples=_examples,
        ratings=_ratings,
        says=_says,
        possible=_possible,
        row=_row,
        instead={"ranked pair": _pairs},
    )
)
