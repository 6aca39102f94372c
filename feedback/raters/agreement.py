"""Rater statistics: agreement with others, consistency with oneself, biases, and gold pairs.

Only current feedback that may be used is counted, and only what people gave here: in an imported file the preferred
reply often comes first, and nobody saw it on the left.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from feedback.accounts import consent
from feedback.accounts.users import User
from feedback.database.database import Database, now
from feedback.errors import NotFound, Refused
from feedback.kinds import current
from feedback.kinds.comparison import COMPARISON
from feedback.raters.reliability import PEOPLE, Rating, Reliability, heard, rating, reliabilities, shared_ratings

OF_PEOPLE = f"u.kind IN {PEOPLE} AND {consent.usable('t.user', 'c')}"  # SQL, over `current.with_whose`


@dataclass(frozen=True)
class Share:
    """`part` of `whole`, with the 95 % Wilson interval of the share."""

    part: int
    whole: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """From 0 to 1; 0 if `whole` is 0."""
        return self.part / self.whole if self.whole else 0.0


@dataclass(frozen=True)
class Rater:
    """One person as a rater; `label` is "new", "anonymous", "model", "imported" or empty."""

    name: str
    label: str
    reliability: Reliability | None
    gold: Share


@dataclass(frozen=True)
class Report:
    """Statistics of all raters. `alpha` is Krippendorff's: 1 for full agreement, 0 for chance."""

    raters: tuple[Rater, ...]
    alpha: float | None
    agreement: Share  # of two people on one pair or reply, without ties
    consistency: Share  # of one person with themselves, on repeated pairs
    left: Share  # of choices that went to the left reply
    longer: Share  # of choices that went to the longer reply


def share(part: int, whole: int) -> Share:
    """A share with its interval, which is 0 to 1 if `whole` is 0."""
    from scipy.stats import binomtest

    if not whole:
        return Share(0, 0, 0.0, 1.0)
    interval = binomtest(part, whole).proportion_ci(method="wilson")
    return Share(part, whole, float(interval.low), float(interval.high))


def agreement(ratings: Iterable[Rating]) -> Share:
    """How often two people who rated the same item, neither as a tie, agree."""
    of: dict[str, dict[int, float]] = {}
    for each in ratings:
        if each.value:
            of.setdefault(each.item, {})[each.user] = each.value
    pairs = [a == b for said in of.values() for a, b in combinations(said.values(), 2)]
    return share(sum(pairs), len(pairs))


def alpha(ratings: Sequence[Rating]) -> float | None:
    """Krippendorff's alpha for ordinal values (down, tie, up); None with fewer than two values or raters."""
    import krippendorff
    import numpy as np

    values = sorted({each.value for each in ratings})
    if len(values) < 2 or len({each.user for each in ratings}) < 2:
        return None
    items, what = np.unique([each.item for each in ratings], return_inverse=True)
    counts = np.zeros((len(items), len(values)))
    for item, each in zip(what, ratings, strict=True):
        counts[item, values.index(each.value)] += 1
    return float(krippendorff.alpha(value_counts=counts, value_domain=values, level_of_measurement="ordinal"))


def consistency(store: Database) -> Share:
    """How often a person who was deliberately asked about a pair again chooses the same reply."""
    sql = f"""SELECT t.user, t.left_reply, t.right_reply, t.choice, q.why
        FROM {COMPARISON.table} t JOIN questions q ON q.id = t.question {current.with_whose(COMPARISON)}
        WHERE {OF_PEOPLE} AND t.choice IN ('left', 'right', 'taken_back') AND (t.user, q.parent) IN
        (SELECT user, parent FROM questions WHERE why = 'repeat' AND answered_at IS NOT NULL) ORDER BY t.id"""
    before: dict[tuple[int, frozenset[str]], str] = {}
    same: dict[tuple[int, frozenset[str]], list[bool]] = {}
    for row in store.rows(sql):
        of = (row["user"], frozenset((row["left_reply"], row["right_reply"])))
        if row["choice"] == "taken_back":
            before.pop(of, None)
            same.pop(of, None)
            continue
        chosen = row[f"{row['choice']}_reply"]
        if row["why"] == "repeat" and of in before:
            same.setdefault(of, []).append(before[of] == chosen)
        before[of] = chosen
    return share(sum(map(sum, same.values())), sum(map(len, same.values())))


def biases(store: Database) -> tuple[Share, Share]:
    """How often the left reply was chosen, and how often the longer one if the two differ in length."""
    rows = [row for row in heard(store, COMPARISON) if row["choice"] in ("left", "right")]
    told = current.briefs(store, [row[side] for row in rows for side in ("left_reply", "right_reply")])
    chosen = [row["choice"] == "left" for row in rows]
    longer_by = [told[row["left_reply"]].length - told[row["right_reply"]].length for row in rows]
    longer = [(by > 0) == left for by, left in zip(longer_by, chosen, strict=True) if by]
    return share(sum(chosen), len(chosen)), share(sum(longer), len(longer))


def add_gold(store: Database, user: User, better: str, worse: str) -> int:
    """Record that one of two replies to a message is beyond doubt better, as an attention check; return the row's id.

    Raises `NotFound` if there are no such replies, and `Refused` if they answer different messages or the user is not
    an operator.
    """
    rows = store.rows("SELECT id, parent FROM messages WHERE id IN (?, ?) AND role = 'assistant'", better, worse)
    if len(rows) != 2:
        raise NotFound(f"there are no two replies {better!r} and {worse!r}")
    if rows[0]["parent"] != rows[1]["parent"]:
        raise Refused("gold is of two replies to the same message")
    if not user.may("operator"):
        raise Refused("only an operator says what is gold")
    return store.insert("gold", {"better": better, "worse": worse, "user": user.id, "at": now()})


def gold(store: Database) -> dict[int, Share]:
    """How often each person chose the better reply of a gold pair."""
    sql = f"""SELECT t.user, (CASE t.choice WHEN 'left' THEN t.left_reply ELSE t.right_reply END) = g.better AS right
        FROM gold g JOIN {COMPARISON.table} t ON t.left_reply = g.better AND t.right_reply = g.worse
        OR t.left_reply = g.worse AND t.right_reply = g.better {current.with_whose(COMPARISON)}
        WHERE t.choice IN ('left', 'right') AND {OF_PEOPLE} AND {current.stands(COMPARISON)}"""
    whole, part = Counter[int](), Counter[int]()
    for row in store.rows(sql):
        whole[row["user"]] += 1
        part[row["user"]] += row["right"]
    return {user: share(part[user], count) for user, count in whole.items()}


def report(store: Database) -> Report:
    """The full report, raters by name; only people who consent to the use of their ratings are named."""
    ratings = shared_ratings(store)
    known = {each.user: each for each in reliabilities(ratings)}
    golden = gold(store)
    left, longer = biases(store)
    rated = " UNION ".join(f"SELECT user FROM {kind.table}" for kind in rating())
    sql = f"""SELECT id, name, kind FROM users WHERE id IN ({rated})
        AND forgotten_at IS NULL AND {consent.given("users.id")} ORDER BY name"""
    raters = tuple(_rater(row, known.get(row["id"]), golden.get(row["id"], share(0, 0))) for row in store.rows(sql))
    return Report(raters, alpha(ratings), agreement(ratings), consistency(store), left, longer)


def _rater(row: dict[str, Any], known: Reliability | None, golden: Share) -> Rater:
    new = "new" if known is None or known.new else ""
    return Rater(row["name"], new if row["kind"] == "person" else row["kind"], known, golden)
