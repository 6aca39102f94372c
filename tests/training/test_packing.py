"""Packs: what shares a pass equals what is computed alone, on the embedded model and real conversations."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from assistant.models import base_model
from feedback.example_types import Answer, Examples, PreferencePair
from feedback.messages import Message
from training.algorithms.dpo_kto import PreferenceConfig
from training.data.tokenize import TokenizedExample, tokenize
from training.model import packing, tree_attention
from training.model import policy as backbones
from training.model.packing import TOKENS_AT_ONCE, Row, pack, together
from training.model.policy import Backbone
from training.night.learning import make_encoder

PAIRS = Path(__file__).parents[3] / "shared" / "data" / "pairs_helpful_train.jsonl"


@pytest.fixture(scope="module")
def backbone(base):
    """A model in fp32, with a LoRA that does something."""
    made = Backbone(base, torch.float32, "cpu", rank=16, alpha=32, seed=0)
    noise = torch.Generator().manual_seed(1)
    for name, each in made.parameters().items():
        if ".lora_B." in name:  # a fresh one is zero, and would let nothing through to the other factor
            each.data = 0.01 * torch.randn(each.shape, generator=noise)
    return made


def examples_of(backbone: Backbone, count: int, max_length: int) -> list[TokenizedExample]:
    """Real conversations of several turns, from short ones to `max_length` tokens."""
    if not PAIRS.is_file():
        pytest.skip(f"the real pairs are not here: {PAIRS}")
    pairs = []
    for line in PAIRS.read_text().splitlines():
        raw = json.loads(line)
        messages = tuple(Message(**each) for each in raw["prompt"])
        if len(messages) >= 3 and raw["chosen"] and raw["rejected"]:
            pairs.append(PreferencePair(messages, Answer(raw["chosen"]), Answer(raw["rejected"])))
    encoder = make_encoder(backbone.base, backbone, PreferenceConfig())
    examples, _ = tokenize(Examples(tuple(pairs[: 20 * count])), encoder)
    fitting = sorted((each for each in examples if each.row().tokens <= max_length), key=lambda each: each.row().tokens)
    assert len(fitting) >= count
    return [fitting[at * len(fitting) // count] for at in range(count)]


def alone(backbone: Backbone, row: Row) -> Tensor:
    """The log-prob of every reply token, one reply at a time, by the model's own forward pass."""
    parts = []
    for reply in row.replies:
        ids = torch.tensor([[*row.prompt_ids, *reply]])
        logits = backbone.causal(input_ids=ids, use_cache=False, logits_to_keep=len(reply) + 1).logits[0, :-1]
        parts.append(logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None])[:, 0])
    return torch.cat(parts)


def gradients(backbone: Backbone) -> dict[str, Tensor]:
    taken = {name: each.grad.clone() for name, each in backbone.parameters().items() if each.grad is not None}
    backbone.peft.zero_grad()
    return taken


def require_packs_equal_one_by_one(backbone: Backbone, examples: list[TokenizedExample]) -> None:
    """Every token's log-prob to 1e-4 or so, and the gradient of the LoRA, of packs against one reply at a time.

    The latter in fp64: in fp32 it is further from the truth than packs are (1.1e-4 and 1.5e-5 of a gradient's norm).
    """
    every, signs = [example.row() for example in examples], torch.tensor([1.0, -1.0])
    packs = together(every, TOKENS_AT_ONCE)
    assert len(packs) < len(every)
    shared: list[Tensor] = [torch.zeros(0)] * len(every)
    for group in packs:
        found = backbone.each_token_of([every[at] for at in group])
        sum((every[at].summed(values) * signs).sum() for at, values in zip(group, found, strict=True)).backward()
        for at, values in zip(group, found, strict=True):
            shared[at] = values.detach()
    slopes = gradients(backbone)

    backbone.peft.double()
    try:
        for row, values in zip(every, shared, strict=True):
            exact = alone(backbone, row)
            (row.summed(exact) * signs).sum().backward()
            # A random model's log-probs are near -18, and fp32 is good to some 1e-5 of that.
            assert torch.allclose(values.double(), exact, atol=1e-4, rtol=1e-5)
        expected = gradients(backbone)
    finally:
        backbone.peft.float()
    assert set(slopes) == set(expected) == set(backbone.parameters())
    for name, each in expected.items():
        assert (slopes[name] - each).norm() <= 1e-4 * each.norm() + 1e-6, name


def test_packs_of_real_conversations_equal_one_reply_at_a_time(backbone):
    require_packs_equal_one_by_one(backbone, examples_of(backbone, 20, max_length=150))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_packs_of_many_real_conversations_equal_one_reply_at_a_time(backbone):
    require_packs_equal_one_by_one(backbone, examples_of(backbone, 200, max_length=1500))


def test_blocks_and_recomputing_change_nothing(backbone, monkeypatch):
    """However the tree is cut, and with layers computed again in backward, as packs too long to keep are."""
    history = [1, 9690, 198, 2683, 359, 253]
    turns = [Row([*history, 50, 51], [[60, 61, 62], [60, 70]]), Row([*history, 50, 51, 60, 61, 62, 80], [[90], [91]])]
    found, slopes = [], []
    for dense, recompute_above in ((1000, 2048), (4, 2048), (1, 2)):
        monkeypatch.setattr(packing.pack, "__defaults__", (dense,))
        monkeypatch.setattr(backbones, "RECOMPUTE_ABOVE", recompute_above)
        values = torch.cat(backbone.each_token_of(turns))
        values.sum().backward()
        found.append(values.detach())
        slopes.append(gradients(backbone))
    plain = torch.cat([alone(backbone, row) for row in turns])
    for values, slope in zip(found, slopes, strict=True):
        assert (values - plain).abs().max() < 1e-4
        for name, each in slopes[0].items():
            assert (slope[name] - each).norm() <= 1e-4 * each.norm() + 1e-6, name


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("dense", [1, 1000])
def test_the_processors_kernels_attend_as_torchs_own_attention(dtype, near, window, dense):
    noise = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 500, (length,), generator=noise).tolist() for length in (90, 61, 210, 7)]
    packed = pack([Row(ids[0], [ids[1], ids[2]]), Row([*ids[0], *ids[1], 5], [ids[3]]), Row([1], [ids[3]])], dense)
    length = len(packed.ids)
    drawn = [torch.randn(1, heads, length + 3, 16, generator=noise).to(dtype) for heads in (4, 2, 2)]  # 3: a tail
    slope = torch.randn(1, length, 4, 16, generator=noise).to(dtype)
    found = []
    for attend in (by_kernels, by_torch):
        parts = [each.clone().requires_grad_() for each in drawn]
        out = attend(*parts, packed.blocks, window)[:, :length]
        (out * slope).sum().backward()
        found.append([out.detach(), *(each.grad[:, :, :length] for each in parts)])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= near * theirs.norm()


def by_kernels(query, key, value, blocks, window):
    return tree_attention.tree_attention(None, query, key, value, None, blocks=blocks, sliding_window=window)[0]


def by_torch(query, key, value, blocks, window):
    return tree_attention.by_blocks(query, key, value, blocks, window).transpose(1, 2)


def test_the_reference_is_the_base_and_its_own_frozen_copy(backbone):
    row = Row([1, 9690, 198], [[2683, 359], [253]])
    copy = base_model.load_model(backbone.base, torch.float32, "cpu")
    with torch.no_grad():
        ours = backbone.each_token_of([row], reference=True)[0]
        expected = []
        for reply in row.replies:
            ids = torch.tensor([[*row.prompt_ids, *reply]])
            logits = copy(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1]
            expected.append(logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None])[:, 0])
        assert (ours - torch.cat(expected)).abs().max() < 1e-4
        assert (ours - backbone.each_token_of([row])[0]).abs().max() > 0.01  # the LoRA is on, and off


def test_a_temperature_divides_the_logits(backbone):
    row = Row([1, 9690, 198], [[2683, 359]])
    with torch.no_grad():
        found = backbone.each_token_of([row], temperature=0.7)[0]
        ids = torch.tensor([[*row.prompt_ids, *row.replies[0]]])
        logits = backbone.causal(input_ids=ids).logits[0, 2:-1] / 0.7
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(row.replies[0])[:, None])[:, 0]
    assert (found - expected).abs().max() < 1e-4


def test_a_pack_holds_what_is_shared_once():
    packed = pack([Row([10, 11], [[20, 21], [30]]), Row([10, 11, 20, 40], [[50]])])
    #   10 11 20 21       the first reply
    #            40 50    the next turn goes on from its first token
    #         30          the second reply
    assert packed.ids.tolist() == [10, 11, 20, 21, 40, 50, 30]
    assert packed.positions.tolist() == [0, 1, 2, 3, 3, 4, 2]
    assert packed.predicted_at.tolist() == [1, 2, 1, 4]  # both replies begin at the prompt's last position
    assert packed.targets.tolist() == [20, 21, 30, 50]
    assert packed.reply_at.tolist() == [2, 3, 6, 5]
    assert packed.sizes == (3, 1)
    (block,) = packed.blocks
    assert block.sees is not None
    assert block.sees.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0],
        [1, 1, 1, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]


def test_a_large_tree_is_cut_into_its_stem_and_its_branches():
    packed = pack([Row([10, 11], [[20, 21], [30]])], dense=2)
    cut = [(each.start, each.stop, each.before, each.sees) for each in packed.blocks]
    assert cut == [(0, 2, (), None), (2, 4, (0,), None), (4, 5, (0,), None)]


def test_sums_are_over_each_reply():
    assert Row([1], [[2, 3], [4]]).summed(torch.tensor([1.0, 2.0, 4.0])).tolist() == [3.0, 4.0]


def test_rows_fill_passes_to_the_budget_those_that_begin_alike_side_by_side():
    every = [Row([7, 8], [[1]]), Row([5, 6], [[1, 2]]), Row([7, 8], [[2]]), Row([9] * 20, [[1]])]
    assert together(every, most=7) == [[1, 0], [2], [3]]
    assert together(every, most=10) == [[1, 0, 2], [3]]
    assert together(every, most=1) == [[1], [0], [2], [3]]
