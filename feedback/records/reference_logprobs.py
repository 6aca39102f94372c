"""A cache of the reference model's log-probs of replies, so that later nights need not recompute them.

A row is for token ids under one model, number format and template; it does not say whose reply it was.
"""

import itertools
from collections.abc import Iterable, Mapping

from feedback.database.database import Database

AT_ONCE = 500  # keys per query


def known(store: Database, reference: str, template_sha256: str, replies: Iterable[str]) -> dict[str, bytes]:
    """The cached log-probs of these replies (float32, nats, one per token), by reply hash."""
    found: dict[str, bytes] = {}
    wanted = iter(sorted(set(replies)))
    while some := list(itertools.islice(wanted, AT_ONCE)):
        marks = ", ".join("?" * len(some))
        sql = f"""SELECT reply_sha256, logprobs FROM reference_logprobs
            WHERE reference = ? AND template_sha256 = ? AND reply_sha256 IN ({marks})"""
        found |= {row["reply_sha256"]: row["logprobs"] for row in store.rows(sql, reference, template_sha256, *some)}
    return found


def keep(store: Database, reference: str, template_sha256: str, logprobs: Mapping[str, bytes]) -> None:
    """Cache log-probs by reply hash; existing rows stay as they are."""
    columns = "reply_sha256, reference, template_sha256, logprobs"
    sql = f"INSERT OR IGNORE INTO reference_logprobs ({columns}) VALUES (?, ?, ?, ?)"
    rows = [(reply, reference, template_sha256, each) for reply, each in logprobs.items()]
    with store.transaction() as db:
        db.conn.executemany(sql, rows)
