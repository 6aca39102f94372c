"""From messages to token ids and back: the only caller of the chat template, for serving and for training.

What a person types can never become a control token of the template.
"""

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from assistant.models.control_tokens import without_control
from feedback.errors import Refused
from feedback.messages import Message

CHARACTERS = 4  # of a token, about: where to look first


def encode_prompt(tokenizer: Any, messages: Sequence[Message], longest: int) -> list[int]:
    """Token ids of a conversation, up to where the assistant begins to speak; at most `longest`.

    Where it is longer, the oldest turns are left out (a system message stays). Raises `Refused` when the last
    message alone does not fit. Far more than what fits is never encoded: that takes time.
    """
    messages = list(messages)
    if not messages:
        raise Refused("the last message must be the user's, and there is none")
    system = messages[:1] if messages[0].role == "system" else []
    turns = messages[len(system) :]
    starts = _starts(turns)
    sizes = list(accumulate(len(each.content) for each in reversed(turns)))[::-1] or [0]

    def first_within(characters: int) -> int:
        """The first start from which there are at most so many characters."""
        return next((at for at, start in enumerate(starts) if sizes[start] <= characters), len(starts) - 1)

    # The first start that fits lies over `low`, and at or under `high`. The next look is where it lies if every
    # character makes as much of a token; every third look halves what is between, for that may not be so. To encode
    # more than twice what fits would be in vain.
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
    """Where a conversation may begin: as it does, or at a user's turn, or at the last one."""
    users = {at for at, turn in enumerate(turns) if turn.role == "user"}
    return sorted({0, *users, max(0, len(turns) - 1)})


def _encode(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    plain = [{"role": message.role, "content": without_control(tokenizer, message.content)} for message in messages]
    ids: list[int] = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    return ids


def encode_reply(tokenizer: Any, text: str, end_id: int) -> list[int]:
    """Token ids of a whole reply that a person wrote, its end of turn included."""
    ids: list[int] = tokenizer(without_control(tokenizer, text), add_special_tokens=False)["input_ids"]
    return [*ids, end_id]


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """A reply's text, without control tokens."""
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    return text


def end_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """Every token id that ends a turn, as the model's generation settings and its tokenizer say."""
    named = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return frozenset(each for each in ids if each is not None)


def template_sha256(tokenizer: Any) -> str:
    """A hash of all that turns messages into token ids: the template and the vocabulary."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(f"{tokenizer.chat_template}\n{vocabulary}".encode()).hexdigest()
