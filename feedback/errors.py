"""The exceptions for requests that are refused.

Each message is one sentence for a person: what cannot be done, why, and what to do instead.
"""


class Refused(Exception):
    """The request cannot be carried out. `param` is the field of the request that is at fault, where there is one."""

    def __init__(self, message: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotFound(Refused):
    """It does not exist, or it belongs to another person: callers cannot tell which."""


class Conflict(Refused):
    """The request contradicts the current state."""


class TooLong(Refused):
    """A conversation has more tokens than the model takes: `tokens`, or `more` than that."""

    def __init__(self, tokens: int, longest: int, more: bool = False) -> None:
        self.tokens = f"more than {tokens:,}" if more else f"{tokens:,}"
        super().__init__(f"this message is too long: {self.tokens} tokens, and the model takes at most {longest:,}")


class TooOften(Refused):
    """A person has reached the rate limit; they may write again in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(Refused):
    """The database cannot be read or written now (disk full, read-only, locked). Nothing was changed."""
