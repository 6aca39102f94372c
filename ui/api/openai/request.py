"""Requests for completions as OpenAI's clients send them, and the check of what is supported."""

import json
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from assistant.engine.sampling.grammar import ANY_OBJECT
from assistant.engine.sampling.params import MOST_LIKELIEST, MOST_STOPS, Sampling
from feedback.errors import Refused
from feedback.messages import Message
from feedback.numerals import natural
from ui.api.api import IN_WINDOW, MOST_MESSAGES

MOST_CHOICES = 8
MOST_PROMPTS = 8
LEGACY_TOKENS = 16  # of a reply to a text completion that does not say how many, as OpenAI has it
LEGACY_LIKELIEST = 5
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
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
# Parameters that mean nothing when another forbids their use.
FORBIDDEN_BY = {"tools": ("tool_choice", "none"), "functions": ("function_call", "none")}
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
)


class Spoken(BaseModel):
    """One message."""

    model_config = ConfigDict(extra="allow")
    role: str = Field(description="system, developer, user or assistant.")
    content: Any = Field(
        None, description='Text, or a list of {"type": "text", "text": ...}; null where the assistant said nothing.'
    )


class StreamOptions(BaseModel):
    """How to stream."""

    include_usage: bool | None = False
    resumable: bool | None = Field(
        False,
        description="Write the reply to its end even if the connection breaks; /api/turns/{reply}/events has the rest.",
    )


class Asked(BaseModel):
    """What chat and text completions have in common."""

    model_config = ConfigDict(extra="allow", strict=True)
    model: str = Field("nightschool", description="nightschool (what serves now), base, or an adapter's id.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, description=f"Replies, 1 to {MOST_CHOICES}.")
    max_tokens: int | None = Field(None, description=IN_WINDOW)
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
    truncation: Literal["auto", "disabled"] | None = Field(
        None,
        description="A conversation that does not fit into what the model reads is refused, or with auto its oldest "
        "messages are left out, and the answer says how many (truncated_messages).",
    )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream must end with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def is_resumable(self) -> bool:
        """Whether the replies are written to their end though their reader has left."""
        return bool(self.stream and self.stream_options and self.stream_options.resumable)

    @property
    def may_be_cut(self) -> bool:
        """Whether the oldest messages may be left out."""
        return self.truncation == "auto"

    def require_supported(self) -> None:
        """Raises `Refused` on a parameter that is not supported, or not at its value."""
        more = self.model_extra or {}
        for name, value in more.items():
            other, forbids = FORBIDDEN_BY.get(name, ("", None))
            if (
                name in HARMLESS
                or value is None
                or value in ONLY.get(name, ())
                or (other and more.get(other) == forbids)
            ):
                continue
            raise Refused(f"{name} = {str(value)[:80]!r} cannot be done here; leave it out", name)
        if self.n is not None and not 1 <= self.n <= MOST_CHOICES:
            raise Refused(f"n is a whole number from 1 to {MOST_CHOICES}, not {self.n}", "n")

    def sampling_of(self, **own: Any) -> Sampling:
        """The sampling parameters; those not given are as in the chat. Raises `Refused` on invalid ones."""
        said = {name: getattr(self, name) for name in AS_SENT} | {
            "top_k": 0 if self.top_k == -1 else self.top_k,  # vLLM's value for all tokens
            "max_tokens": self.max_tokens,
            "stop": stops_of(self.stop),
            "logit_bias": biases_of(self.logit_bias),
        }
        return Sampling(**{name: value for name, value in (said | own).items() if value is not None})

    def each_choice(self, first: Sampling) -> list[Sampling]:
        """The sampling parameters of each choice; a given seed counts up from choice to choice."""
        if first.seed is None:
            return [first] * (self.n or 1)
        return [replace(first, seed=(first.seed + at) % 2**63) for at in range(self.n or 1)]


class ChatAsked(Asked):
    """A request for a chat completion."""

    content_param: ClassVar[str] = "messages"
    messages: list[Spoken] = Field(max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, description=f"The same as max_tokens. {IN_WINDOW}")
    logprobs: bool | None = Field(False, description="Also the log-prob of each token, in nats at temperature 1.")
    top_logprobs: int | None = Field(None, description=f"And of so many of the likeliest, up to {MOST_LIKELIEST}.")
    response_format: Any = Field(None, description='{"type": "text"}, "json_object", or "json_schema" with a schema.')

    @property
    def wants_logprobs(self) -> bool:
        """Whether the tokens are told, too."""
        return bool(self.logprobs)

    def samplings(self) -> list[Sampling]:
        """The sampling parameters of each choice. Raises `Refused`, naming the parameter."""
        if self.top_logprobs and not self.logprobs:
            raise Refused("top_logprobs goes with logprobs: true", "top_logprobs")
        own: dict[str, Any] = {"top_logprobs": self.top_logprobs, "json_schema": schema_of(self.response_format)}
        names = {"json_schema": "response_format"}
        if self.max_completion_tokens is not None:
            own["max_tokens"] = self.max_completion_tokens
            names["max_tokens"] = "max_completion_tokens"
        try:
            return self.each_choice(self.sampling_of(**own))
        except Refused as error:
            error.param = names.get(error.param or "", error.param)
            raise

    def conversations(self) -> list[list[Message]]:
        """The conversation. Raises `Refused` on an unknown role, or content that is not text."""
        return [[message_of(each, f"messages[{at}]") for at, each in enumerate(self.messages)]]


class TextAsked(Asked):
    """A request for a text completion, OpenAI's older kind: a reply to each text, as if it had been said in a chat."""

    content_param: ClassVar[str] = "prompt"
    prompt: Any = Field(description=f"What is said: a text, or a list of up to {MOST_PROMPTS}.")
    max_tokens: int | None = Field(None, description=f"{IN_WINDOW} Without it: {LEGACY_TOKENS}.")
    logprobs: int | None = Field(
        None, description=f"Also the log-prob of each token, and of so many of the likeliest, up to {LEGACY_LIKELIEST}."
    )

    @property
    def wants_logprobs(self) -> bool:
        """Whether the tokens are told, too."""
        return self.logprobs is not None

    def samplings(self) -> list[Sampling]:
        """The sampling parameters of each choice. Raises `Refused`, naming the parameter."""
        if not 0 <= (self.logprobs or 0) <= LEGACY_LIKELIEST:
            raise Refused(f"logprobs is a whole number from 0 to {LEGACY_LIKELIEST}, not {self.logprobs}", "logprobs")
        own = {
            "top_logprobs": self.logprobs,
            "max_tokens": LEGACY_TOKENS if self.max_tokens is None else self.max_tokens,
        }
        return self.each_choice(self.sampling_of(**own))

    def conversations(self) -> list[list[Message]]:
        """A conversation of one message for each text. Raises `Refused` on what is no text."""
        texts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if not 1 <= len(texts) <= MOST_PROMPTS or not all(isinstance(each, str) for each in texts):
            raise Refused(
                f"prompt is a text, or a list of up to {MOST_PROMPTS} texts; token ids are not read", "prompt"
            )
        return [[Message("user", each)] for each in texts]


def message_of(spoken: Spoken, where: str) -> Message:
    """A message. Raises `Refused` on an unknown role, on content that is not text, and on calls of tools."""
    if spoken.role not in ROLES:
        raise Refused(f"a message's role is one of {', '.join(ROLES)}, not {spoken.role!r}", f"{where}.role")
    for name in ("tool_calls", "function_call"):
        if (spoken.model_extra or {}).get(name):
            raise Refused(f"a message with {name} cannot be read here; leave it out", f"{where}.{name}")
    if spoken.content is None and spoken.role == "assistant":
        return Message("assistant", "")
    return Message(ROLES[spoken.role], text_of(spoken.content, f"{where}.content"))


def text_of(content: Any, where: str) -> str:
    """The text of a message's content. Raises `Refused` on what is not text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused("a message's content is text, or a list of text parts", where)
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise Refused(f"a part of a message's content is text, not {kind!r}", where)
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
    return {int(token) if is_id(token) else token: bias for token, bias in biases.items()}


def is_id(token: str) -> bool:
    """Whether a key of JSON can be a token id; longer numbers are none, and Python would not read them."""
    return natural(token) is not None


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
        f"not {str(wanted)[:80]!r}",
        "response_format",
    )
