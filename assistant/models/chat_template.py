"""Conversion of messages to token ids and back: the only caller of the chat template, for serving and for training.

What a person types can never become a control token of the template.
"""

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from assistant.models.control_tokens import without_control
from feedback.errors import Refused
from feedback.messages import Message

CHARACTERS = 4  # per token, roughly; the first guess of how much text fits


def encode_prompt(tokenizer: Any, messages: Sequence[Message], longest: int) -> list[int]:
    """Token ids of a conversation, up to where the assistant's turn begins; at most `longest`.

    If it is longer, the oldest turns are left out (a system message stays). Raises `Refused` if there are no messages
    or the last one alone does not fit. Far more than what fits is never encoded, as that takes time.
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
            raise Refused(f"this message is too long: {len(ids):,} tokens, and the model takes at most {longest:,}")
        else:
            low = at
        at = (low + high) // 2 if looks % 3 == 0 else first_within(size * longest // len(ids))
        if found:
            at = max(at, first_within(2 * sizes[starts[high]]))
        at = min(max(at, low + 1), high - 1)
    return found


def _starts(turns: Sequence[Message]) -> list[int]:
    """The turns at which a conversation may begin: the first, any of the user's, or the last."""
    users = {at for at, turn in enumerate(turns) if turn.role == "user"}
    return sorted({0, *users, max(0, len(turns) - 1)})


def _encode(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    plain = [{"role": message.role, "content": without_control(tokenizer, message.content)} for message in messages]
    ids: list[int] = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
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
