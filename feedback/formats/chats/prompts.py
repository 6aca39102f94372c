"""Evaluation prompts, recognized so that every row is dropped with a clear reason."""

from typing import Any

from feedback.formats.base import Format, Row, is_list
from feedback.formats.record import Dropped, Record


def read(raw: dict[str, Any]) -> Record:
    """Always raises `Dropped`: there is no feedback on any reply."""
    raise Dropped("a prompt for evaluation, without a reply that anybody rated")


ROWS = (Row("turns", where={"turns": is_list}), Row("corrects"))
FORMAT = Format("prompts", "prompts for evaluation (nothing of them is kept)", ROWS, read)
