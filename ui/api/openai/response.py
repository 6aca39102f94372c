"""Replies in the format of OpenAI's chat and text completions, whole or as a stream of chunks.

A completion's id is that of its first reply; every choice names its own reply in an additional field, `reply`, and in a
stream how many characters of it were sent up to its end, `until`: `ui.api.turns` goes on from there.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from assistant.chat.assistant import Assistant
from assistant.engine.sampling.params import Token
from assistant.models import chat_template
from feedback.errors import Unavailable
from feedback.records.adapters import BASE
from ui import openai_errors

DONE = "data: [DONE]\n\n"


class Reply(Protocol):
    """A reply that is being written, or one that was (`assistant.chat.reply`, `ui.api.openai.attempts`)."""

    id: str
    parent: str
    tokens: list[Token]
    over: bool

    @property
    def left_out(self) -> int:
        """The oldest messages, which did not fit into the prompt."""

    @property
    def text(self) -> str:
        """The text that is certain so far."""

    @property
    def finish(self) -> str | None:
        """How it ended: "stop", "length" or "cancelled"; None while it is being written."""

    @property
    def adapter(self) -> str | None:
        """The id of the adapter that writes it; None: the base."""

    @property
    def usage(self) -> tuple[int, int]:
        """The number of tokens in the prompt, and in the reply so far."""

    def decoded(self, count: int) -> str:
        """The text of its first `count` tokens, which may end in an unfinished character."""


@dataclass(frozen=True)
class Told:
    """A token as a response tells of it; `likeliest` are those most probable in its place, with their log-probs."""

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...]


class Choice:
    """One reply of a completion, and how much of it was sent."""

    def __init__(self, index: int, replying: Reply) -> None:
        self.index = index
        self.replying = replying
        self.sent = ""
        self.told = 0  # tokens whose log-probs were sent
        self.offset = 0  # characters of those
        self.closed = False

    def new_tokens(self, text: str, end_ids: frozenset[int]) -> list[Token]:
        """The tokens up to this text that have not been told yet; at the end of the reply, all but its end of turn."""
        replying, first = self.replying, self.told
        last = replying.tokens[-1:]
        ended = bool(last) and last[0].id in end_ids
        if replying.over and (ended or replying.finish != "stop"):  # else at a stop string, which is not told
            self.told = len(replying.tokens) - ended
        while self.told < len(replying.tokens) and not replying.decoded(self.told).startswith(text):
            self.told += 1
        return replying.tokens[first : self.told]


@dataclass(frozen=True)
class Shape:
    """What chat and text completions show differently."""

    whole: str  # the kinds of objects
    chunk: str
    opening: dict[str, Any] | None  # of each choice of a stream
    said: Callable[[str], dict[str, Any]]
    new: Callable[[str], dict[str, Any]]
    end: dict[str, Any]
    logprobs: Callable[[Choice, Sequence[Told]], dict[str, Any]]


def chat_logprobs(_: Choice, told: Sequence[Told]) -> dict[str, Any]:
    """Log-probs as chat completions have them."""
    shown = [
        token_shown(each.text, each.logprob) | {"top_logprobs": [token_shown(*one) for one in each.likeliest]}
        for each in told
    ]
    return {"content": shown, "refusal": None}


def token_shown(text: str, logprob: float) -> dict[str, Any]:
    """A token with its bytes; None for these where it is only some of a character's."""
    return {"token": text, "logprob": logprob, "bytes": None if "�" in text else list(text.encode())}


def text_logprobs(choice: Choice, told: Sequence[Told]) -> dict[str, Any]:
    """Log-probs as text completions have them."""
    offsets = []
    for each in told:
        offsets.append(choice.offset)
        choice.offset += len(each.text)
    return {
        "tokens": [each.text for each in told],
        "token_logprobs": [each.logprob for each in told],
        "top_logprobs": [dict(each.likeliest) for each in told],
        "text_offset": offsets,
    }


CHAT = Shape(
    whole="chat.completion",
    chunk="chat.completion.chunk",
    opening={"delta": {"role": "assistant", "content": ""}},
    said=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    new=lambda text: {"delta": {"content": text}},
    end={"delta": {}},
    logprobs=chat_logprobs,
)
TEXT = Shape(
    whole="text_completion",
    chunk="text_completion",
    opening=None,
    said=lambda text: {"text": text},
    new=lambda text: {"text": text},
    end={"text": ""},
    logprobs=text_logprobs,
)


class Answer:
    """The response to one completion request."""

    def __init__(
        self,
        assistant: Assistant,
        replies: Sequence[Reply],
        shape: Shape,
        with_logprobs: bool = False,
        with_usage: bool = False,
        tells_cut: bool = False,
    ) -> None:
        """With `tells_cut`, it says how many of the oldest messages were left out."""
        self.assistant = assistant
        self.shape = shape
        self.with_logprobs = with_logprobs
        self.with_usage = with_usage
        self.tells_cut = tells_cut
        self._choices = [Choice(index, each) for index, each in enumerate(replies)]
        self._created = int(time.time())

    def whole(self) -> dict[str, Any]:
        """The finished replies as one object. Raises `Unavailable` when one was cut short."""
        choices = []
        for choice in self._choices:
            require_whole(choice.replying)
            shown = self._logprobs(choice, choice.replying.text)
            choices.append(self._choice(choice, shown, choice.replying.finish) | self.shape.said(choice.replying.text))
        return self._head(self.shape.whole) | {"choices": choices, "usage": self._usage()}

    def opening(self) -> Iterator[str]:
        """The first chunks, which carry the role."""
        if self.shape.opening is not None:
            for choice in self._choices:
                yield self._chunk(choice, self.shape.opening)

    def news(self) -> Iterator[str]:
        """Chunks with each reply's new text and, once, its finish reason. Raises `Unavailable` on one cut short."""
        for choice in self._choices:
            over, text = choice.replying.over, choice.replying.text
            new, told = text[len(choice.sent) :], choice.told
            logprobs = self._logprobs(choice, text) if new or over else None
            if new or choice.told > told:  # at the end, perhaps the tokens of an unfinished character
                choice.sent = text
                yield self._chunk(choice, self.shape.new(new), logprobs)
            if over and not choice.closed:
                require_whole(choice.replying)
                choice.closed = True
                yield self._chunk(choice, self.shape.end, finish=choice.replying.finish)

    def closing(self) -> Iterator[str]:
        """The last chunks: the token counts, if they were asked for, and the end."""
        if self.with_usage:
            yield event(self._head(self.shape.chunk) | {"choices": [], "usage": self._usage()})
        yield DONE

    def _chunk(
        self,
        choice: Choice,
        said: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> str:
        choices = [self._choice(choice, logprobs, finish) | said | {"until": len(choice.sent)}]
        usage = {"usage": None} if self.with_usage else {}
        return event(self._head(self.shape.chunk) | {"choices": choices} | usage)

    def _choice(self, choice: Choice, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
        named = {"index": choice.index, "reply": choice.replying.id}
        return named | {"logprobs": logprobs, "finish_reason": finish}

    def _head(self, kind: str) -> dict[str, Any]:
        first = self._choices[0].replying
        cut = {"truncated_messages": first.left_out} if self.tells_cut else {}
        return {
            "id": first.id,
            "object": kind,
            "created": self._created,
            "model": first.adapter or BASE,
            "system_fingerprint": self.assistant.base.sha256[:12],
        } | cut

    def _usage(self) -> dict[str, int]:
        """The token counts; a prompt's tokens count once, however many replies it got."""
        replies = [choice.replying for choice in self._choices]
        prompt_tokens = sum({each.parent: each.usage[0] for each in replies}.values())
        reply_tokens = sum(each.usage[1] for each in replies)
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": reply_tokens}
        return counts | {"total_tokens": prompt_tokens + reply_tokens}

    def _logprobs(self, choice: Choice, text: str) -> dict[str, Any] | None:
        """The log-probs, in nats under the model, of the tokens up to this text that have not been sent yet."""
        if not self.with_logprobs:
            return None
        new = choice.new_tokens(text, self.assistant.engine.end_ids)
        return self.shape.logprobs(choice, [self._told(each) for each in new])

    def _told(self, token: Token) -> Told:
        likeliest = tuple((self._text(each), logprob) for each, logprob in token.likeliest)
        return Told(self._text(token.id), token.logprob, likeliest)

    def _text(self, token: int) -> str:
        return chat_template.decode(self.assistant.tokenizer, [token])


def require_whole(replying: Reply) -> None:
    """Raises `Unavailable` for a reply that was cut short by us, not by its client."""
    if replying.finish == "cancelled":
        raise Unavailable("the reply was cut short, for the server is shutting down; ask again once it is back")


def failed(status: int, error: Exception) -> str:
    """An event that says why a stream breaks off here."""
    return event(openai_errors.body(status, str(error), openai_errors.code_of(error), openai_errors.param_of(error)))


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
