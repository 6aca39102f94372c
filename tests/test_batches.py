"""Token rows: what shares a row equals what is computed alone, and each reply teaches the tokens it should."""

import json
from pathlib import Path

import pytest
import torch

from assistant import models, prompt
from feedback.examples import Answer, Examples, Pair, Thumb
from feedback.talk import Message
from training import backbone as backbones
from training.backbone import Backbone
from training.batches import Encoder, make_lessons, make_row, together

PAIRS = Path(__file__).parents[2] / "shared" / "data" / "pairs_helpful_train.jsonl"
HELLO = (Message("user", "Hello!"),)


@pytest.fixture(scope="module")
def backbone():
    """The embedded model in fp32, with a LoRA that does something."""
    made = Backbone(models.find_base("embedded"), torch.float32, "cpu", rank=16, alpha=32, seed=0)
    noise = torch.Generator().manual_seed(1)
    for name, each in made.parameters().items():
        if ".lora_B." in name:  # a fresh one is zero, and would let nothing through to the other factor
            each.data = 0.01 * torch.randn(each.shape, generator=noise)
    return made


@pytest.fixture(scope="module")
def encoder(backbone):
    tokenizer = models.load_tokenizer(backbone.base)
    ends = prompt.end_ids(tokenizer, backbone.causal)
    return Encoder(tokenizer, ends, prompt.template_sha256(tokenizer), 256)


@pytest.fixture(scope="module")
def real_pairs():
    """Three real conversations of several turns."""
    if not PAIRS.is_file():
        pytest.skip(f"the real pairs are not here: {PAIRS}")
    pairs = []
    for line in PAIRS.read_text().splitlines():
        raw = json.loads(line)
        messages = tuple(Message(**each) for each in raw["prompt"])
        if len(messages) >= 3 and len(line) < 1200:
            pairs.append(Pair(messages, Answer(raw["chosen"]), Answer(raw["rejected"])))
    return pairs[:3]


def plain_log_prob(backbone, prompt_ids, reply) -> torch.Tensor:
    """One reply alone, by the model's own forward pass."""
    ids = torch.tensor([prompt_ids + reply])
    logits = backbone.causal(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None]).sum()


def gradients(backbone) -> dict[str, torch.Tensor]:
    taken = {name: each.grad.clone() for name, each in backbone.parameters().items()}
    backbone.peft.zero_grad()
    return taken


def test_replies_that_share_a_row_have_the_log_probs_they_have_alone(backbone, encoder, real_pairs):
    lessons, left_out = make_lessons(Examples(tuple(real_pairs)), encoder)
    assert (len(lessons), left_out) == (3, {})
    with torch.no_grad():
        for lesson in lessons:
            plain = torch.stack([plain_log_prob(backbone, lesson.prompt_ids, reply) for reply in lesson.replies])
            with backbone.as_reference():
                base = torch.stack([plain_log_prob(backbone, lesson.prompt_ids, reply) for reply in lesson.replies])
            tokens = max(len(reply) for reply in lesson.replies)
            assert (backbone.log_probs(lesson.row()) - plain).abs().max() / tokens < 1e-4
            assert (backbone.log_probs(lesson.row(), reference=True) - base).abs().max() / tokens < 1e-4
            assert (plain - base).abs().min() > 0.01  # the LoRA is on, and off


def test_each_token_of_a_shared_row_is_right_to_a_ten_thousandth(backbone, encoder, real_pairs):
    lesson = make_lessons(Examples(tuple(real_pairs[:1])), encoder)[0][0]
    row = lesson.row()
    with torch.no_grad():
        shared = backbones.token_log_probs(backbone.hidden(row), backbone.head, row.targets)
        alone = []
        for reply in lesson.replies:
            ids = torch.tensor([lesson.prompt_ids + reply])
            logits = backbone.causal(input_ids=ids, use_cache=False).logits[0, len(lesson.prompt_ids) - 1 : -1]
            alone.append(logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None])[:, 0])
    assert (shared - torch.cat(alone)).abs().max() < 1e-4


def test_the_lora_gets_the_gradient_it_would_get_from_replies_alone(backbone, encoder, real_pairs, monkeypatch):
    lesson = make_lessons(Examples(tuple(real_pairs[:1])), encoder)[0][0]
    chosen, rejected = lesson.replies

    (
        plain_log_prob(backbone, lesson.prompt_ids, chosen) - plain_log_prob(backbone, lesson.prompt_ids, rejected)
    ).backward()
    plain = gradients(backbone)
    policy = backbone.log_probs(lesson.row())
    (policy[0] - policy[1]).backward()
    shared = gradients(backbone)
    monkeypatch.setattr(backbones, "RECOMPUTE_ABOVE", 10)  # as rows too long to keep in memory are computed
    policy = backbone.log_probs(lesson.row())
    (policy[0] - policy[1]).backward()
    recomputed = gradients(backbone)

    for name, expected in plain.items():
        assert (shared[name] - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name
        assert (recomputed[name] - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name


def test_rows_in_one_pass_have_the_log_probs_they_have_alone(backbone, encoder, real_pairs):
    lessons, _ = make_lessons(Examples(tuple(real_pairs)), encoder)
    rows = [lesson.row() for lesson in lessons] + [lessons[0].row(0)]
    groups = together(rows, most=3 * max(len(row.ids) for row in rows))
    assert sorted(at for group in groups for at in group) == [0, 1, 2, 3]
    assert max(len(group) for group in groups) > 1
    with torch.no_grad():
        for group in groups:
            for at, found in zip(group, backbone.log_probs_of([rows[at] for at in group]), strict=True):
                assert (found - backbone.log_probs(rows[at])).abs().max() / len(rows[at].targets) < 1e-4
    assert together(rows, most=1) == [[each] for each in sorted(range(4), key=lambda at: -len(rows[at].ids))]


def test_a_row_shares_its_prompt_and_keeps_its_replies_apart():
    row = make_row([10, 11], [[20, 21], [30]])
    assert row.ids.tolist() == [10, 11, 20, 21, 30]
    assert row.positions.tolist() == [0, 1, 2, 3, 2]
    assert row.predicted_at.tolist() == [1, 2, 1]  # both replies begin at the prompt's last position
    assert row.targets.tolist() == [20, 21, 30]
    assert row.mask()[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert row.summed(torch.tensor([1.0, 2.0, 4.0])).tolist() == [3.0, 4.0]


def test_a_reply_teaches_the_tokens_that_were_sampled(encoder):
    odd = (40, 41, 42)  # not how the tokenizer would write any text of these
    own = encoder.template_sha256
    end = encoder.end_id
    assert encoder.reply(Answer("x", (*odd, end), own)) == [*odd, end]
    assert encoder.reply(Answer("x", odd, own)) == [*odd, end]
    assert encoder.reply(Answer("x", odd, own, finish="length")) == [*odd]
    assert encoder.reply(Answer("x", odd, "another template")) == prompt.encode_reply(encoder.tokenizer, "x", end)


def test_a_cut_reply_does_not_teach_where_to_stop(encoder):
    whole, cut = encoder.reply(Answer("Good day")), encoder.reply(Answer("Good day", finish="cancelled"))
    assert whole == [*cut, encoder.end_id]


def test_what_is_too_long_is_counted_and_old_turns_go_first(encoder):
    long = "many words " * 200
    turns = (Message("user", long), Message("assistant", "Hm."), *HELLO)
    fits = Pair(turns, Answer("Hi!"), Answer("Bye."))
    lessons, left_out = make_lessons(
        Examples(
            (fits, Pair(HELLO, Answer(long), Answer("Bye."))), (Thumb((Message("user", long),), Answer("Hi!"), True),)
        ),
        encoder,
    )
    assert left_out == {"too long": 2}
    assert lessons[0].prompt_ids == prompt.encode_prompt(encoder.tokenizer, HELLO, 256)


def test_a_thumb_is_given_the_reply_to_another_prompt(encoder):
    cats, dogs = (Message("user", "Cats?"),), (Message("user", "Dogs?"),)
    thumbs = (Thumb(cats, Answer("Meow."), True), Thumb(cats, Answer("No."), False), Thumb(dogs, Answer("Woof."), True))
    lessons, _ = make_lessons(Examples((), thumbs), encoder)
    meow, no, woof = (encoder.reply(thumb.answer) for thumb in thumbs)
    assert [lesson.replies for lesson in lessons] == [(meow, woof), (no, woof), (woof, meow)]
    assert len(make_lessons(Examples((), thumbs[:1]), encoder)[0][0].replies) == 1
