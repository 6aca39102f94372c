"""What the reference says of replies: log-probs that a night has computed and the next need not.

A row is about token ids under one model, in one number format and template; whose reply it was is not in it.
"""

import itertools
from collections.abc import Iterable, Mapping

from feedback.database.database import Database

AT_ONCE = 500  # keys in one query


def known(store: Database, reference: str, template_sha256: str, replies: Iterable[str]) -> dict[str, bytes]:
    """The log-probs that are kept of these replies (float32, nats, a token each), by the replies' hashes."""
    found: dict[str, bytes] = {}
    wanted = iter(sorted(set(replies)))
    while some := list(itertools.islice(wanted, AT_ONCE)):
        marks = ", ".join("?" * len(some))
        sql = f"""SELECT reply_sha256, logprobs FROM reference_logprobs
            WHERE reference = ? AND template_sha256 = ? AND reply_sha256 IN ({marks})"""
        found |= {row["reply_sha256"]: row["logprobs"] for row in store.rows(sql, reference, template_sha256, *some)}
    return found


def keep(store: Database, reference: str, template_sha256: str, logprobs: Mapping[str, bytes]) -> None:
    """Keep log-probs by their replies' hashes; what is kept already stays."""
    columns = "reply_sha256, reference, template_sha256, logprobs"
    sql = f"INSERT OR IGNORE INTO reference_logprobs ({columns}) VALUES (?, ?, ?, ?)"
    rows = [(reply, reference, template_sha256, each) for reply, each in logprobs.items()]
    with store.transaction() as db:
        db.conn.executemany(sql, rows)
