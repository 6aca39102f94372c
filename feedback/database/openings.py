"""The part of the split that a conversation belongs to, from a keyed hash of its opening, a number in [0, 1).

Anybody who could compute the number could choose openings that judge adapters. So it is keyed with a secret kept in the
database, where backups include it and it cannot be lost on its own. Older versions used a plain hash; the openings
placed by it are listed in `split_openings`, under keyed names, and stay in their part.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable

from sqlite_utils import Database

BEGINNING = 200  # characters; conversations that share this many have the same opening
JUDGING = 0.15  # the share of conversations, and of people, whose feedback judges
STOPPING = 0.10  # the share of conversations whose feedback decides early stopping
FIRST_SAID = """WITH RECURSIVE beginning (id, role, content) AS (
    SELECT id, role, content FROM messages WHERE parent IS NULL
    UNION ALL SELECT m.id, m.role, m.content FROM beginning b JOIN messages m ON m.parent = b.id WHERE b.role <> 'user'
) SELECT content FROM beginning WHERE role = 'user'"""


def alike(text: str) -> str:
    """The opening of a conversation with this first message: `BEGINNING` characters, case and spaces folded."""
    return " ".join(text.casefold().split())[:BEGINNING]


def number(secret: str, text: str) -> float:
    """A number in [0, 1) determined by the text and the secret."""
    return int.from_bytes(keyed(secret, text)[:8]) / 2**64


def keyed(secret: str, text: str) -> bytes:
    """HMAC-SHA256 of a text."""
    return hmac.digest(secret.encode(), text.encode(), "sha256")


def name_of_beginning(secret: str, beginning: str) -> bytes:
    """The name of the beginning of an imported conversation: 8 bytes of an HMAC, never the text."""
    return keyed(secret, f"beginning {beginning}")[:8]


def part_at(place: float) -> str:
    """ "held_out", "stopping" or "training"."""
    return "held_out" if place < JUDGING else "stopping" if place < JUDGING + STOPPING else "training"


def name_of(secret: str, opening: str) -> str:
    """The name of an opening in `split_openings`: an HMAC, never the text."""
    return keyed(secret, f"name {opening}").hex()


def new_secret() -> str:
    """256 random bits, in hexadecimal."""
    return secrets.token_hex(32)


def write_down(db: Database) -> None:
    """Make the secret, and record the part of every opening already in the ledger, by the plain hash."""
    secret = new_secret()
    db.conn.execute("INSERT INTO split_secret (id, secret) VALUES (1, ?)", (secret,))
    openings = {alike(row[0]) for row in db.conn.execute(FIRST_SAID)}
    if openings:
        openings.add("")  # the opening of conversations without a user message
    rows = [(name_of(secret, each), part_at(_plain_number(each))) for each in sorted(openings)]
    db.conn.executemany("INSERT INTO split_openings (opening, part) VALUES (?, ?)", rows)


def _plain_number(opening: str) -> float:
    """The number that versions without a secret used."""
    return int.from_bytes(hashlib.sha256(f"conversation {opening}".encode()).digest()[:8]) / 2**64


def forget(db: Database, texts: Iterable[str]) -> None:
    """Remove the records of those texts' openings that no conversation has any more."""
    row = db.conn.execute("SELECT secret FROM split_secret").fetchone()
    left = {alike(text[0]) for text in db.conn.execute(FIRST_SAID)}
    gone = {alike(each) for each in texts} - left
    db.conn.executemany("DELETE FROM split_openings WHERE opening = ?", [(name_of(row[0], each),) for each in gone])
