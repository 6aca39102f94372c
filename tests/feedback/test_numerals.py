"""Whole numbers as they are written, wherever they are read."""

import pytest

from feedback.errors import Refused
from feedback.formats.columns import format_of_columns
from feedback.formats.pairs.argilla import _order
from feedback.formats.turns.dropped import Dropped
from feedback.numerals import natural
from feedback.records.settings import SETTINGS
from ui.chat.handlers import sampling_of
from ui.operate.handlers import as_value
from ui.operate.schedule_form import whole_number
from ui.schedule.crontab import weekday_number

ODD = ["-1", "1.5", "²", "٣", "1_000", "9" * 19, "9" * 5000, "x"]


@pytest.mark.parametrize("text", ODD)
def test_what_is_no_whole_number_is_none_and_never_an_error_of_pythons(text: str) -> None:
    assert natural(text) is None
    assert as_value(SETTINGS["retention_days"], text) == text  # to be refused as such
    with pytest.raises(Refused, match="a seed is a whole number"):
        sampling_of((1.0, 1.0, 10, text, False, 1))
    with pytest.raises(Refused, match="is a whole number of minutes"):
        whole_number(text, "Grace", "minutes")
    with pytest.raises(ValueError, match="is not a weekday"):
        weekday_number(text)
    row = {"prompt": "q", "answers": ["a", "b"]}
    with pytest.raises(Dropped, match="not text"):
        format_of_columns({"prompt": "prompt", "completion": f"answers.{text}"}).read(row)


def test_whole_numbers_are_read() -> None:
    assert [natural(each) for each in ("0", "007", "9" * 18)] == [0, 7, 10**18 - 1]
    assert sorted(["response_10", "response_9", "response_b"], key=_order)[-1] == "response_10"
