"""The sampling settings of one reply: how freely it is drawn, where it ends, which schema it must follow.

The names and meanings are those of OpenAI's API and, for what that lacks, of vLLM's.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from assistant.engine.sampling.grammar import grammar_of
from feedback.errors import Refused

MOST_BEAMS = 8
MOST_STOPS = 4
LONGEST_STOP = 1000  # characters
MOST_LIKELIEST = 20


@dataclass(frozen=True)
class Token:
    """One token of a reply: its log-prob in nats under the model, and under the distribution it was drawn from.

    `likeliest` are the most probable tokens in its place, with their log-probs under the model, if asked for.
    """

    id: int
    logprob: float
    sampled_logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Sampling:
    """The settings a person or program may ask for. `temperature` 0 is greedy; with `seed` None, one is drawn."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 512
    seed: int | None = None
    beams: int = 1  # over 1: beam search, deterministic
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # of the likeliest token's probability
    repetition_penalty: float = 1.0  # over the tokens of prompt and reply
    presence_penalty: float = 0.0  # this and the next over the reply's tokens alone
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    logit_bias: tuple[tuple[int, float], ...] = ()  # given as a mapping of token ids or as pairs
    top_logprobs: int = 0  # the number of likeliest tokens to report in each place
    json_schema: str | None = None  # as JSON text
    ignore_end: bool = False  # an end of turn is a token like any other; for measurements

    def __post_init__(self) -> None:
        _require_number("temperature", self.temperature, 0, 2)
        if not (_number(self.top_p) and 0 < self.top_p <= 1):
            raise Refused(f"top_p is a number above 0 and up to 1, not {self.top_p!r}", "top_p")
        if not (type(self.max_tokens) is int and self.max_tokens >= 1):
            raise Refused(f"max_tokens is a whole number from 1, not {self.max_tokens!r}", "max_tokens")
        if self.seed is not None and not (type(self.seed) is int and 0 <= self.seed < 2**63):
            raise Refused(f"a seed is a whole number from 0 and under 2**63, not {self.seed!r}", "seed")
        _require_whole("beams", self.beams, 1, MOST_BEAMS)
        if not (type(self.top_k) is int and self.top_k >= 0):
            raise Refused(f"top_k is a whole number from 0, which is off, not {self.top_k!r}", "top_k")
        _require_number("min_p", self.min_p, 0, 1)
        if not (_number(self.repetition_penalty) and 0 < self.repetition_penalty <= 2):
            sentence = f"repetition_penalty is a number above 0 and up to 2, not {self.repetition_penalty!r}"
            raise Refused(sentence, "repetition_penalty")
        _require_number("presence_penalty", self.presence_penalty, -2, 2)
        _require_number("frequency_penalty", self.frequency_penalty, -2, 2)
        object.__setattr__(self, "stop", _stops(self.stop))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        _require_whole("top_logprobs", self.top_logprobs, 0, MOST_LIKELIEST)
        if self.json_schema is not None:
            if not isinstance(self.json_schema, str):
                sentence = f"json_schema is a JSON schema, an object, as JSON text, not {self.json_schema!r}"
                raise Refused(sentence, "json_schema")
            try:
                grammar_of(self.json_schema)
            except Refused as error:
                raise Refused(str(error), "json_schema") from error
        if self.beams > 1:
            self._require_plain()

    def _require_plain(self) -> None:
        """Raise `Refused` on settings that beam search, which ranks whole replies by the model alone, cannot honour."""
        plain = Sampling()
        for name in (*SHAPING, "top_logprobs"):
            if getattr(self, name) != getattr(plain, name):
                raise Refused(f"{name} does not go with beams over 1; leave out one of the two", name)

    def as_dict(self) -> dict[str, Any]:
        """The settings as a dictionary, for the reply's record."""
        return asdict(self)


# The settings that change which token is drawn, besides temperature and top_p.
SHAPING = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "json_schema",
)


def _number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _require_number(name: str, value: object, lowest: int, highest: int) -> None:
    if not (_number(value) and lowest <= value <= highest):  # type: ignore[operator]
        raise Refused(f"{name} is a number from {lowest} to {highest}, not {value!r}", name.split()[0])


def _require_whole(name: str, value: object, lowest: int, highest: int) -> None:
    if not (type(value) is int and lowest <= value <= highest):
        raise Refused(f"{name} is a whole number from {lowest} to {highest}, not {value!r}", name)


def _stops(asked: object) -> tuple[str, ...]:
    """Check stop strings and return them as a tuple. Raises `Refused` on bad ones."""
    if not isinstance(asked, list | tuple) or len(asked) > MOST_STOPS:
        raise Refused(f"stop is a list of at most {MOST_STOPS} strings, not {str(asked)[:80]!r}", "stop")
    for each in asked:
        if not (isinstance(each, str) and 0 < len(each) <= LONGEST_STOP):
            sentence = f"a stop string has 1 to {LONGEST_STOP:,} characters; this is none: {str(each)[:80]!r}"
            raise Refused(sentence, "stop")
    return tuple(asked)


def _biases(asked: object) -> tuple[tuple[int, float], ...]:
    """Check biases and return them sorted by token id. Raises `Refused` on bad ones."""
    pairs = asked.items() if isinstance(asked, Mapping) else asked
    try:
        biases: dict[Any, Any] = dict(pairs)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        sentence = f"logit_bias maps token ids to numbers; this is none: {str(asked)[:80]!r}"
        raise Refused(sentence, "logit_bias") from None
    for token, bias in biases.items():
        if not (type(token) is int and 0 <= token < 2**31):
            raise Refused(f"logit_bias maps token ids, whole numbers from 0, and {token!r} is none", "logit_bias")
        _require_number(f"logit_bias of token {token}", bias, -100, 100)
    return tuple(sorted(biases.items()))
