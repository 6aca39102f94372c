"""Whole numbers as people and programs write them."""

MOST_DIGITS = 18  # so that it fits into 64 bits


def natural(text: str) -> int | None:
    """The whole number from 0 that a text is; None if it is anything else, or has more than `MOST_DIGITS` digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS else None
