"""Prompts for evaluation, of which nothing is kept."""

from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Dropped, Record


def read(raw: dict[str, Any]) -> Record:
    """Prompts for evaluation: nothing is said of any reply."""
    raise Dropped("a prompt for evaluation, without a reply that anybody rated")


FORMAT = Format("prompts", "prompts for evaluation (nothing of them is kept)", (Row("turns"), Row("corrects")), read)
