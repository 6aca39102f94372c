"""Stop strings: where a text ends, and what of it may be shown while it grows."""

from hypothesis import given
from hypothesis import strategies as st

from assistant.engine.sampling.stop_strings import before_stop, surely_shown


def test_the_first_stop_string_in_the_text_counts() -> None:
    assert before_stop("one two three", ["three", "two"]) == "one "
    assert before_stop("one two three", ["four"]) is None
    assert before_stop("stop", ["stop"]) == ""


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    assert surely_shown("a </en", ["</end>"]) == "a "
    assert surely_shown("a <<", ["<<<"]) == "a "
    assert surely_shown("a b", ["</end>"]) == "a b"
    assert surely_shown("aab", ["aabX", "bY"]) == ""
    assert surely_shown("text", []) == "text"


@given(st.text("ab<", max_size=30), st.lists(st.text("ab<", min_size=1, max_size=5), max_size=4))
def test_a_growing_text_is_never_shown_past_its_stop_and_never_taken_back(text: str, stops: list[str]) -> None:
    shown = ""
    for end in range(len(text) + 1):
        cut = before_stop(text[:end], stops)
        now = surely_shown(text[:end], stops) if cut is None else cut
        assert now.startswith(shown)
        shown = now
        if cut is not None:
            break
    if before_stop(text, stops) is None:
        assert text.startswith(shown)
