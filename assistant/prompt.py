"""From messages to token ids and back: the only caller of the chat template, for serving and for training.

What a person types can never become a control token of the template.
Left out on purpose: what the messages are; that is the chat's or the example's.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from assistant.control_tokens import without_control
from feedback.store import Refused
from feedback.talk import Message


def encode_prompt(tokenizer: Any, messages: Sequence[Message], longest: int) -> list[int]:
    """Token ids of a conversation, up to where the assistant begins to speak; at most `longest`.

    Where it is longer, the oldest turns are left out (a system message stays). Raises `Refused` when the last
    message alone does not fit.
    """
    messages = list(messages)
    if not messages:
        raise Refused("the last message must be the user's, and there is none")
    system = messages[:1] if messages and messages[0].role == "system" else []
    turns = messages[len(system) :]
    while True:
        ids = _encode(tokenizer, [*system, *turns])
        if len(ids) <= longest:
            return ids
        if len(turns) <= 1:
            raise Refused(f"this message is too long: {len(ids):,} tokens, and the model takes at most {longest:,}")
        # Drop a turn and the reply to it, so that the oldest message left is a user's again.
        turns = turns[1:]
        while len(turns) > 1 and turns[0].role != "user":
            turns = turns[1:]


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
