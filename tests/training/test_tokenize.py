"""Lessons: each reply teaches the tokens it should, and what does not fit is counted."""

import pytest

from assistant.models import base_model, chat_template
from feedback.example_types import Answer, Examples, PreferencePair, UnpairedExample
from feedback.messages import Message
from training.data.tokenize import Encoder, tokenize

HELLO = (Message("user", "Hello!"),)


@pytest.fixture(scope="module")
def encoder():
    tokenizer = base_model.load_tokenizer(base_model.find_base("embedded"))
    return Encoder(tokenizer, frozenset([tokenizer.eos_token_id]), chat_template.template_sha256(tokenizer), 256)


def test_a_reply_teaches_the_tokens_that_were_sampled(encoder):
    odd = (40, 41, 42)  # not how the tokenizer would write any text of these
    own = encoder.template_sha256
    end = encoder.end_id
    assert encoder.reply(Answer("x", (*odd, end), own)) == [*odd, end]
    assert encoder.reply(Answer("x", odd, own)) == [*odd, end]
    assert encoder.reply(Answer("x", odd, own, finish="length")) == [*odd]
    assert encoder.reply(Answer("x", odd, "another template")) == chat_template.encode_reply(
        encoder.tokenizer, "x", end
    )


def test_a_cut_reply_does_not_teach_where_to_stop(encoder):
    whole, cut = encoder.reply(Answer("Good day")), encoder.reply(Answer("Good day", finish="cancelled"))
    assert whole == [*cut, encoder.end_id]


def test_what_is_too_long_is_counted_and_old_turns_go_first(encoder):
    long = "many words " * 200
    turns = (Message("user", long), Message("assistant", "Hm."), *HELLO)
    fits = PreferencePair(turns, Answer("Hi!"), Answer("Bye."))
    examples, left_out = tokenize(
        Examples(
            (fits, PreferencePair(HELLO, Answer(long), Answer("Bye."))),
            (UnpairedExample((Message("user", long),), Answer("Hi!"), True),),
        ),
        encoder,
    )
    assert left_out == {"too long": 2}
    assert examples[0].prompt_ids == chat_template.encode_prompt(encoder.tokenizer, HELLO, 256)


def test_the_replies_of_a_ranking_share_a_row_the_best_first(encoder):
    best, middle, worst, long = Answer("Hi there!"), Answer("Hm."), Answer("Go away."), Answer("many words " * 200)
    pairs = [(best, middle), (best, worst), (middle, worst), (best, long), (worst, long)]
    ranked = [PreferencePair(HELLO, *pair, "ranking", weight=0.5, group="ranking 7") for pair in pairs]
    alone = PreferencePair(HELLO, best, worst)
    (ranking, pair), left_out = tokenize(Examples((*ranked[:2], alone, *ranked[2:])), encoder)
    assert left_out == {"too long": 2}
    assert ranking.replies == tuple(map(encoder.reply, (best, middle, worst)))
    said = [(each.chosen, each.rejected, each.weight) for each in ranking.preferences]
    assert (said, ranking.weight) == ([(0, 1, 0.5), (0, 2, 0.5), (1, 2, 0.5)], 1.5)
    assert pair.replies == (ranking.replies[0], ranking.replies[2])
    assert [(each.chosen, each.rejected, each.weight) for each in pair.preferences] == [(0, 1, 1.0)]


@pytest.mark.parametrize(("said", "strength"), [(None, 0.0), (1, 0.0), (2, 0.25), (5, 1.0)])
def test_a_strength_from_1_to_5_becomes_one_from_0_to_1(encoder, said, strength):
    pair = PreferencePair(HELLO, Answer("Hi!"), Answer("Bye."), strength=said)
    assert tokenize(Examples((pair,)), encoder)[0][0].preferences[0].strength == strength


def test_a_thumb_is_given_the_reply_to_another_prompt(encoder):
    cats, dogs = (Message("user", "Cats?"),), (Message("user", "Dogs?"),)
    thumbs = (
        UnpairedExample(cats, Answer("Meow."), True),
        UnpairedExample(cats, Answer("No."), False),
        UnpairedExample(dogs, Answer("Woof."), True),
    )
    examples, _ = tokenize(Examples((), thumbs), encoder)
    meow, no, woof = (encoder.reply(thumb.answer) for thumb in thumbs)
    assert [example.replies for example in examples] == [(meow, woof), (no, woof), (woof, meow)]
    assert len(tokenize(Examples((), thumbs[:1]), encoder)[0][0].replies) == 1
