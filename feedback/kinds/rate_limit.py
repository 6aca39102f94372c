"""How much feedback one person gives in an hour: more than anybody could mean is refused.

It holds for everybody but the owner of a machine without accounts. What is taken back is always heard, and imports are
an operator's own act.
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
    """To be called inside the write that gives feedback. Raises `TooOften` when this person has given their hour's."""
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
    """SQL: when a person (:user) gave feedback since a moment (:since), each by an index."""
    return " UNION ALL ".join(
        f"SELECT at FROM {kind.table} WHERE user = :user AND at > :since AND {kind.gives()}" for kind in spoken()
    )
