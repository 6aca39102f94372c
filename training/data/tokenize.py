"""From examples to token ids: what one base model reads of a pair, a thumb or a demonstration."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assistant.models import chat_template
from feedback.errors import Refused
from feedback.example_types import Answer, Example, Examples, PreferencePair, UnpairedExample
from feedback.messages import Message
from training.model.packing import Row

FIELDS = {"thumb": "thumbs", "tie": "ties", "demonstration": "demonstrations"}  # kind -> field; all others are pairs


@dataclass(frozen=True)
class TokenizedExample:
    """One example in token ids. A pair has the chosen reply first; a thumb has its own reply first, and then
    (where there is another thumb) that one's reply, mismatched on purpose, for KTO's baseline.
    """

    kind: str  # "comparison", "ranking", "correction", "tie", "demonstration" or "thumb"
    prompt_ids: list[int]
    replies: tuple[list[int], ...]
    weight: float
    wanted: bool = True  # thumbs only

    @property
    def field(self) -> str:
        """The field of `Examples` that it comes from."""
        return FIELDS.get(self.kind, "pairs")

    def own_row(self) -> Row:
        """The row that it teaches by: both replies of a pair, a thumb's own."""
        return self.row(0) if self.kind == "thumb" else self.row()

    def row(self, *which: int) -> Row:
        """The row of the prompt with the replies of these numbers; with all of them if none is given."""
        return Row(self.prompt_ids, [self.replies[each] for each in which] if which else self.replies)


class TooLong(Exception):
    """An example does not fit into the length limit."""


class NothingFits(Exception):
    """There is nothing that this night could learn from."""


@dataclass(frozen=True)
class Encoder:
    """How one base model turns messages and replies into token ids. `max_length`: of prompt and reply together."""

    tokenizer: Any
    end_ids: frozenset[int]  # each ends a turn
    template_sha256: str
    max_length: int

    @property
    def end_id(self) -> int:
        """The token that ends a turn that a person wrote."""
        own = self.tokenizer.eos_token_id
        return int(own) if own in self.end_ids else min(self.end_ids)

    def reply(self, answer: Answer) -> list[int]:
        """A reply's token ids: as they were sampled, where this tokenizer and template did it, else of its text.

        Only a reply that ended by itself ends with the end of turn: a cut one must not teach where to stop.
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
        """A conversation's token ids, its oldest turns left out where it must be. Raises `TooLong`."""
        if reply_tokens >= self.max_length:
            raise TooLong
        try:
            return chat_template.encode_prompt(self.tokenizer, messages, self.max_length - reply_tokens)
        except Refused as error:
            raise TooLong from error


def tokenize(examples: Examples, encoder: Encoder) -> tuple[list[TokenizedExample], dict[str, int]]:
    """Every example that fits, tokenized, in order, pairs first; and how many do not, by reason."""
    left_out: Counter[str] = Counter()
    tokenized: list[TokenizedExample] = []
    every: list[Example] = [*examples.pairs, *examples.thumbs, *examples.ties, *examples.demonstrations]
    for example in every:
        try:
            made = _tokenized(example, encoder)
        except TooLong:
            left_out["too long"] += 1
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
            return TokenizedExample("thumb", prompt_ids, (reply,), example.weight, example.wanted)
        return TokenizedExample("demonstration", prompt_ids, (reply,), example.weight)
    chosen, rejected = encoder.reply(example.chosen), encoder.reply(example.rejected)
    prompt_ids = encoder.prompt(example.messages, max(len(chosen), len(rejected)))
    return TokenizedExample(example.kind, prompt_ids, (chosen, rejected), example.weight)


def _with_mismatched(tokenized: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """Give each thumb the reply of the next thumb (the last: of the first) whose prompt and reply are others.

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
