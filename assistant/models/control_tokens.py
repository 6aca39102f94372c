"""A tokenizer's control tokens, and their removal from people's text, so that nobody can forge a turn."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

SEPARATORS = (" ", "\u200b", "\u2060")  # the first that is in no control token splits them
INSTEAD = "\ufffd"  # replaces a control token of one character


def without_control(tokenizer: Any, text: str) -> str:
    """Text in which every look-alike of a special or added token is split, or replaced if it has one character.

    Added tokens count even if the tokenizer does not list them as special: some families' role tokens are in no such
    list.
    """
    control = _control_tokens(tokenizer, len(tokenizer))
    if control.pattern is None:
        return text
    text = control.pattern.sub(control.taken_apart, text)
    return _without_folded(tokenizer, control, text) if control.folded else text


@dataclass(frozen=True)
class ControlTokens:
    """The tokens that people's text must never become. `pattern` finds the first character of each."""

    pattern: re.Pattern[str] | None
    separator: str  # in none of them, so that splitting one never forms another
    ids: frozenset[int]
    folded: bool  # whether some are matched after the tokenizer has folded the text's letters

    def taken_apart(self, found: re.Match[str]) -> str:
        """A control token's first character and the separator behind it; a single character is replaced instead."""
        return f"{found[0]}{self.separator}" if found["longer"] is not None else INSTEAD


@lru_cache(maxsize=8)  # `size` changes when tokens are added to a tokenizer
def _control_tokens(tokenizer: Any, size: int) -> ControlTokens:
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(each.content for each in added if each.special)}
    # Single letters and spaces that a family added as tokens are not part of its template.
    plain = {token for token in tokenizer.get_added_vocab() if len(token.strip()) < 2} - special
    tokens = sorted({*tokenizer.get_added_vocab(), *special} - plain)
    longer = "|".join(re.escape(token) for token in tokens if len(token) > 1)
    single = "|".join(re.escape(token) for token in tokens if len(token) == 1)
    begins = "".join(sorted({re.escape(token[0]) for token in tokens}))  # so thousands are not tried at every letter
    pattern = rf"(?=[{begins}])(?:(?P<longer>(?={longer or '(?!)'}).)|{single or '(?!)'})"
    return ControlTokens(
        re.compile(pattern, re.DOTALL) if tokens else None,
        next((each for each in SEPARATORS if not any(each in token for token in tokens)), INSTEAD),
        frozenset(tokenizer.convert_tokens_to_ids(tokens)),
        tokenizer.is_fast and tokenizer.backend_tokenizer.normalizer is not None and any(e.normalized for e in added),
    )


def _without_folded(tokenizer: Any, control: ControlTokens, text: str) -> str:
    """Text without anything that becomes a control token once the tokenizer has folded its letters (case, width)."""
    apart = True
    while spans := _control_spans(tokenizer, control, text):
        for start, end in reversed(spans):
            instead = control.separator.join(text[start:end]) if apart else ""
            text = text[:start] + instead + text[max(end, start + 1) :]
        apart = False  # what a separator does not split is removed, so the text shrinks and this ends
    return text


def _control_spans(tokenizer: Any, control: ControlTokens, text: str) -> list[tuple[int, int]]:
    """The spans of a text that the tokenizer reads as control tokens."""
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    both = zip(read["input_ids"], read["offset_mapping"], strict=True)
    return [span for token, span in both if token in control.ids]
