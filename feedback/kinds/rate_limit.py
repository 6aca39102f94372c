"""The hourly limit on one person's feedback.

It applies to everybody except the owner of a machine without accounts. Taking feedback back is never limited, nor are
imports, which only an operator makes.
"""

from datetime import UTC, datetime, timedelta

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import TooOften
from feedback.kinds.base import spoken
from feedback.records import settings

HOUR_S = 3600


def require_pace(store: Database, user: User) -> None:
    """Raises `TooOften` if this person has reached the hourly limit. Call inside the write that adds the feedback."""
    most = settings.setting(store, "feedback_per_hour")
    if not most or (user.name == users.OWNER and not users.has_accounts(store)):
        return
    moment = datetime.now(UTC)
    since = (moment - timedelta(seconds=HOUR_S)).isoformat(timespec="milliseconds")
    said = store.rows(f"{given()} ORDER BY at DESC LIMIT :most", {"user": user.id, "since": since, "most": most})
    if len(said) < most:
        return
    wait_s = int((datetime.fromisoformat(said[-1]["at"]) - moment).total_seconds()) + HOUR_S + 1
    minutes = max(1, round(wait_s / 60))
    raise TooOften(
        f"you have given {most} pieces of feedback in the last hour, and more are not taken; go on in {minutes} min",
        max(1, wait_s),
    )


def given() -> str:
    """SQL: the times at which a person (:user) gave feedback after :since; each part is served by an index."""
    return " UNION ALL ".join(
        f"SELECT at FROM {kind.table} WHERE user = :user AND at > :since AND {kind.gives()}" for kind in spoken()
    )
