"""Replies in the format of OpenAI's chat completions, whole or as a stream of chunks.

A completion's id is that of its first reply; every choice names its own reply in an additional field, `reply`.
"""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from assistant.chat.assistant import Assistant
from assistant.chat.reply import ReplyStream
from assistant.models import chat_template
from feedback.errors import Unavailable
from feedback.records.adapters import BASE

DONE = "data: [DONE]\n\n"


class Choice:
    """One reply of a completion, and how much of it was sent."""

    def __init__(self, index: int, replying: ReplyStream) -> None:
        self.index = index
        self.replying = replying
        self.sent = ""
        self.told = 0  # tokens whose log-probs were sent
        self.closed = False


class Answer:
    """The response to one completion request."""

    def __init__(
        self, assistant: Assistant, replies: Sequence[ReplyStream], with_logprobs: bool, with_usage: bool
    ) -> None:
        self.assistant = assistant
        self.with_logprobs = with_logprobs
        self.with_usage = with_usage
        self._choices = [Choice(index, each) for index, each in enumerate(replies)]
        self._created = int(time.time())

    def whole(self) -> dict[str, Any]:
        """The finished replies as one object. Raises `Unavailable` when one was cut short."""
        choices = []
        for choice in self._choices:
            require_whole(choice.replying)
            message = {"role": "assistant", "content": choice.replying.text, "refusal": None}
            shown = self._logprobs(choice, choice.replying.text)
            choices.append(self._choice(choice, shown, choice.replying.finish) | {"message": message})
        return self._head("chat.completion") | {"choices": choices, "usage": self._usage()}

    def opening(self) -> Iterator[str]:
        """The first chunks, which carry the role."""
        for choice in self._choices:
            yield self._chunk(choice, {"role": "assistant", "content": ""})

    def news(self) -> Iterator[str]:
        """Chunks with each reply's new text and, once, its finish reason. Raises `Unavailable` on one cut short."""
        for choice in self._choices:
            over, text = choice.replying.over, choice.replying.text
            if new := text[len(choice.sent) :]:
                choice.sent = text
                yield self._chunk(choice, {"content": new}, self._logprobs(choice, text))
            if over and not choice.closed:
                require_whole(choice.replying)
                choice.closed = True
                yield self._chunk(choice, {}, finish=choice.replying.finish)

    def closing(self) -> Iterator[str]:
        """The last chunks: the token counts, if they were asked for, and the end."""
        if self.with_usage:
            yield event(self._head("chat.completion.chunk") | {"choices": [], "usage": self._usage()})
        yield DONE

    def failed(self, sentence: str) -> str:
        """An event that says why the stream breaks off here."""
        return event({"error": {"message": sentence, "type": "server_error", "param": None, "code": None}})

    def _chunk(
        self, choice: Choice, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> str:
        choices = [self._choice(choice, logprobs, finish) | {"delta": delta}]
        usage = {"usage": None} if self.with_usage else {}
        return event(self._head("chat.completion.chunk") | {"choices": choices} | usage)

    def _choice(self, choice: Choice, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
        named = {"index": choice.index, "reply": choice.replying.id}
        return named | {"logprobs": logprobs, "finish_reason": finish}

    def _head(self, kind: str) -> dict[str, Any]:
        first = self._choices[0].replying
        return {
            "id": first.id,
            "object": kind,
            "created": self._created,
            "model": first.adapter or BASE,
            "system_fingerprint": self.assistant.base.sha256[:12],
        }

    def _usage(self) -> dict[str, int]:
        """The token counts; the prompt's tokens count once, however many replies it got."""
        used = [choice.replying.usage for choice in self._choices]
        prompt_tokens, reply_tokens = used[0][0], sum(each for _, each in used)
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": reply_tokens}
        return counts | {"total_tokens": prompt_tokens + reply_tokens}

    def _logprobs(self, choice: Choice, text: str) -> dict[str, Any] | None:
        """The log-probs, in nats under the model, of the tokens up to this text that have not been sent yet."""
        if not self.with_logprobs:
            return None
        replying, first = choice.replying, choice.told
        while choice.told < len(replying.tokens) and not replying.decoded(choice.told).startswith(text):
            choice.told += 1
        told = []
        for token in replying.tokens[first : choice.told]:
            likeliest = [self._token(each, logprob) for each, logprob in token.likeliest]
            told.append(self._token(token.id, token.logprob) | {"top_logprobs": likeliest})
        return {"content": told, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = chat_template.decode(self.assistant.tokenizer, [token])
        whole = "�" not in text  # else it is only some of a character's bytes
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}


def require_whole(replying: ReplyStream) -> None:
    """Raises `Unavailable` for a reply that was cut short by us, not by its client."""
    if replying.finish == "cancelled":
        raise Unavailable("the reply was cut short, for the assistant is shutting down")


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
