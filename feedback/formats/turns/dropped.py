"""The exception for a row that cannot be kept."""


class Dropped(Exception):
    """A row that cannot be kept; the message is the reason, in the same words for all such rows."""
