"""Tokenization: pairs, ties, thumbs and demonstrations as one base model's token ids."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assistant.models import chat_template
from assistant.models.turns import TemplateRefuses
from feedback.errors import Refused
from feedback.example_types import Answer, Example, Examples, PreferencePair, UnpairedExample
from feedback.messages import Message
from training.model.packing import Row

TOO_LONG, NOT_TAKEN = "too long", "not taken by the model's chat template"
FIELDS = {"thumb": "thumbs", "tie": "ties", "demonstration": "demonstrations"}  # kind -> field; others: pairs


@dataclass(frozen=True)
class TokenizedExample:
    """One example as token ids.

    A pair has the chosen reply first. A thumb has its own reply first and then, if there is a thumb with another prompt
    and reply, that one's reply, mismatched on purpose for KTO's baseline.
    """

    kind: str  # "comparison", "ranking", "correction", "tie", "demonstration" or "thumb"
    prompt_ids: list[int]
    replies: tuple[list[int], ...]
    weight: float
    wanted: bool = True  # thumbs only
    messages: tuple[Message, ...] = ()  # the prompt, as it was said

    @property
    def field(self) -> str:
        """The field of `Examples` that it comes from."""
        return FIELDS.get(self.kind, "pairs")

    def own_row(self) -> Row:
        """The row to train on: both replies of a pair, only its own reply of a thumb."""
        return self.row(0) if self.kind == "thumb" else self.row()

    def row(self, *which: int) -> Row:
        """The row of the prompt with the replies at these indices, or with all replies if none is given."""
        return Row(self.prompt_ids, [self.replies[each] for each in which] if which else self.replies)


class Unfit(Exception):
    """An example cannot be trained on; the message is the reason that it is counted under."""


class NothingFits(Exception):
    """There is nothing that this night can learn from."""


@dataclass(frozen=True)
class Encoder:
    """Turns messages and replies into one base model's token ids; `max_length` limits prompt and reply together."""

    tokenizer: Any
    end_ids: frozenset[int]  # each ends a turn
    template_sha256: str
    max_length: int

    @property
    def end_id(self) -> int:
        """The token to end a turn with: the EOS token if it ends turns, else the lowest id that does."""
        own = self.tokenizer.eos_token_id
        return int(own) if own in self.end_ids else min(self.end_ids)

    def reply(self, answer: Answer) -> list[int]:
        """A reply's token ids: those sampled if they come from this tokenizer and template, else its text encoded.

        Only a reply that ended by itself ends with the end of turn: a truncated one must not teach where to stop.
        """
        if not answer.token_ids or answer.template_sha256 != self.template_sha256:
            ids = chat_template.encode_reply(self.tokenizer, answer.text, self.end_id)
            return ids if answer.finish == "stop" else ids[:-1]
        ids = list(answer.token_ids)
        ended = ids[-1] in self.end_ids
        if answer.finish != "stop":
            return ids[:-1] if ended else ids
        return ids if ended else [*ids, self.end_id]

    def prompt(self, messages: Sequence[Message], reply_tokens: int) -> list[int]:
        """A conversation's token ids, without its oldest turns if need be.

        Raises `Unfit` if not even one turn fits, or the model's chat template does not take them.
        """
        if reply_tokens >= self.max_length:
            raise Unfit(TOO_LONG)
        try:
            return chat_template.encode_prompt(self.tokenizer, messages, self.max_length - reply_tokens)
        except TemplateRefuses as error:
            raise Unfit(NOT_TAKEN) from error
        except Refused as error:
            raise Unfit(TOO_LONG) from error


def tokenize(examples: Examples, encoder: Encoder) -> tuple[list[TokenizedExample], dict[str, int]]:
    """Tokenize all examples in order, pairs first; also returns how many were left out, by reason."""
    left_out: Counter[str] = Counter()
    tokenized: list[TokenizedExample] = []
    every: list[Example] = [*examples.pairs, *examples.thumbs, *examples.ties, *examples.demonstrations]
    for example in every:
        try:
            made = _tokenized(example, encoder)
        except Unfit as error:
            left_out[str(error)] += 1
            continue
        if not all(made.replies):
            left_out["empty reply"] += 1
        elif len(made.replies) == 2 and made.replies[0] == made.replies[1]:
            left_out["equal replies"] += 1
        else:
            tokenized.append(made)
    return _with_mismatched(tokenized), dict(left_out)


def _tokenized(example: Example, encoder: Encoder) -> TokenizedExample:
    if not isinstance(example, PreferencePair):
        reply = encoder.reply(example.answer)
        prompt_ids = encoder.prompt(example.messages, len(reply))
        if isinstance(example, UnpairedExample):
            return TokenizedExample(
                "thumb", prompt_ids, (reply,), example.weight, example.wanted, messages=example.messages
            )
        return TokenizedExample("demonstration", prompt_ids, (reply,), example.weight, messages=example.messages)
    chosen, rejected = encoder.reply(example.chosen), encoder.reply(example.rejected)
    prompt_ids = encoder.prompt(example.messages, max(len(chosen), len(rejected)))
    return TokenizedExample(example.kind, prompt_ids, (chosen, rejected), example.weight, messages=example.messages)


def _with_mismatched(tokenized: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """Give each thumb the reply of the next thumb, wrapping around, whose prompt and reply differ from its own.

    The partner is fixed, so that the reference's log-prob of the mismatched reply is computed once per night.
    """
    thumbs = [made for made in tokenized if made.kind == "thumb"]
    partner: dict[int, list[int]] = {}
    for number, thumb in enumerate(thumbs):
        for other in thumbs[number + 1 :] + thumbs[:number]:
            if other.prompt_ids != thumb.prompt_ids and other.replies[0] != thumb.replies[0]:
                partner[id(thumb)] = other.replies[0]
                break
    return [
        TokenizedExample(each.kind, each.prompt_ids, (*each.replies, partner[id(each)]), each.weight, each.wanted)
        if id(each) in partner
        else each
        for each in tokenized
    ]
