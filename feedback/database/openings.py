"""Where a conversation belongs by how it opens: a number from 0 up to 1 that nobody outside can work out.

Whoever could would choose openings that judge adapters. So the number is keyed by a secret of the data folder, which
stands in its database: a backup has it, and nobody can lose it without everything else. Before there was one the number
was a plain hash; what was placed by that is written down in `split_openings`, keyed too, and stays where it is.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable

from sqlite_utils import Database

BEGINNING = 200  # characters: conversations that share so many open alike
JUDGING = 0.15  # the share of conversations, and of people, whose feedback judges
STOPPING = 0.10  # the share of conversations whose feedback says when training has gained all it can
FIRST_SAID = """WITH RECURSIVE beginning (id, role, content) AS (
    SELECT id, role, content FROM messages WHERE parent IS NULL
    UNION ALL SELECT m.id, m.role, m.content FROM beginning b JOIN messages m ON m.parent = b.id WHERE b.role <> 'user'
) SELECT content FROM beginning WHERE role = 'user'"""


def alike(text: str) -> str:
    """What a person said first, or the long beginning of it, without what differs in case or spaces."""
    return " ".join(text.casefold().split())[:BEGINNING]


def number(secret: str, text: str) -> float:
    """A number from 0 up to 1 that this text always gets under this secret, and another text another."""
    return int.from_bytes(keyed(secret, text)[:8]) / 2**64


def keyed(secret: str, text: str) -> bytes:
    """HMAC-SHA256 of a text."""
    return hmac.digest(secret.encode(), text.encode(), "sha256")


def part_at(place: float) -> str:
    """ "held_out", "stopping" or "training"."""
    return "held_out" if place < JUDGING else "stopping" if place < JUDGING + STOPPING else "training"


def name_of(secret: str, opening: str) -> str:
    """What an opening is called in `split_openings`: never its text."""
    return keyed(secret, f"name {opening}").hex()


def new_secret() -> str:
    """256 random bits."""
    return secrets.token_hex(32)


def write_down(db: Database) -> None:
    """Make the secret, and write down where all that is in the ledger already was placed without it."""
    secret = new_secret()
    db.conn.execute("INSERT INTO split_secret (id, secret) VALUES (1, ?)", (secret,))
    openings = {alike(row[0]) for row in db.conn.execute(FIRST_SAID)}
    if openings:
        openings.add("")  # of conversations in which no person has said anything
    rows = [(name_of(secret, each), part_at(_plain_number(each))) for each in sorted(openings)]
    db.conn.executemany("INSERT INTO split_openings (opening, part) VALUES (?, ?)", rows)


def _plain_number(opening: str) -> float:
    """The number as it was before there was a secret."""
    return int.from_bytes(hashlib.sha256(f"conversation {opening}".encode()).digest()[:8]) / 2**64


def forget(db: Database, texts: Iterable[str]) -> None:
    """Remove what was written down of openings that nobody's conversation has any more."""
    row = db.conn.execute("SELECT secret FROM split_secret").fetchone()
    left = {alike(text[0]) for text in db.conn.execute(FIRST_SAID)}
    gone = {alike(each) for each in texts} - left
    db.conn.executemany("DELETE FROM split_openings WHERE opening = ?", [(name_of(row[0], each),) for each in gone])
