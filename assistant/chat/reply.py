"""A reply as it grows: its text so far, how it ended, and its record.

Every reply is in the database, with its provenance, before its last word is handed out; a stopped reply is kept as far
as it got.
"""

import threading
import time
from collections.abc import Iterator

from assistant.chat.assistant import Assistant
from assistant.engine.request import EngineError, Generation
from assistant.engine.sampling.params import Token
from assistant.engine.sampling.stop_strings import before_stop, surely_shown
from assistant.models import chat_template
from assistant.models.adapter import LoadedAdapter
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import new_id

UNFINISHED = "�"  # what a character decodes to while some of its bytes are missing


class ReplyStream:
    """A reply being written. Iterate for its whole text so far; it is recorded before the iteration ends.

    It ends at a stop string: its text stops before the string, its tokens with the one that completes it.
    """

    def __init__(self, assistant: Assistant, parent: str, generation: Generation, left_out: int = 0) -> None:
        self.id = new_id()
        self.parent = parent
        self.left_out = left_out  # the oldest messages, which did not fit into the prompt
        self.tokens: list[Token] = []
        self.over = False
        self.recorded = False
        self._assistant = assistant
        self._generation = generation
        self._stops = generation.sampling.stop
        self._stopped = False  # at a stop string
        self.failure = ""  # why the engine could not go on with it
        self._turn = threading.Lock()
        self._changing = threading.Lock()  # held while its tokens change, and while its text is made of them
        self._first_token_s: float | None = None
        self._text, self._text_of = "", (0, False)  # the token count and `over` that the text was decoded for

    @property
    def text(self) -> str:
        """The text that is certain so far, without a possible start of a stop string.

        An unfinished character at its end is left out, also when the reply ends inside of one.
        """
        with self._changing:
            state = len(self.tokens), self.over
            if state != self._text_of:
                whole = self.decoded(len(self.tokens)).rstrip(UNFINISHED)
                if not self.over:
                    whole = surely_shown(whole, self._stops)
                if self._stopped:
                    whole = before_stop(self.decoded(len(self.tokens)), self._stops) or ""
                self._text, self._text_of = whole, state
            return self._text

    def decoded(self, count: int) -> str:
        """The text of its first `count` tokens, which may end in an unfinished character."""
        return chat_template.decode(self._assistant.tokenizer, [token.id for token in self.tokens[:count]])

    @property
    def adapter(self) -> str | None:
        """The id of the adapter that writes it; None: the base."""
        loaded: LoadedAdapter | None = self._generation.adapter
        return loaded.id if loaded else None

    @property
    def finish(self) -> str | None:
        """How it ended: "stop", "length" or "cancelled"; None while it is being written."""
        return ("stop" if self._stopped else self._generation.finish) if self.over else None

    @property
    def usage(self) -> tuple[int, int]:
        """The number of tokens in the prompt, and in the reply so far."""
        return len(self._generation.prompt_ids), len(self.tokens)

    def stop(self) -> None:
        """Stop writing; what is written stays."""
        self._generation.cancel()

    def advance(self, timeout_s: float | None = None) -> bool:
        """Wait up to `timeout_s` for more of the text; False when it is over, and then it is recorded.

        Several threads may call this: when the server ends, one left behind waits beside one that finishes the reply.
        Raises `EngineError` if the reply cannot be finished; nothing is recorded then.
        """
        if not self._turn.acquire(timeout=-1 if timeout_s is None else timeout_s):
            return True
        try:
            return not self.over and self._advance(timeout_s)
        finally:
            self._turn.release()

    def _advance(self, timeout_s: float | None) -> bool:
        try:
            tokens = self._generation.take(timeout_s)
        except EngineError as error:
            self.failure, self.over = str(error), True
            self._assistant.writing.drop(self)
            raise
        if tokens is None:
            self._record()
            return False
        if tokens and self._first_token_s is None:
            self._first_token_s = time.perf_counter() - self._generation.submitted_at
            self._assistant.first_token_waits.observe(self._first_token_s)
        if not self._stopped:  # else these were written before the engine heard of the stop
            with self._changing:
                self.tokens += tokens
                self._stop_at_string(len(tokens))
        return True

    def _stop_at_string(self, new: int) -> None:
        """End the reply if one of its last `new` tokens completes a stop string."""
        if not self._stops or before_stop(self.decoded(len(self.tokens)), self._stops) is None:
            return
        self._stopped = True
        self.stop()
        old = len(self.tokens) - new
        counts = range(old + 1, len(self.tokens))
        last = next((each for each in counts if before_stop(self.decoded(each), self._stops) is not None), None)
        del self.tokens[last or len(self.tokens) :]

    def __iter__(self) -> Iterator[str]:
        try:
            while self.advance():
                yield self.text
            yield self.text
        finally:  # the reader may be gone
            if not self.over:
                self.finish_now()

    def finish_now(self) -> None:
        """Stop it and record what is written."""
        self.stop()
        while self.advance():
            pass

    def _record(self) -> None:
        self.over = True
        finish = self.finish or "cancelled"
        try:
            if finish != "cancelled" or self.text:  # else there is nothing to record
                self._add(finish)
        finally:
            self._assistant.writing.drop(self)

    def _add(self, finish: str) -> None:
        by = Provenance(
            adapter=self.adapter,
            base_sha256=self._assistant.base.sha256,
            template_sha256=self._assistant.template_sha256,
            sampling=self._generation.sampling.as_dict(),
            token_ids=tuple(token.id for token in self.tokens),
            logprobs=tuple(token.logprob for token in self.tokens),
            sampled_logprobs=tuple(token.sampled_logprob for token in self.tokens),
            finish=finish,
            first_token_s=self._first_token_s,
            total_s=time.perf_counter() - self._generation.submitted_at,
        )
        conversations.add_reply(self._assistant.store, self.parent, self.text, by, reply=self.id)
        self.recorded = True
