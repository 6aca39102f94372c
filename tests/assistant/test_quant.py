"""Number formats: each near enough to float32 to answer with, and the plan of them measured, kept and mended."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from assistant.engine import load
from assistant.engine.engine import Engine
from assistant.engine.load import open_network
from assistant.engine.model_runner import SequenceChunk
from assistant.engine.quant import autotune
from assistant.engine.quant.formats import BFLOAT16, FLOAT32, INT4, INT8, FourBit, Linear, Plan, Weight
from assistant.engine.quant.gguf import read_four_bit
from assistant.engine.quant.int8_error import MOST_NATS, cost_of_eight_bits
from assistant.engine.sampling.params import Sampling
from assistant.environment import AUTO
from assistant.models import base_model, chat_template
from assistant.models.adapter import PROOF_TEXTS
from assistant.models.base_model import Base
from feedback.errors import Refused
from feedback.messages import Message
from tests.assistant.test_architectures import SIZES
from tests.helpers.small_models import save_small

pytestmark = pytest.mark.long
FORMATS = (FLOAT32, BFLOAT16, INT8, INT4)
ROUNDING = {FLOAT32: 1e-6, BFLOAT16: 0.01, INT8: 0.02, INT4: 0.02}  # of a product's length, relative


def blocks(outputs: int, inputs: int) -> FourBit:
    """Random four-bit weights."""
    numbers = torch.Generator().manual_seed(outputs)
    q = torch.randint(0, 16, (outputs, inputs), generator=numbers, dtype=torch.int32)
    scale = torch.rand(outputs, inputs // 32, generator=numbers) / 50
    return FourBit(q, scale, -8 * scale + torch.randn(scale.shape, generator=numbers) / 100)


def dequantised(four_bit: FourBit) -> Tensor:
    """w = scale * q + minimum, by the book."""
    return four_bit.scale.repeat_interleave(32, 1) * four_bit.q + four_bit.minimum.repeat_interleave(32, 1)


@pytest.mark.parametrize("rows", [1, 3, 17, 40])
@pytest.mark.parametrize("name", FORMATS)
def test_a_product_in_every_format_is_near_the_exact_one(name: str, rows: int) -> None:
    parts = [blocks(64, 96), blocks(32, 96)]  # two layers with one input, the second with a bias
    weights = [Weight(dequantised(each), None, each) for each in parts]
    bias = torch.randn(32)
    joined = Weight.joined([weights[0], Weight(weights[1].full, bias, parts[1])])
    x = torch.randn(rows, 96)
    exact = torch.cat([x @ weights[0].full.T, x @ weights[1].full.T + bias], 1)
    got = Linear(joined, [name], "cpu")(x, name).float()
    assert float((got - exact).norm() / exact.norm()) < ROUNDING[name]


def test_the_four_bit_numbers_read_from_the_file_are_the_models_weights(embedded: Base) -> None:
    model: Any = base_model.load_model(embedded, torch.bfloat16, "cpu")
    found = read_four_bit(base_model.carried_gguf(), model.config)
    assert len(found) > 100
    for name in (*list(found)[:7], *list(found)[-7:]):
        torch.testing.assert_close(
            dequantised(found[name]), model.get_submodule(name).weight.float(), rtol=0.01, atol=1e-4
        )


def only(name: str) -> tuple[Plan, Plan]:
    """A plan of one format; the head is never four-bit."""
    return Plan.only(name), Plan.only(INT8 if name == INT4 else name)


def conversation(base: Base) -> list[int]:
    """A chat of several turns, as token ids."""
    said = [Message(role, text) for both in PROOF_TEXTS for role, text in zip(("user", "assistant"), both, strict=True)]
    return chat_template.encode_prompt(base_model.load_tokenizer(base), [*said, Message("user", "Thank you!")], 4000)


def log_probs(network: Any, ids: list[int], piece: int) -> Tensor:
    """The distributions behind every `piece`-th token of a text, (tokens / piece, V), in nats."""
    row = network.new_cache(1 << 30).take(len(ids), None)
    logits = [
        network.forward([SequenceChunk(row, ids[at : at + piece])])[0] for at in range(0, len(ids) - piece, piece)
    ]
    return torch.stack(logits).double().log_softmax(-1)


@pytest.fixture(scope="module")
def exact(embedded: Base) -> Tensor:
    """In float32, token by token."""
    return log_probs(open_network(embedded, FLOAT32, "cpu"), conversation(embedded), 1)


def require_near(exact: Tensor, served: Tensor) -> None:
    kl = float((exact.exp() * (exact - served)).sum(-1).mean())
    print(f"mean KL from float32: {kl:.2g} nats a token")
    assert 0 <= kl < MOST_NATS


@pytest.mark.soak
@pytest.mark.parametrize("name", FORMATS[1:])
def test_the_embedded_model_in_every_format_is_near_float32(
    embedded: Base, exact: Tensor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "plans", lambda *_: only(name))
    require_near(exact, log_probs(open_network(embedded, name, "cpu"), conversation(embedded), 1))


@pytest.mark.soak
def test_the_default_format_is_near_float32_in_small_steps_and_in_large_ones(embedded: Base, exact: Tensor) -> None:
    network, ids = open_network(embedded, AUTO, "cpu"), conversation(embedded)
    print(network.number_format)
    for piece in (1, 4, 40):
        require_near(exact[piece - 1 :: piece][: (len(ids) - 1) // piece], log_probs(network, ids, piece))


@pytest.mark.soak
@pytest.mark.parametrize("name", FORMATS)
def test_the_embedded_model_answers_sensibly_in_every_format(
    embedded: Base, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "plans", lambda *_: only(name))
    tokenizer = base_model.load_tokenizer(embedded)
    engine = Engine(embedded, name, "cpu", tokenizer)
    # Each word of its answer is more than a nat ahead in float32; "the capital of France" begins with a near tie.
    ids = chat_template.encode_prompt(tokenizer, [Message("user", "Name the capital city of Japan.")], 1000)
    reply = [token.id for token in engine.submit(ids, Sampling(temperature=0, max_tokens=24))]
    engine.close()
    assert "Tokyo" in tokenizer.decode(reply)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Base, Path]:
    """A small model on a machine where nothing has been measured yet, and the file that will be kept."""
    base = save_small(tmp_path / "model", transformers.AutoConfig.for_model("llama", **SIZES | {"hidden_size": 64}))
    monkeypatch.setenv("NIGHTSCHOOL_CACHE", str(tmp_path / "cache"))
    return base, tmp_path / "cache" / "speed.json"


def measured(base: Base, asked: str = AUTO) -> tuple[Plan, Plan]:
    return autotune.plans(base, base_model.load_model(base, torch.bfloat16, "cpu"), asked, {})


def test_what_was_measured_is_kept_and_not_measured_again(own_cache: tuple[Base, Path]) -> None:
    base, kept = own_cache
    first = measured(base)
    written = kept.read_bytes()
    assert measured(base) == first
    assert kept.read_bytes() == written
    measured(base, INT8)  # another question, beside the first
    assert len(json.loads(kept.read_text())) == 2


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", "5", b"\xff\xfe".decode("latin-1")],
)
def test_a_damaged_file_of_measurements_is_made_again(own_cache: tuple[Base, Path], damage: str) -> None:
    base, kept = own_cache
    measured(base)
    whole = json.loads(kept.read_text())
    kept.write_text(damage)
    measured(base)
    assert json.loads(kept.read_text()).keys() == whole.keys()


@pytest.mark.parametrize(
    "damage", [None, 5, [], "x", [[]], [[], []], [[[0, "int3"]], [[0, "float32"]]], [[[0, 7]], [["a", "float32"]]]]
)
def test_a_damaged_measurement_is_made_again(own_cache: tuple[Base, Path], damage: Any) -> None:
    base, kept = own_cache
    measured(base)
    key = next(iter(json.loads(kept.read_text())))
    kept.write_text(json.dumps({key: damage}))
    plan, head_plan = measured(base)
    assert {*plan.formats, *head_plan.formats} <= set(FORMATS)
    assert all(plan.format(rows) in FORMATS for rows in (1, 9, 1000))


@pytest.mark.parametrize("asked", [AUTO, INT8, FLOAT32, BFLOAT16])
def test_a_plan_holds_every_number_of_rows(own_cache: tuple[Base, Path], asked: str) -> None:
    for plan in measured(own_cache[0], asked):
        assert {plan.format(rows) for rows in range(1, 3000)} <= plan.formats <= set(FORMATS)


def test_eight_bits_cost_what_is_measured_with_them_and_harm_is_not_chosen(own_cache: tuple[Base, Path]) -> None:
    base, _ = own_cache
    model = base_model.load_model(base, torch.bfloat16, "cpu")
    harmless = cost_of_eight_bits(base, model)
    for each in model.modules():
        if isinstance(each, torch.nn.Linear):
            each.weight.data[:, 0] *= 300  # beside which the rest of a row is nothing
    harm = cost_of_eight_bits(base, model)
    assert 0 < harmless < MOST_NATS < harm
    plan, head_plan = autotune.plans(base, model, AUTO, {})
    assert INT8 not in plan.formats | head_plan.formats


@pytest.mark.soak
def test_the_cost_of_eight_bits_is_near_what_the_engine_shows(embedded: Base) -> None:
    cost = cost_of_eight_bits(embedded, base_model.load_model(embedded, torch.bfloat16, "cpu"))
    print(f"{cost:.2g} nats a token")
    assert 0.001 < cost < MOST_NATS


@given(st.lists(st.tuples(st.integers(0, 200), st.sampled_from(FORMATS)), min_size=1))
def test_any_plan_gives_the_first_format_whose_rows_are_not_exceeded_or_the_last(steps: list[tuple[int, str]]) -> None:
    plan = Plan(tuple(steps))
    for rows in (1, 2, 50, 200, 201, 10**6):
        fitting = [name for most, name in steps if rows <= most]
        assert plan.format(rows) == (fitting[0] if fitting else steps[-1][1])


def test_a_format_that_a_model_cannot_have_is_refused(own_cache: tuple[Base, Path]) -> None:
    with pytest.raises(Refused, match="int4 is for models whose weights are four-bit already"):
        open_network(own_cache[0], INT4, "cpu")
    with pytest.raises(Refused, match="one of auto, float32, bfloat16, int8, int4, not 'float8'"):
        open_network(own_cache[0], "float8", "cpu")
    assert load.TOLERANCES.keys() == set(FORMATS)
