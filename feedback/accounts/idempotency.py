"""Idempotency keys: a request that is sent twice acts once.

A request carries a key of the caller's choosing. The first answer under that key is stored in the same transaction as
the request's writes, and returned again when the request is repeated.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from feedback.accounts.users import User
from feedback.database.database import Database, now
from feedback.errors import Conflict, Refused

LONGEST_KEY = 200
USED = "this Idempotency-Key was used for a different request; choose a new one"


def answered(store: Database, user: User, key: str, request: object) -> dict[str, Any] | None:
    """The stored answer to this request, if it was made before.

    Raises `Refused` on an unusable key, `Conflict` when the key was used for a different request.
    """
    if not key or len(key) > LONGEST_KEY or not key.isprintable():
        raise Refused(f"send an Idempotency-Key header of 1 to {LONGEST_KEY} printable characters")
    sql = "SELECT request_sha256, answer FROM answered_requests WHERE user = ? AND key = ?"
    row = store.row(sql, user.id, key)
    if row is None:
        return None
    if row["request_sha256"] != digest(request):
        raise Conflict(USED)
    answer: dict[str, Any] = json.loads(row["answer"])
    return answer


def once(
    store: Database, user: User, key: str, request: object, act: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """Act and store the answer, or use the stored one; return the answer, and whether it is a repetition.

    `act` writes inside the same transaction, so its writes and its answer are saved together or not at all. It should
    be quick, because all other writes wait for it. Raises what `answered` and `act` raise.
    """
    with store.transaction():
        before = answered(store, user, key, request)
        if before is not None:
            return before, True
        answer = act()
        row = {"user": user.id, "key": key, "request_sha256": digest(request), "answer": answer, "at": now()}
        store.insert("answered_requests", row)
    return answer, False


def digest(request: object) -> str:
    """A hash by which a repeated request is known."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
