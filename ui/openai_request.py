"""A request for a chat completion, as OpenAI's clients send it, and what of it can be done here.

Left out on purpose: answering it (`openai_api`).
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from assistant.sampling import Sampling
from feedback.store import Refused
from feedback.talk import Message

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Sent by common clients; leaving them out changes nothing about the reply.
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
# Parameters whose effect we have only at this value.
ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([], ""),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "top_logprobs": (0,),
}


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
    messages: list[Spoken]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = Field(False, description="Also the log-prob of each token, in nats at temperature 1.")
    temperature: float | None = Field(None, description="0 is greedy.")
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    n: int | None = Field(1, description="Only 1.")

    @property
    def wants_usage(self) -> bool:
        """Whether a stream shall end with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def require_supported(self) -> None:
        """Raises `Refused` on a parameter that asks for something that cannot be done here."""
        for name, value in {"n": self.n, **(self.model_extra or {})}.items():
            if name in HARMLESS or value is None or value in ONLY.get(name, ()):
                continue
            raise Refused(f"{name} = {str(value)[:80]!r} cannot be done here; leave it out")

    def sampling(self) -> Sampling:
        """How to draw the reply; what is not said is as in the chat. Raises `Refused`."""
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        said = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": limit, "seed": self.seed}
        return Sampling(**{name: value for name, value in said.items() if value is not None})  # type: ignore[arg-type]

    def conversation(self) -> list[Message]:
        """The messages. Raises `Refused` on a role or a content that is none."""
        return [Message(role_of(each.role), text_of(each.content)) for each in self.messages]


def role_of(role: str) -> str:
    """Our role for one of OpenAI's. Raises `Refused`."""
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
