"""The exceptions for requests that are refused.

Each message is one sentence for a person: what cannot be done, why, and what to do instead.
"""


class Refused(Exception):
    """The request cannot be carried out."""


class NotFound(Refused):
    """It does not exist, or it belongs to another person: callers cannot tell which."""


class Conflict(Refused):
    """The request contradicts the current state."""


class TooOften(Refused):
    """A person has reached the rate limit; they may write again in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(Refused):
    """The database cannot be read or written now (disk full, read-only, locked). Nothing was changed."""
