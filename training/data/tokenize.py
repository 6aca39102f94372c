"""Tokenization: pairs, ties, thumbs and demonstrations as one base model's token ids."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from assistant.models import chat_template
from assistant.models.turns import TemplateRefuses
from feedback.errors import Refused
from feedback.example_types import Answer, Demonstration, Examples, PreferencePair, UnpairedExample
from feedback.messages import Message
from training.model.packing import Row

TOO_LONG, NOT_TAKEN = "too long", "not taken by the model's chat template"
STRENGTHS = (1, 5)  # the least and the greatest that people choose from
FIELDS = {"thumb": "thumbs", "tie": "ties", "demonstration": "demonstrations"}  # kind -> field; others: pairs


@dataclass(frozen=True)
class Preference:
    """Two of an example's replies, by index."""

    chosen: int
    rejected: int
    weight: float
    strength: float = 0.0  # of the preference: 0 where it is least, or nobody said, to 1


@dataclass(frozen=True)
class TokenizedExample:
    """One example as token ids.

    A pair has the chosen reply first. A ranking of K replies has them all, the best first, and a preference for every
    two that are not tied; its weight is the sum of theirs. A thumb has its own reply first and then, if there is a
    thumb with another prompt and reply, that one's reply, mismatched on purpose for KTO's baseline.
    """

    kind: str  # "comparison", "ranking", "correction", "tie", "demonstration" or "thumb"
    prompt_ids: list[int]
    replies: tuple[list[int], ...]
    weight: float
    wanted: bool = True  # thumbs only
    messages: tuple[Message, ...] = ()  # the prompt, as it was said
    user: int = 0  # the number of who gave it, in the ledger; thumbs only
    ranked: tuple[Preference, ...] = ()  # of a ranking of three replies or more
    strength: float = 0.0  # of a pair, as in `Preference`
    drawn: float = 1.0  # its weight in estimates, as in `PreferencePair`

    @property
    def preferences(self) -> tuple[Preference, ...]:
        """What is preferred to what: one preference in a pair (in a tie, its two replies), several in a ranking."""
        return self.ranked or (Preference(0, 1, self.weight, self.strength),)

    @property
    def field(self) -> str:
        """The field of `Examples` that it comes from."""
        return FIELDS.get(self.kind, "pairs")

    def own_row(self) -> Row:
        """The row to train on: all replies of a pair or ranking, only its own reply of a thumb."""
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

    def has_room(self, reply_tokens: int) -> bool:
        """Whether a reply of so many tokens leaves room for a prompt."""
        return reply_tokens < self.max_length

    def prompt(self, messages: Sequence[Message], reply_tokens: int) -> list[int]:
        """A conversation's token ids, without its oldest turns if need be.

        Raises `Unfit` if not even one turn fits, or the model's chat template does not take them.
        """
        if not self.has_room(reply_tokens):
            raise Unfit(TOO_LONG)
        try:
            return chat_template.encode_prompt(self.tokenizer, messages, self.max_length - reply_tokens)
        except TemplateRefuses as error:
            raise Unfit(NOT_TAKEN) from error
        except Refused as error:
            raise Unfit(TOO_LONG) from error


def tokenize(examples: Examples, encoder: Encoder) -> tuple[list[TokenizedExample], dict[str, int]]:
    """Tokenize all examples in order, pairs first; also returns how many were left out, by reason.

    The pairs of a ranking become one example, so that its replies share a row.
    """
    left_out: Counter[str] = Counter()
    tokenized: list[TokenizedExample | None] = [_of_pairs(each, encoder, left_out) for each in _judged(examples.pairs)]
    tokenized += [_of_reply(each, encoder, left_out) for each in examples.thumbs]
    tokenized += [_of_pairs([each], encoder, left_out) for each in examples.ties]
    tokenized += [_of_reply(each, encoder, left_out) for each in examples.demonstrations]
    return _with_mismatched([each for each in tokenized if each is not None]), dict(left_out)


def _judged(pairs: Sequence[PreferencePair]) -> list[list[PreferencePair]]:
    """The pairs by ranking, and every other pair alone, in order of first appearance."""
    rankings: dict[Any, list[PreferencePair]] = {}
    for number, pair in enumerate(pairs):
        rankings.setdefault((pair.user, pair.group) if pair.group else number, []).append(pair)
    return list(rankings.values())


def _of_pairs(pairs: Sequence[PreferencePair], encoder: Encoder, left_out: Counter[str]) -> TokenizedExample | None:
    """One pair, or the pairs of one ranking, as an example; None if none of them can be trained on."""
    fit: list[tuple[PreferencePair, list[int], list[int]]] = []
    for pair in pairs:
        chosen, rejected = encoder.reply(pair.chosen), encoder.reply(pair.rejected)
        if not encoder.has_room(max(len(chosen), len(rejected))):
            left_out[TOO_LONG] += 1
        elif not (chosen and rejected):
            left_out["empty reply"] += 1
        elif chosen == rejected:
            left_out["equal replies"] += 1
        else:
            fit.append((pair, chosen, rejected))
    replies: list[list[int]] = []
    for _, *both in fit:
        replies += [reply for reply in both if reply not in replies]
    if not fit:
        return None
    try:
        prompt_ids = encoder.prompt(fit[0][0].messages, max(map(len, replies)))
    except Unfit as error:
        left_out[str(error)] += len(fit)
        return None
    if len(fit) == 1:
        pair, chosen, rejected = fit[0]
        return TokenizedExample(
            pair.kind,
            prompt_ids,
            (chosen, rejected),
            pair.weight,
            messages=pair.messages,
            strength=_strength(pair.strength),
            drawn=pair.drawn,
        )
    ranked = tuple(
        Preference(replies.index(chosen), replies.index(rejected), pair.weight, _strength(pair.strength))
        for pair, chosen, rejected in fit
    )
    weight = sum(each.weight for each in ranked)
    whole: dict[str, Any] = {"messages": pairs[0].messages, "ranked": ranked, "drawn": pairs[0].drawn}
    return TokenizedExample(pairs[0].kind, prompt_ids, tuple(replies), weight, **whole)


def _strength(said: int | None) -> float:
    """A strength as people say it, as a number from 0 to 1; 0 if they did not."""
    least, most = STRENGTHS
    return 0.0 if said is None else (said - least) / (most - least)


def _of_reply(
    example: UnpairedExample | Demonstration, encoder: Encoder, left_out: Counter[str]
) -> TokenizedExample | None:
    """A thumb or a demonstration as an example; None if it cannot be trained on."""
    reply = encoder.reply(example.answer)
    try:
        prompt_ids = encoder.prompt(example.messages, len(reply))
    except Unfit as error:
        left_out[str(error)] += 1
        return None
    if not reply:
        left_out["empty reply"] += 1
        return None
    told = example.messages
    if isinstance(example, UnpairedExample):
        return TokenizedExample("thumb", prompt_ids, (reply,), example.weight, example.wanted, told, example.user)
    return TokenizedExample("demonstration", prompt_ids, (reply,), example.weight, messages=told)


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
        replace(each, replies=(*each.replies, partner[id(each)])) if id(each) in partner else each for each in tokenized
    ]
