"""Conversion of messages to token ids and back: the only caller of the chat template, for serving and for training.

What a person types can never become a control token of the template.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from assistant.models.control_tokens import without_control
from assistant.models.turns import manners, mended, render
from feedback.errors import Refused, TooLong
from feedback.messages import Message

CHARACTERS = 4  # per token, roughly; the first guess of how much text fits
ENOUGH = 4  # times that is counted, to say that a conversation is too long


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model reads it: its token ids, and how many of its oldest messages did not fit."""

    ids: list[int]
    left_out: int = 0


def encode_prompt(tokenizer: Any, messages: Sequence[Message], longest: int) -> list[int]:
    """The token ids that `fitted` gives. Raises as it does."""
    return fitted(tokenizer, messages, longest).ids


def fitted(tokenizer: Any, messages: Sequence[Message], longest: int) -> Prompt:
    """Token ids of a conversation, up to where the assistant's turn begins; at most `longest`.

    If it is longer, the oldest turns are left out (a system message stays). Turns that the template does not take are
    mended (`turns`). Raises `Refused` if there are no messages or the last one alone does not fit, `TemplateRefuses` if
    mending is not enough. Far more than what fits is never encoded, as that takes time.
    """
    messages = list(messages)
    if not messages:
        raise Refused("the last message must be the user's, and there is none")
    system = messages[:1] if messages[0].role == "system" else []
    turns = messages[len(system) :]
    starts = _starts(turns)
    sizes = list(accumulate(len(each.content) for each in reversed(turns)))[::-1] or [0]

    def first_within(characters: int) -> int:
        """The first start from which at most this many characters follow, or the last start."""
        return next((at for at, start in enumerate(starts) if sizes[start] <= characters), len(starts) - 1)

    # The first start that fits is above `low` and at most `high`. The next guess assumes equally many characters per
    # token everywhere; every third guess bisects instead, as that may not hold. Encoding more than twice what fits
    # would be wasted.
    low, high, looks = -1, len(starts), 0
    at, found = first_within(CHARACTERS * longest), list[int]()
    while high - low > 1:
        ids, size = _encode(tokenizer, [*system, *turns[starts[at] :]]), sizes[starts[at]]
        looks += 1
        if len(ids) <= longest:
            high, found = at, ids
        elif at == len(starts) - 1:
            raise TooLong(len(ids), longest)
        else:
            low = at
        at = (low + high) // 2 if looks % 3 == 0 else first_within(size * longest // len(ids))
        if found:
            at = max(at, first_within(2 * sizes[starts[high]]))
        at = min(max(at, low + 1), high - 1)
    return Prompt(found, starts[high])


def whole(tokenizer: Any, messages: Sequence[Message], longest: int) -> Prompt:
    """Token ids of a whole conversation. Raises `Refused` if it is empty, `TooLong` if it has more than `longest`.

    Far more than what fits is never encoded: then it is only said that there are more than were counted.
    """
    if not messages:
        raise Refused("the last message must be the user's, and there is none")
    room, newest = ENOUGH * CHARACTERS * longest, list[Message]()
    for each in reversed(messages):
        newest.insert(0, Message(each.role, each.content[-room:]))
        room -= len(each.content)
        if room <= 0:
            break
    ids = _encode(tokenizer, newest)
    if len(ids) > longest:
        raise TooLong(len(ids), longest, more=room < 0 or len(newest) < len(messages))
    if room < 0 or len(newest) < len(messages):  # very many characters per token
        ids = _encode(tokenizer, messages)
        if len(ids) > longest:
            raise TooLong(len(ids), longest)
    return Prompt(ids)


def _starts(turns: Sequence[Message]) -> list[int]:
    """The turns at which a conversation may begin: the first, any of the user's, or the last."""
    users = {at for at, turn in enumerate(turns) if turn.role == "user"}
    return sorted({0, *users, max(0, len(turns) - 1)})


def _encode(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    taken = manners(tokenizer)
    plain = [Message(each.role, without_control(tokenizer, each.content)) for each in mended(messages, taken)]
    ids: list[int] = render(tokenizer, plain, taken.in_parts, tokenize=True)
    return ids


def encode_reply(tokenizer: Any, text: str, end_id: int) -> list[int]:
    """Token ids of a complete reply that a person wrote, including its end of turn."""
    ids: list[int] = tokenizer(without_control(tokenizer, text), add_special_tokens=False)["input_ids"]
    return [*ids, end_id]


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """A reply's text, without control tokens."""
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    return text


def end_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """Every token id that ends a turn, according to the model's generation settings and its tokenizer."""
    named = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return frozenset(each for each in ids if each is not None)


def template_sha256(tokenizer: Any) -> str:
    """A hash of everything that turns messages into token ids: the template and the vocabulary."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(f"{tokenizer.chat_template}\n{vocabulary}".encode()).hexdigest()
