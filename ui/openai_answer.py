"""A reply in the shapes of OpenAI's chat completions, whole or as a stream of chunks.

Left out on purpose: writing the reply (`assistant/chat`), and HTTP (`openai_api`).
"""

import json
import time
from collections.abc import Iterator
from typing import Any

from assistant import prompt
from assistant.chat import Assistant, Replying
from ui.api import BASE

DONE = "data: [DONE]\n\n"


class Answer:
    """One completion's answer; of a stream it knows how much was sent."""

    def __init__(self, assistant: Assistant, replying: Replying, with_logprobs: bool | None, with_usage: bool) -> None:
        self.assistant = assistant
        self.replying = replying
        self.with_logprobs = bool(with_logprobs)
        self.with_usage = with_usage
        self._created = int(time.time())
        self._sent = ""

    def whole(self) -> dict[str, Any]:
        """A finished reply as one object."""
        message = {"role": "assistant", "content": self.replying.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": self._logprobs(), "finish_reason": self.replying.finish}
        return self._head("chat.completion") | {"choices": [choice], "usage": self._usage()}

    def opening(self) -> str:
        """The first chunk: who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def grown(self, text: str) -> str:
        """A chunk with what is new in the reply's text; empty when nothing is."""
        new, self._sent = text[len(self._sent) :], text
        return self._chunk({"content": new}) if new else ""

    def closing(self) -> Iterator[str]:
        """The last chunks of a finished reply: how it ended, and the token counts if they were asked for."""
        yield self._chunk({}, self.replying.finish, self._logprobs())
        if self.with_usage:
            yield event(self._head("chat.completion.chunk") | {"choices": [], "usage": self._usage()})

    def failed(self, sentence: str) -> str:
        """An event that says why the stream breaks off here."""
        return event({"error": {"message": sentence, "type": "server_error", "param": None, "code": None}})

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, logprobs: dict[str, Any] | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self.with_usage else {}
        return event(self._head("chat.completion.chunk") | {"choices": [choice]} | usage)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.replying.id,
            "object": kind,
            "created": self._created,
            "model": self.replying.adapter or BASE,
            "system_fingerprint": self.assistant.base.sha256[:12],
        }

    def _usage(self) -> dict[str, int]:
        prompt_tokens, reply_tokens = self.replying.usage
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": reply_tokens}
        return counts | {"total_tokens": prompt_tokens + reply_tokens}

    def _logprobs(self) -> dict[str, Any] | None:
        """The log-prob of each token of the text, in nats under the model; the end of the turn is left out."""
        if not self.with_logprobs:
            return None
        ends, tokens = self.assistant.engine.end_ids, []
        for token, logprob in zip(self.replying.token_ids, self.replying.logprobs, strict=True):
            if token not in ends:
                text = prompt.decode(self.assistant.tokenizer, [token])
                whole = "�" not in text  # else it is only some of a character's bytes
                raw = list(text.encode()) if whole else None
                tokens.append({"token": text, "logprob": logprob, "bytes": raw, "top_logprobs": []})
        return {"content": tokens, "refusal": None}


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
