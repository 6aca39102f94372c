"""Critiques: what is wrong with a reply, in words. They teach nothing."""

from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.kinds.base import Daily, Kind, register
from feedback.kinds.correction import Words, possible, row_of, say, says


def critique(store: Database, user: User, reply: str, text: str) -> int:
    """Record what is wrong with a reply (empty: taken back) and return the row's id. Raises as `vote` does."""
    return say(store, CRITIQUE, user, reply, text)


CRITIQUE = register(
    Kind(
        table="critiques",
        name="critique",
        help="Say in words what is wrong with a reply.",
        body=Words,
        write=critique,
        taken_back=("text", ""),
        forgotten={"text": ""},
        quotes=("text",),
        daily=(Daily("critiques", "critiques"),),
        says=says,
        possible=possible,
        row=row_of,
    )
)
