"""A chat completion request as OpenAI's clients send it, and the check of what is supported."""

import json
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from assistant.engine.sampling.grammar import ANY_OBJECT
from assistant.engine.sampling.params import MOST_LIKELIEST, MOST_STOPS, Sampling
from feedback.errors import Refused
from feedback.messages import Message
from ui.api.api import IN_WINDOW, MOST_MESSAGES

MOST_CHOICES = 8
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Sent by common clients; ignoring them changes nothing about the reply.
HARMLESS = (
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
# Parameters that are supported only at these values.
ONLY: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}
# Parameters that go to the sampler under the name they came with.
AS_SENT = (
    "temperature",
    "top_p",
    "seed",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
)


class Spoken(BaseModel):
    """One message."""

    role: str = Field(description="system, developer, user or assistant.")
    content: Any = Field(None, description='Text, or a list of {"type": "text", "text": ...}.')


class StreamOptions(BaseModel):
    """How to stream."""

    include_usage: bool | None = False


class Completion(BaseModel):
    """A request for a chat completion."""

    model_config = ConfigDict(extra="allow", strict=True)
    model: str = Field("nightschool", description="nightschool (what serves now), base, or an adapter's id.")
    messages: list[Spoken] = Field(max_length=MOST_MESSAGES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, description=f"Replies, 1 to {MOST_CHOICES}.")
    max_tokens: int | None = Field(None, description=IN_WINDOW)
    max_completion_tokens: int | None = Field(None, description=f"The same. {IN_WINDOW}")
    stop: Any = Field(None, description=f"A string or up to {MOST_STOPS}; the reply ends before the first of them.")
    seed: int | None = None
    temperature: float | None = Field(None, description="0 is greedy.")
    top_p: float | None = None
    top_k: int | None = Field(None, description="Draw from so many of the likeliest tokens; 0 or -1: from all.")
    min_p: float | None = Field(
        None, description="Draw only tokens with this share of the likeliest one's probability."
    )
    repetition_penalty: float | None = Field(None, description="Over 1: against tokens of the prompt and the reply.")
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, description="Token ids, and -100 (never) to 100 (surely).")
    logprobs: bool | None = Field(False, description="Also the log-prob of each token, in nats at temperature 1.")
    top_logprobs: int | None = Field(None, description=f"And of so many of the likeliest, up to {MOST_LIKELIEST}.")
    response_format: Any = Field(None, description='{"type": "text"}, "json_object", or "json_schema" with a schema.')

    @property
    def wants_usage(self) -> bool:
        """Whether a stream must end with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def require_supported(self) -> None:
        """Raises `Refused` on a parameter that is not supported, or not at its value."""
        for name, value in (self.model_extra or {}).items():
            if name in HARMLESS or value is None or value in ONLY.get(name, ()):
                continue
            raise Refused(f"{name} = {str(value)[:80]!r} cannot be done here; leave it out")
        if self.n is not None and not 1 <= self.n <= MOST_CHOICES:
            raise Refused(f"n is a whole number from 1 to {MOST_CHOICES}, not {self.n}")
        if self.top_logprobs and not self.logprobs:
            raise Refused("top_logprobs goes with logprobs: true")

    def sampling(self) -> Sampling:
        """The sampling parameters; those not given are as in the chat. Raises `Refused` on invalid ones."""
        said = {name: getattr(self, name) for name in AS_SENT} | {
            "top_k": 0 if self.top_k == -1 else self.top_k,  # vLLM's value for all tokens
            "max_tokens": self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens,
            "stop": stops_of(self.stop),
            "logit_bias": biases_of(self.logit_bias),
            "json_schema": schema_of(self.response_format),
        }
        return Sampling(**{name: value for name, value in said.items() if value is not None})

    def samplings(self) -> list[Sampling]:
        """The sampling parameters of each choice; a given seed counts up from choice to choice. Raises `Refused`."""
        first = self.sampling()
        if first.seed is None:
            return [first] * (self.n or 1)
        return [replace(first, seed=(first.seed + at) % 2**63) for at in range(self.n or 1)]

    def conversation(self) -> list[Message]:
        """The messages. Raises `Refused` on an unknown role, or content that is not text."""
        return [Message(role_of(each.role), text_of(each.content)) for each in self.messages]


def role_of(role: str) -> str:
    """Our role for one of OpenAI's. Raises `Refused` on an unknown one."""
    if role not in ROLES:
        raise Refused(f"a message's role is one of {', '.join(ROLES)}, not {role!r}")
    return ROLES[role]


def text_of(content: Any) -> str:
    """The text of a message's content. Raises `Refused` on what is not text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused("a message's content is text, or a list of text parts")
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise Refused(f"a part of a message's content is text, not {kind!r}")
    return "".join(part["text"] for part in content)


def stops_of(stop: Any) -> Any:
    """The stop strings as a list; a single string may be given instead, an empty one for none."""
    if isinstance(stop, str):
        return [stop] if stop else []
    return stop


def biases_of(biases: dict[str, float] | None) -> dict[int | str, float] | None:
    """Biases by token id, from the text keys of JSON; a key that is no id stays text."""
    if biases is None:
        return None
    return {int(token) if token.isascii() and token.isdecimal() else token: bias for token, bias in biases.items()}


def schema_of(wanted: Any) -> str | None:
    """The JSON schema that a response format stands for; None for free text. Raises `Refused`."""
    match wanted:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return json.dumps(schema)
    raise Refused(
        "response_format is {type: text}, {type: json_object} or {type: json_schema, json_schema: {schema: {...}}}, "
        f"not {str(wanted)[:80]!r}"
    )
