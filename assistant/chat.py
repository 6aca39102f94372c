"""One turn of a chat: what a person says, the reply as it grows, and the record of both.

Every reply is in the store, with its author, before its last word is handed out; one that is stopped is kept as far
as it got.
Left out on purpose: pages and HTTP (`ui`), the batch in which replies are computed (`engine`).
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from assistant import prompt
from assistant.adapters import Loaded
from assistant.engine import Engine
from assistant.generation import AnyEngine, EngineError, Generation
from assistant.models import Base, find_base, load_tokenizer, pick_device, usual_dtype
from assistant.roster import Roster
from assistant.sampling import Sampling
from feedback import talk
from feedback.people import User
from feedback.store import Refused, Store, new_id
from feedback.talk import Provenance

SERVING = "serving"  # as an adapter's name: whichever serves at that moment
LEAST_ROOM = 512  # tokens of the window that a prompt leaves for the reply (a quarter of a small window)
UNFINISHED = "�"  # what a character looks like while some of its bytes are still to come


@dataclass
class Assistant:
    """Everything that answering takes, opened once for a process."""

    store: Store
    base: Base
    engine: AnyEngine
    roster: Roster
    tokenizer: Any
    template_sha256: str

    @property
    def longest_prompt(self) -> int:
        """How many tokens of a conversation the model is shown."""
        return self.engine.window - min(LEAST_ROOM, self.engine.window // 4)

    def close(self) -> None:
        """Stop answering; the store stays open."""
        self.engine.close()


def open_assistant(store: Store, model: str = "embedded", dtype: str = "auto", device: str = "auto") -> Assistant:
    """Load a base model and get ready to answer; takes seconds. Raises `Refused` on an unusable model or dtype."""
    if dtype not in ("auto", "float32", "bfloat16"):
        raise Refused(f"dtype is auto, float32 or bfloat16, not {dtype!r}")
    base = find_base(model)
    device = pick_device() if device == "auto" else device
    tokenizer = load_tokenizer(base)
    number_format = usual_dtype(device) if dtype == "auto" else getattr(torch, dtype)
    engine = Engine(base, number_format, device, tokenizer)
    return Assistant(store, base, engine, Roster(store, engine), tokenizer, prompt.template_sha256(tokenizer))


def say(
    assistant: Assistant, user: User, conversation: str | None, parent: str | None, text: str, source: str = "chat"
) -> str:
    """Record what a person says, under the message `parent` (None: at the root); the message's id.

    Without a conversation, one is started. Raises `Refused` on an empty message or one that is too long for the
    model, `NotFound` where conversation or parent are another person's; nothing is recorded then.
    """
    store = assistant.store
    if conversation is not None:
        talk.own_conversation(store, user, conversation)
    before = talk.path(store, parent) if parent else []
    said = [*talk.messages_of(before), talk.Message("user", talk.checked(text))]
    prompt.encode_prompt(assistant.tokenizer, said, assistant.longest_prompt)
    with store.write():
        conversation = conversation or talk.start_conversation(store, user, source)
        return talk.add_message(store, conversation, parent, "user", text)


def answer(
    assistant: Assistant,
    user: User,
    parent: str,
    sampling: Sampling | None = None,
    adapter: str | None = SERVING,
) -> "Replying":
    """Begin a reply to a message. Raises `NotFound` on another person's, `Busy`, or what the adapter is refused for."""
    talk.own_node(assistant.store, user, parent)
    roster = assistant.roster
    loaded = roster.current() if adapter == SERVING else roster.get(adapter)
    messages = talk.messages_of(talk.path(assistant.store, parent))
    prompt_ids = prompt.encode_prompt(assistant.tokenizer, messages, assistant.longest_prompt)
    generation = assistant.engine.submit(prompt_ids, sampling or Sampling(), loaded)
    return Replying(assistant, parent, generation)


class Replying:
    """A reply being written. Iterate for its whole text so far; it is recorded before the iteration ends."""

    def __init__(self, assistant: Assistant, parent: str, generation: Generation) -> None:
        self.id = new_id()
        self.parent = parent
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.over = False
        self.recorded = False
        self._assistant = assistant
        self._generation = generation
        self._sampled_logprobs: list[float] = []
        self._first_token_s: float | None = None
        self._text, self._text_of = "", (0, False)  # so many tokens, and whether they are all

    @property
    def text(self) -> str:
        """As far as it is written; a character whose bytes are still to come is left out."""
        state = len(self.token_ids), self.over
        if state != self._text_of:
            whole = prompt.decode(self._assistant.tokenizer, self.token_ids)
            self._text, self._text_of = whole if self.over else whole.rstrip(UNFINISHED), state
        return self._text

    @property
    def adapter(self) -> str | None:
        """The id of the adapter that writes it; None: the base."""
        loaded: Loaded | None = self._generation.adapter
        return loaded.id if loaded else None

    @property
    def finish(self) -> str | None:
        """How it ended: "stop", "length" or "cancelled"; None while it is written."""
        return self._generation.finish if self.over else None

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of the prompt, and of the reply so far."""
        return len(self._generation.prompt_ids), len(self.token_ids)

    def stop(self) -> None:
        """End it here; what is written stays."""
        self._generation.cancel()

    def advance(self, timeout_s: float | None = None) -> bool:
        """Wait for more of the text, up to `timeout_s`; False when it is over, and then it is recorded.

        Raises `EngineError` when it cannot be finished; nothing is recorded then.
        """
        try:
            tokens = self._generation.take(timeout_s)
        except EngineError:
            self.over = True
            raise
        if tokens is None:
            self._record()
            return False
        if tokens and self._first_token_s is None:
            self._first_token_s = time.perf_counter() - self._generation.submitted_at
        for token in tokens:
            self.token_ids.append(token.id)
            self.logprobs.append(token.logprob)
            self._sampled_logprobs.append(token.sampled_logprob)
        return True

    def __iter__(self) -> Iterator[str]:
        try:
            while self.advance():
                yield self.text
            yield self.text
        finally:  # whoever listened may have gone
            if not self.over:
                self.finish_now()

    def finish_now(self) -> None:
        """Stop it and record what is written."""
        self.stop()
        while self.advance():
            pass

    def _record(self) -> None:
        finish = self._generation.finish or "cancelled"
        self.over = True
        if finish == "cancelled" and not self.text:
            return  # nothing was said
        by = Provenance(
            adapter=self.adapter,
            base_sha256=self._assistant.base.sha256,
            template_sha256=self._assistant.template_sha256,
            sampling=self._generation.sampling.as_dict(),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            sampled_logprobs=tuple(self._sampled_logprobs),
            finish=finish,
            first_token_s=self._first_token_s,
            total_s=time.perf_counter() - self._generation.submitted_at,
        )
        talk.add_reply(self._assistant.store, self.parent, self.text, by, reply=self.id)
        self.recorded = True


def side_by_side(
    assistant: Assistant,
    user: User,
    parent: str,
    sampling: Sampling | None = None,
    asked: str = "demand",
    adapters: tuple[str | None, str | None] | None = None,
) -> "Both":
    """Begin two replies to one message, by the two adapters in random order on the screen.

    Without `adapters`, what serves is compared with the newest candidate, or with itself where there is none. Raises
    as `answer` does.
    """
    serving = assistant.roster.serving()
    names = list(adapters) if adapters else [serving, assistant.roster.rival() or serving]
    sampling = sampling or Sampling()
    if names[0] == names[1]:
        sampling = differing(sampling)
    random.SystemRandom().shuffle(names)
    left = answer(assistant, user, parent, sampling, names[0])
    second = replace(sampling, seed=sampling.seed + 1) if sampling.seed is not None else sampling
    try:
        right = answer(assistant, user, parent, second, names[1])
    except Refused:
        left.stop()
        raise
    return Both(assistant.store, left, right, asked)


def differing(sampling: Sampling) -> Sampling:
    """Sampling by which one adapter gives two replies worth comparing: neither greedy nor beam search."""
    usual = Sampling().temperature
    return replace(sampling, temperature=sampling.temperature or usual, beams=1)


class Both:
    """Two replies being written side by side. Iterate for both texts so far; then `pair` is the recorded pair's id."""

    def __init__(self, store: Store, left: Replying, right: Replying, asked: str) -> None:
        self.left = left
        self.right = right
        self.asked = asked
        self.pair: str | None = None  # None also when one of the two was stopped before its first word
        self._store = store

    def stop(self) -> None:
        """End both here."""
        self.left.stop()
        self.right.stop()

    def wait(self) -> None:
        """Until both are written; for who does not want to see them grow."""
        try:
            for each in (self.left, self.right):
                while each.advance():
                    pass
        finally:
            self._end()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        going = [self.left, self.right]
        try:
            while going:
                going = [each for each in going if each.advance(timeout_s=0.02)]
                yield self.left.text, self.right.text
        finally:
            self._end()

    def _end(self) -> None:
        for each in (self.left, self.right):
            if not each.over:
                each.finish_now()
        if self.left.recorded and self.right.recorded:
            self.pair = talk.add_pair(self._store, self.left.parent, self.left.id, self.right.id, self.asked)
