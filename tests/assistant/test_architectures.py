"""Every family of models that is served computes what transformers and PEFT do, each text with its own adapter."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from assistant.engine.engine import Engine
from assistant.engine.hf_runner import PlainNetwork
from assistant.engine.model_runner import Network
from assistant.engine.request import Generation
from assistant.engine.sampling.params import Sampling
from assistant.models import base_model
from assistant.models.adapter import CONFIG, WEIGHTS, AdapterRefused
from assistant.models.base_model import Base
from tests.helpers.small_models import Reference, require_equal, save_adapter, save_small, sign

WINDOW = 24  # tokens that a layer with a window sees, and fewer than any text here has
LONG = (70, 45, 130)  # tokens of the prompts
GREEDY = Sampling(temperature=0, max_tokens=24)
SIZES = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
TWO_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
# Gemma multiplies embeddings by the root of its width: larger ones than these would drown what its layers add.
GEMMA = {"initializer_range": 0.05, "query_pre_attn_scalar": 20, "tie_word_embeddings": True, "head_dim": 16}
CAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 0.5}

FAST: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied, a key for each query": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "llama with biases and wide heads": {"attention_bias": True, "mlp_bias": True, "head_dim": 20},
    "llama with llama3 ropes": {"rope_parameters": LLAMA3},
    "llama with yarn ropes": {"rope_parameters": YARN},
    "smollm": {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1},
    "mistral": {"sliding_window": WINDOW},
    "mistral without a window": {"sliding_window": None, "head_dim": 16},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2 with windows": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {"sliding_window": WINDOW, "layer_types": MIXED} | GEMMA | CAPS,
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": MIXED, "rope_parameters": TWO_ROPES} | GEMMA,
}
PLAIN: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 48, "dropout": 0.0},
    "phi": {"partial_rotary_factor": 0.5},
}


@dataclass(frozen=True)
class Case:
    """A model in the engine and in transformers, with the same adapters."""

    engine: Engine
    reference: Reference
    loaded: dict[str | None, Any]

    def submit(self, prompt_ids: list[int], adapter: str | None) -> Generation:
        return self.engine.submit(prompt_ids, GREEDY, self.loaded[adapter])


def some_of(kind: str) -> list[str]:
    """Some of a model's linear layers, whole groups and parts of one."""
    return {"gpt_neox": ["query_key_value"], "opt": ["q_proj", "fc2"], "phi": ["v_proj", "fc1"]}.get(
        kind, ["q_proj", "v_proj", "up_proj"]
    )


def save_case(folder: Path, name: str, options: dict[str, Any]) -> tuple[Base, dict[str, Path]]:
    """The model of a case, an adapter on all of its linear layers and one on some."""
    kind = "llama" if name == "smollm" else name.split()[0]
    config = transformers.AutoConfig.for_model(kind, **SIZES | options)
    base = save_small(folder / "model", config)
    return base, {
        "all": save_adapter(folder / "all", base, 1, r=8, lora_alpha=16, target_modules="all-linear"),
        "some": save_adapter(folder / "some", base, 2, r=3, lora_alpha=9, target_modules=some_of(kind)),
    }


def opened(base: Base, directories: dict[str, Path]) -> Case:
    engine = Engine(base, "float32", "cpu", base_model.load_tokenizer(base))
    reference = Reference(base, directories, attention="eager")  # which alone knows soft caps
    loaded: dict[str | None, Any] = {name: engine.load(directory) for name, directory in directories.items()}
    return Case(engine, reference, loaded | {None: None})


RARE = ("llama tied, a key for each query", "llama with yarn ropes", "mistral without a window", "opt", "phi")


def each_time(name: str) -> Any:
    """A case of every test run, or one whose parts others have, too."""
    return pytest.param(name, marks=pytest.mark.soak) if name in RARE else name


@pytest.fixture(scope="module", params=map(each_time, [*FAST, *PLAIN]))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    made = opened(*save_case(tmp_path_factory.mktemp("case"), request.param, (FAST | PLAIN)[request.param]))
    assert isinstance(made.engine.network, Network if request.param in FAST else PlainNetwork)
    yield made
    made.engine.close()


def random_ids(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(3, 512), k=count)


def test_texts_and_log_probs_are_those_of_transformers_with_every_adapter_at_once(case: Case) -> None:
    asked = [(random_ids(length, length), name) for length in LONG for name in case.loaded]
    expected = [case.reference.write(ids, name, 24) for ids, name in asked]
    by_prompt = [expected[at : at + 3] for at in range(0, len(expected), 3)]
    assert all(len({tuple(each.token_ids) for each in three}) == 3 for three in by_prompt)
    together = [case.submit(*each) for each in asked]
    replies = [list(each) for each in together]
    require_equal([[token.id for token in each] for each in replies], expected)
    for (ids, name), reply in zip(asked, replies, strict=True):
        plain = case.reference.logprobs(ids, [token.id for token in reply], name)
        assert [token.logprob for token in reply] == pytest.approx(plain, abs=1e-4)


def test_a_given_text_is_read_as_transformers_reads_it_far_behind_every_window(case: Case) -> None:
    prompt_ids, reply_ids = random_ids(7, 40), random_ids(8, 90)
    read = {name: case.engine.score(prompt_ids, reply_ids, loaded) for name, loaded in case.loaded.items()}
    for name, each in read.items():
        plain = case.reference.logprobs(prompt_ids, reply_ids, name)
        # Of random texts log-probs are near -10, and fp32 on both sides is good to some 1e-5 of that, more or less by
        # the processor.
        assert [token.logprob for token in each] == pytest.approx(plain, abs=1e-4, rel=5e-5)


def test_beams_are_those_of_transformers(case: Case) -> None:
    prompt_ids = random_ids(9, 50)
    beams = Sampling(temperature=0, beams=3, max_tokens=12)
    for name, loaded in case.loaded.items():
        expected = case.reference.write(prompt_ids, name, 12, num_beams=3)
        assert [token.id for token in case.engine.submit(prompt_ids, beams, loaded)] == expected.token_ids


RANKS = [
    {"r": 1, "lora_alpha": 1, "target_modules": ["v_proj"]},
    {"r": 2, "lora_alpha": 16, "target_modules": ["gate_proj"]},
    {"r": 16, "lora_alpha": 8, "target_modules": ["k_proj", "o_proj", "down_proj"], "use_rslora": True},
    {"r": 64, "lora_alpha": 16, "target_modules": "all-linear"},
    {"r": 33, "lora_alpha": 7, "target_modules": "all-linear", "use_rslora": True},
    {"r": 5, "lora_alpha": 20, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    {"r": 4, "lora_alpha": 8, "target_modules": ["up_proj"], "init_lora_weights": "orthogonal"},
]


def test_adapters_of_any_rank_scale_and_choice_of_layers_beside_each_other(tmp_path: Path) -> None:
    base = save_small(tmp_path / "model", transformers.AutoConfig.for_model("llama", **SIZES))
    directories = {f"a{at}": save_adapter(tmp_path / f"a{at}", base, at, **each) for at, each in enumerate(RANKS)}
    case = opened(base, directories)
    together = {name: case.submit(random_ids(1, 50), name) for name in case.loaded}
    written = {name: [token.id for token in each] for name, each in together.items()}
    expected = [case.reference.write(random_ids(1, 50), name, 24) for name in written]
    require_equal(list(written.values()), expected)
    assert len({tuple(each) for each in written.values()}) == len(written)
    case.engine.close()


# What PEFT can write that is not the plain product served here: its options, and a word of the reason.
NOT_SERVED: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2}},
    "trainable_token_indices": {"trainable_token_indices": {"embed_tokens": [1, 2]}},
    "biases": {"bias": "all"},
    "lora_bias|weights that are not served": {"lora_bias": True},
    "alora_invocation_tokens": {"alora_invocation_tokens": [5, 6]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 3]]},
    "begun by 'pissa'": {"init_lora_weights": "pissa"},
    "begun by 'pissa_niter_4'": {"init_lora_weights": "pissa_niter_4"},
    "begun by 'olora'": {"init_lora_weights": "olora"},
    "weights that are not served: .*embed": {"target_modules": ["q_proj", "embed_tokens"]},
    "a layer that the model has not: lm_head": {"target_modules": ["q_proj", "lm_head"]},
    "wrong shape": {"r": 300},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine on a small model."""
    folder = tmp_path_factory.mktemp("small")
    base = save_small(folder, transformers.AutoConfig.for_model("llama", **SIZES))
    engine = Engine(base, "float32", "cpu", base_model.load_tokenizer(base))
    yield engine
    engine.close()


@pytest.mark.parametrize("reason", NOT_SERVED)
def test_an_adapter_that_is_more_than_a_plain_lora_is_refused_with_the_reason(
    small: Engine, tmp_path: Path, reason: str
) -> None:
    options = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]} | NOT_SERVED[reason]
    directory = save_adapter(tmp_path / "adapter", small.base, 1, **options)
    before = small.network.lineup.nbytes  # type: ignore[attr-defined]
    with pytest.raises(AdapterRefused, match=reason):
        small.load(directory)
    assert small.network.lineup.nbytes == before  # type: ignore[attr-defined]


def shortened(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name] = weights[name][:, :-1].contiguous()


def not_a_number(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name][0, 0] = torch.nan


def endless(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name][0, 0] = torch.inf


def left_out(weights: dict[str, torch.Tensor], name: str) -> None:
    del weights[name]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shortened, "wrong shape"),
        (not_a_number, "not finite"),
        (endless, "not finite"),
        (left_out, "wrong shape|not served"),
    ],
)
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_factors_that_do_not_fit_or_are_no_numbers_are_refused(
    small: Engine, tmp_path: Path, factor: str, damage: Any, reason: str
) -> None:
    directory = save_adapter(tmp_path / "adapter", small.base, 1, r=4, lora_alpha=4, target_modules=["k_proj"])
    weights = load_file(directory / WEIGHTS)
    damage(weights, next(name for name in weights if factor in name))
    save_file(weights, directory / WEIGHTS)
    sign(directory, small.base)
    with pytest.raises(AdapterRefused, match=reason):
        small.load(directory)


def test_a_scale_that_makes_factors_infinite_is_refused(small: Engine, tmp_path: Path) -> None:
    directory = save_adapter(tmp_path / "adapter", small.base, 1, r=4, lora_alpha=4, target_modules=["k_proj"])
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps(config | {"lora_alpha": 1e300}))
    with pytest.raises(AdapterRefused, match="not finite"):
        small.load(directory)
