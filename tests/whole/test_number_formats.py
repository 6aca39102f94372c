"""A base stored in any number format is chatted with, trained, proved and promoted, on the same numbers everywhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from assistant.chat import chat
from assistant.chat.adapter_manager import proved
from assistant.chat.assistant import Assistant, open_assistant
from assistant.engine.engine import Engine
from assistant.engine.sampling.params import Sampling
from assistant.engine.vllm.engine import RemoteEngine
from assistant.models import base_model
from assistant.models.adapter import (
    AdapterCard,
    AdapterRefused,
    Agreement,
    LoadedAdapter,
    agreement,
    read_card,
    write_card,
)
from assistant.models.base_model import Base
from assistant.models.remarks import remarks
from benchmarks.rounding import moved
from feedback.accounts import users
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.records import adapters, nights
from tests.assistant.test_architectures import SIZES
from tests.helpers.nights import run
from tests.helpers.small_models import few_words, save_small
from tests.training.test_night import SMALL, last, say
from training.data.tokenize import Encoder
from training.model.policy import Backbone
from training.model.reference import References
from training.night import publish
from training.rollouts.sampler import factors_of

ONE_STEP = ["min_steps=1", "epochs=1", "batch_size=8", "evals_per_epoch=1"]
FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SMALLER = {"num_hidden_layers": 2, "initializer_range": 0.1}
HEADS = {"head_dim": 16}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
GEMMA = HEADS | {"query_pre_attn_scalar": 20, "initializer_range": 0.05, "final_logit_softcapping": None}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "gemma3_text": GEMMA,
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4},
}
RARER: dict[str, dict[str, Any]] = {
    "mistral": HEADS,
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": HEADS,
    "gemma2": GEMMA,
    "phi3": {},
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 48, "dropout": 0.0},
    "starcoder2": {},
    "olmo2": {},
    "granite": {},
    "smollm3": {},
    "qwen2_moe": EXPERTS,
    "gpt2": {},
}
ALL = [*KINDS, *(pytest.param(each, marks=pytest.mark.soak) for each in RARER)]


@pytest.fixture(scope="module", params=ALL)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A small model with random weights, in float32."""
    tokenizer = few_words()
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    own = SIZES | SMALLER | ends | {"vocab_size": len(tokenizer)} | (KINDS | RARER)[request.param]
    config = transformers.AutoConfig.for_model(request.param, **own)
    return save_small(tmp_path_factory.mktemp("kind") / "base", config, tokenizer=tokenizer)


def stored_as(folder: Path, base: Base, stored: torch.dtype) -> Base:
    """A copy of a base, stored in this number format."""
    shutil.copytree(base.path, folder)
    for path in folder.glob("*.safetensors"):
        save_file({name: each.to(stored) for name, each in load_file(path).items()}, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": str(stored).removeprefix("torch.")}))
    return base_model.find_base(str(folder))


def talk(assistant: Assistant) -> str | None:
    """One turn; the adapter that answered."""
    me = users.local_owner(assistant.store)
    parent = chat.add_user_message(assistant, me, None, None, "Hello!")
    reply = chat.start_reply(assistant, me, parent, Sampling(temperature=0, max_tokens=3))
    list(reply)
    assert reply.recorded
    return reply.adapter


@pytest.mark.parametrize("stored", FORMATS)
def test_chat_night_proof_and_promotion(kind: Base, stored: str, tmp_path: Path) -> None:
    base = stored_as(tmp_path / "base", kind, FORMATS[stored])
    store = say(tmp_path / "data")
    done = run(tmp_path / "data", base.name, "--gate", "off", settings=[*ONE_STEP, "precision=bfloat16"])
    assert done.returncode == 0, done.stderr
    assert adapters.serving(store) == "night-0001", last(store).reason
    proof = json.loads(store.rows("SELECT proof FROM promotions")[0]["proof"])
    assert max(proof["from_trainer"], proof["base_from_trainer"]) < 2e-4 < proof["from_base"]
    assistant = open_assistant(store, base.name, dtype="float32")
    try:
        assert talk(assistant) == "night-0001"  # proved once more, by this engine
    finally:
        assistant.close()


@pytest.fixture(scope="module")
def nightly(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Path]:
    """A model stored in float32, and a data folder with an adapter that a night has trained in float32 for it."""
    folder = tmp_path_factory.mktemp("nightly")
    base = moved(tiny, folder / "base", torch.float32)
    say(folder / "data").close()
    done = run(folder / "data", base.name, settings=[*SMALL, "precision=float32"])
    assert done.returncode == 0, done.stderr
    assert "stored as float32 and rounded to bfloat16" in done.stdout
    return base, folder / "data"


def test_a_night_s_own_number_format_is_on_the_card(nightly: tuple[Base, Path]) -> None:
    _, data = nightly
    card = read_card(data / "adapters" / "night-0001")
    assert card.settings["precision"] == "float32"
    store = Database(data)
    assert nights.nights(store)[0].verdict == "candidate"
    store.close()


def test_a_proof_of_weights_that_were_not_rounded_is_refused_for_the_number_format(
    nightly: tuple[Base, Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    base, data = nightly
    directory = data / "adapters" / "night-0001"
    card = read_card(directory)
    exact = transformers.AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(exact, str(directory)).eval()

    def logprobs(prompt_ids: list[int], reply_ids: list[int]) -> list[float]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt_ids + reply_ids])).logits[0, len(prompt_ids) - 1 : -1]
        found: list[float] = logits.log_softmax(-1).gather(-1, torch.tensor(reply_ids)[:, None])[:, 0].tolist()
        return found

    proofs = []
    for each in card.proof:
        own = logprobs(each.prompt_ids, each.reply_ids)
        with model.disable_adapter():
            proofs.append(replace(each, logprobs=own, base_logprobs=logprobs(each.prompt_ids, each.reply_ids)))
    older = tmp_path / "older"
    older.mkdir()
    for file in directory.iterdir():
        (older / file.name).write_bytes(file.read_bytes())
    write_card(older, replace(card, proof=proofs))
    engine = Engine(base, "float32", "cpu", base_model.load_tokenizer(base))
    try:
        proved(engine, directory)
        with pytest.raises(AdapterRefused, match="were read in another number format") as told:
            proved(engine, older)
    finally:
        engine.close()
    assert "\n" not in str(told.value)


def test_only_a_rounding_that_changes_something_is_told(tiny: Base, tmp_path: Path) -> None:
    tokenizer = base_model.load_tokenizer(tiny)
    changed = {name: moved(tiny, tmp_path / name, FORMATS[name]) for name in ("float32", "float16")}
    for name, base in changed.items():
        (said,) = remarks(base, tokenizer)
        assert f"are stored as {name} and rounded to bfloat16" in said
    same = moved(tiny, tmp_path / "same", torch.bfloat16)
    for path in same.path.glob("*.safetensors"):
        save_file({name: each.float() for name, each in load_file(path).items()}, path, {"format": "pt"})
    assert remarks(base_model.find_base(str(same.path)), tokenizer) == []


def test_kept_log_probs_of_weights_that_were_not_rounded_are_not_used(nightly: tuple[Base, Path], tiny: Base) -> None:
    names = [
        References(Backbone(base, dtype, "cpu", 2, 4, 0)).reference
        for base in (nightly[0], tiny)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert [name.split(" ", 1)[1] for name in names] == ["float32 rounded", "bfloat16", "float32", "bfloat16"]


def test_a_model_server_that_would_not_round_is_refused_before_it_is_asked(tiny: Base, tmp_path: Path) -> None:
    base = moved(tiny, tmp_path / "base", torch.float32)
    with pytest.raises(Refused, match=r"stored as float32, .* start vLLM with --dtype bfloat16"):
        RemoteEngine("http://127.0.0.1:9", base, base_model.load_tokenizer(base), "float32")


def served_as_trained(base: Base, precision: torch.dtype) -> Agreement:
    """The product's own proof, from a training in this precision to the engine that judges exactly."""
    tokenizer = base_model.load_tokenizer(base)
    backbone = Backbone(base, precision, "cpu", rank=4, alpha=8, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, each in backbone.parameters().items():
        if ".lora_B." in name:
            each.data.normal_(std=0.02, generator=generator)
    factors = factors_of(backbone)
    proofs = publish.prove(backbone, Encoder(tokenizer, frozenset([tokenizer.eos_token_id]), "", 512))
    engine = Engine(base, "float32", "cpu", tokenizer, driven=True)
    card = AdapterCard("policy", base.name, base.sha256, None, "", "", "", {}, {}, 0, {})
    both = (LoadedAdapter("policy", card, engine.network.add(factors)), None)
    read = [[engine.score(each.prompt_ids, each.reply_ids, by) for each in proofs] for by in both]
    served, served_base = ([[token.logprob for token in reply] for reply in replies] for replies in read)
    engine.close()
    return agreement(proofs, served, served_base, engine.tolerance)


@pytest.mark.soak
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_the_embedded_model_in_any_format_is_served_as_it_is_trained(
    embedded: Base, tmp_path: Path, stored: str, precision: torch.dtype
) -> None:
    found = served_as_trained(moved(embedded, tmp_path / "base", FORMATS[stored]), precision)
    found.require("policy")
    assert found.from_trainer < 1e-4 < found.from_base
