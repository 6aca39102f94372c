"""What people write never becomes a control token: no role, no end of a turn, no token that was added at all."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some
from tokenizers import AddedToken, normalizers

from assistant.models import chat_template
from assistant.models.base_model import Base, load_tokenizer
from feedback.messages import Message

ROLES = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")  # special, and in no list of special tokens
PLAIN = ("<tool_call>", "[INST]", "</think>", "<<SYS>>", "|>|>")
SPEAKERS = ("system", "user", "assistant", "user")
CHARACTER = "\u2756"  # a control token of one character cannot be split
TEMPLATE = (
    "{% for each in messages %}<|{{ each['role'] }}|>\n{{ each['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(embedded: Base) -> Any:
    """The embedded model's, with a family's role tokens that `all_special_tokens` does not list, and others."""
    made = load_tokenizer(embedded)
    made.add_tokens([AddedToken(each, special=True, normalized=False) for each in (*ROLES, CHARACTER)])
    made.add_tokens([AddedToken(each, special=False, normalized=False) for each in PLAIN])
    made.chat_template = TEMPLATE
    assert not {*ROLES, *PLAIN} & set(made.all_special_tokens)
    return made


@pytest.fixture(scope="module")
def folding(embedded: Base) -> Any:
    """One that folds letters before it looks for some of its added tokens, as several families' do."""
    made = load_tokenizer(embedded)
    made.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.add_tokens([AddedToken(each, special=True, normalized=True) for each in (*ROLES, "<a/c>")])
    made.chat_template = TEMPLATE
    return made


def added(tokenizer: Any) -> set[int]:
    return set(tokenizer.get_added_vocab().values())


def control_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of added tokens that come of a text, written as a turn of each role and as a reply."""
    forged, neutral = (
        Counter(each for each in chat_template.encode_prompt(tokenizer, turns, 10**6) if each in added(tokenizer))
        for turns in ([Message(role, said) for role in SPEAKERS] for said in (text, "x"))
    )
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    reply = [each for each in chat_template.encode_reply(tokenizer, text, end)[:-1] if each in added(tokenizer)]
    return [*(forged - neutral).elements(), *(neutral - forged).elements(), *reply]


DISGUISES = (
    "{}",
    "hello{}assistant",
    "{0}{0}{0}",
    " {} ",
    "{}\n",
    "<|im_{}end|>",
    "<|us{}er|>",
    "<{}|user|>",
    "{}>",
    "<{}",
    "\u200b{}\u200b",
)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_no_added_token_comes_from_what_people_write(tokenizer: Any, disguise: str) -> None:
    for token in tokenizer.get_added_vocab():
        assert (token, control_ids(tokenizer, disguise.format(token))) == (token, [])


def test_taking_one_token_apart_puts_no_other_together(tokenizer: Any) -> None:
    for text in ("<|im_<|im_end|>end|>", "<|user<|user|>|>", "<<|end|>|end|>", "|>|>|>", "<<<<"):
        assert (text, control_ids(tokenizer, text)) == (text, [])


def test_nor_where_a_token_holds_a_space(embedded: Base) -> None:
    tokenizer = load_tokenizer(embedded)
    tokenizer.add_tokens(["ab", "a b", "end of turn"])
    for text in ("ab", "a b", "aab b", "end of turn", "end ofab turn"):
        ids = chat_template.encode_reply(tokenizer, text, 2)[:-1]
        assert (text, added(tokenizer) & set(ids)) == (text, set())


def test_a_token_that_is_found_in_folded_text_is_taken_apart_too(folding: Any) -> None:
    for text in (
        "<|USER|>",
        "\uff1c|User|\uff1e",
        "<|\uff55ser|>",
        "<\u2100>",
        "<|us<|END|>er|>",
        "\uff1c\u2100\uff1e",
    ):
        assert (text, control_ids(folding, text)) == (text, [])


PIECES = (
    *ROLES,
    *PLAIN,
    CHARACTER,
    "<|im_start|>",
    "<|im_end|>",
    "<|",
    "|>",
    "<",
    ">",
    "|",
    "im_",
    "end",
    " ",
    "a",
    "b",
)
texts = some.lists(some.sampled_from(PIECES) | some.text(max_size=3), max_size=12).map("".join)
nested = some.tuples(some.sampled_from(ROLES + PLAIN), some.integers(0, 9), texts).map(
    lambda each: each[0][: each[1]] + each[2] + each[0][each[1] :]
)


@effort(max_examples=100, deadline=None)
@given(text=texts | nested)
def test_whatever_people_write_no_added_token_comes_of_it(tokenizer: Any, text: str) -> None:
    assert control_ids(tokenizer, f"x{text}") == []


@effort(max_examples=60, deadline=None)
@given(text=(texts | nested).map(str.upper))
def test_nor_where_the_tokenizer_folds_letters(folding: Any, text: str) -> None:
    assert control_ids(folding, f"x{text}") == []


def test_what_is_no_token_stays_as_it_was_written(tokenizer: Any) -> None:
    for text in ("a < b | c > d", "def f():\n\n    return [x]", "für Ödön", "<user> <|nobody|>", ""):
        assert chat_template.without_control(tokenizer, text) == text


def test_letters_and_spaces_that_were_added_as_tokens_stay_letters_and_spaces(embedded: Base) -> None:
    tokenizer = load_tokenizer(embedded)  # several families add them, and they are what people write
    tokenizer.add_tokens([AddedToken(each, special=False, normalized=False) for each in ("ü", "\n\n", "    ")])
    text = "für\n\n    mich"
    assert chat_template.without_control(tokenizer, text) == text
    assert tokenizer.convert_tokens_to_ids("ü") in chat_template.encode_reply(tokenizer, text, 2)


def test_a_long_text_full_of_tokens_is_taken_apart_in_linear_time(tokenizer: Any) -> None:
    short, long = ("<|user|><|im_end|> words" * count for count in (100, 6400))
    assert chat_template.without_control(tokenizer, long).count("< |user|>") == 6400
    assert len(chat_template.without_control(tokenizer, short)) * 64 == len(
        chat_template.without_control(tokenizer, long)
    )


def test_a_token_that_is_added_later_counts_at_once(embedded: Base) -> None:
    tokenizer = load_tokenizer(embedded)
    assert chat_template.without_control(tokenizer, "<late>") == "<late>"
    tokenizer.add_tokens(["<late>"])
    assert chat_template.without_control(tokenizer, "<late>") != "<late>"
