"""The rules for new passwords, and their hashing.

The rules are those of NIST SP 800-63B-4 as far as they fit a server that limits guesses: a minimum length, no rules of
composition, nothing common or close to the person's own name (by zxcvbn's lists of what people choose), at least 64
characters allowed.
"""

from collections.abc import Sequence

from argon2 import PasswordHasher
from zxcvbn import zxcvbn

from feedback.errors import Refused

LEAST = 10  # characters
MOST = 1024
FEWEST_GUESSES = 1_000_000  # what an attacker who knows how people choose would need
JUDGED = 72  # characters; zxcvbn's time grows with the square of them


def require_usable(password: str, name: str) -> None:
    """Raises `Refused` on a new password of person `name` that is too short, too long or easily guessed."""
    if len(password) < LEAST:
        raise Refused(f"a password has at least {LEAST} characters; a few words do well")
    if len(password) > MOST:
        raise Refused(f"a password has at most {MOST:,} characters")
    try:
        password.encode()
    except UnicodeEncodeError as error:
        raise Refused("a password is text in UTF-8") from error
    if len(beside(password, [*name.split(), "nightschool"])) < LEAST // 2:
        raise Refused("this password is little more than a name that everybody here knows")
    found = zxcvbn(password[:JUDGED], user_inputs=[name, *name.split(), "nightschool"])
    if found["guesses"] < FEWEST_GUESSES:
        why = found["feedback"]["warning"].rstrip(".")
        because = f" ({why[:1].lower()}{why[1:]})" if why else ""
        raise Refused(f"this password is easily guessed{because}; take a few words that do not belong together")


def beside(password: str, names: Sequence[str]) -> str:
    """The letters and digits of a password that are not part of those names."""
    rest = password.casefold()
    for each in names:
        rest = rest.replace(each.casefold(), " ")
    return "".join(filter(str.isalnum, rest))


def hashed(password: str, name: str) -> str:
    """The salted argon2 hash of a new password. Raises `Refused` on one that may not be chosen."""
    require_usable(password, name)
    return PasswordHasher().hash(password)
