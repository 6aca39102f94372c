"""What can be refused, and how a program that asked for it sees that.

Each message is one sentence for a person: what cannot be done, why, and the way out.
"""


class Refused(Exception):
    """What was asked cannot be done."""


class NotFound(Refused):
    """No such thing, or it is another person's: the two look the same from outside."""


class Conflict(Refused):
    """It contradicts something that already stands."""


class TooOften(Refused):
    """More than one person may write in a time; `retry_after_s` says when there is room again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(Refused):
    """The database cannot be read or written now (disk full, read-only, locked). Nothing was changed."""
