"""Grammars for replies that must be JSON of a given schema: the tokens that may come next.

The schema is followed by construction, token by token, whatever the model would prefer. llguidance does the work.
"""

import json
import threading
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from feedback.errors import Refused

ANY_OBJECT = '{"type": "object"}'
LONGEST_SCHEMA = 100_000  # characters
# Between two parts, at most a new line and its indent: a small model that may write spaces forever does.
WHITESPACE = r"\n? {0,12}"


@lru_cache(maxsize=64)
def grammar_of(schema: str) -> str:
    """A schema's text as a grammar of llguidance. Raises `Refused`, saying what in it cannot be followed."""
    if len(schema) > LONGEST_SCHEMA:
        raise Refused(f"json_schema has at most {LONGEST_SCHEMA:,} characters, not {len(schema):,}")
    try:
        json.loads(schema)
        grammar: str = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE})
    except (ValueError, RecursionError):
        raise Refused(f"json_schema is a JSON schema, an object, as JSON text, not {schema[:60]!r}") from None
    if wrong := LLMatcher.validate_grammar(grammar):
        raise Refused(f"json_schema cannot be followed: {sentence(wrong)}")
    return grammar


def sentence(message: str) -> str:
    """A message of many lines as one, cut to 200 characters."""
    return " ".join(message.split())[:200]


class Grammars:
    """JSON schemas for one model's vocabulary. Share one between all replies; it is prepared when first needed."""

    def __init__(self, tokenizer: Any, end_ids: frozenset[int], vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._end_ids = sorted(end_ids)
        self._size = max(vocabulary, len(tokenizer))  # a model's may be padded
        self._vocabulary: LLTokenizer | None = None
        self._making = threading.Lock()

    def begin(self, schema: str) -> "Grammar":
        """Begin a schema for one reply. Raises `Refused` with the reason if the schema cannot be followed."""
        matcher = LLMatcher(self._ready(), grammar_of(schema), log_level=0)
        if matcher.is_error():
            raise Refused(f"json_schema cannot be followed: {sentence(matcher.get_error())}")
        return Grammar(matcher)

    def _ready(self) -> LLTokenizer:
        from llguidance import hf  # imports transformers

        with self._making:  # it takes a quarter of a second
            if self._vocabulary is None:
                try:
                    self._vocabulary = hf.from_tokenizer(self._tokenizer, self._size, self._end_ids)
                except ValueError as error:
                    raise Refused(f"this model cannot be held to a JSON schema: {sentence(str(error))}") from error
            return self._vocabulary


class Grammar:
    """The progress of one reply through its schema."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def failure(self) -> str | None:
        """The reason the schema could not be followed to the end, if any; then only an end of turn is allowed."""
        return sentence(self._matcher.get_error()) if self._matcher.is_error() else None

    def allowed(self, vocabulary: int) -> Tensor:
        """The mask (V,) bool of the model's tokens that may come next; the end of turn once the JSON is complete."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.unpackbits(bits, count=vocabulary, bitorder="little")  # zeros past the tokenizer's last
        return torch.from_numpy(mask).bool()

    def accept(self, token: int) -> None:
        """Advance by one token."""
        self._matcher.consume_token(token)
