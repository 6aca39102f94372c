"""Adapters on disk: the contents of a directory, and the checks before an adapter may answer.

A directory holds what PEFT writes (so any PEFT user can load it) and a card that says where it came from. It is
refused, with the reason, unless it is complete, made for this base, and of a kind that can be served.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant.models.base_model import file_sha256, one_line
from feedback.errors import Refused
from feedback.records import old_names

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CARD = "card.json"
HIGHEST_RANK = 256
HIGHEST_ALPHA = 1e6
HIGHEST_ID = 2**31  # of a token
HIGHEST_NATS = 1e9

# What PEFT can add to a plain LoRA, which the engine's two matrix products would ignore.
UNSERVED = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "corda_config",
    "kasa_config",
    "layer_replication",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)

# How PEFT may have begun an adapter without changing the base's own weights. From other beginnings (PiSSA, OLoRA) it
# changes them each time the adapter is loaded.
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")

# For each linear layer by name, a (r, in) and scaled b (out, r): the adapter adds (x a') b' to its output.
Factors = Mapping[str, tuple[Tensor, Tensor]]

# The proof scores these replies: the trainer and the server must agree on their tokens' log-probs.
PROOF_TEXTS = (
    ("What should I cook tonight?", "How about a vegetable soup? It is quick, warm and cheap."),
    ("Write one line of Python that reverses a list.", "```python\nitems = items[::-1]\n```"),
    ("I feel tired all the time.", "I'm sorry to hear that. How much do you sleep, and is anything worrying you?"),
    ("Is the earth flat?", "No. It is round, as photographs from space and travel around it show."),
)


SURE = 3  # standard errors
SHARE_TOLERANCE = 0.1  # of an adapter's effect, in addition to the format's error


class AdapterRefused(Refused):
    """This adapter cannot be served; the message says why."""


@dataclass(frozen=True)
class Proof:
    """One proof text as the trainer saw it: log-probs in nats, one per reply token."""

    prompt_ids: list[int]
    reply_ids: list[int]
    logprobs: list[float]  # with the adapter
    base_logprobs: list[float]  # without


@dataclass(frozen=True)
class AdapterCard:
    """The provenance of an adapter, kept beside its weights."""

    id: str
    base_name: str
    base_sha256: str
    parent: str | None
    method: str
    weights_sha256: str
    data_sha256: str
    counts: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    metrics: dict[str, float]
    proof: list[Proof] = field(default_factory=list)


@dataclass(frozen=True, eq=False)  # two loads of one adapter are distinct
class LoadedAdapter:
    """An adapter that an engine can answer with. `lora_slot` is where that engine keeps it."""

    id: str
    card: AdapterCard
    lora_slot: Any = None


def write_card(directory: Path, card: AdapterCard) -> None:
    """Write the card into an adapter's directory."""
    (directory / CARD).write_text(json.dumps(asdict(card), indent=1))


def read_card(directory: Path) -> AdapterCard:
    """Read an adapter's card. Raises `AdapterRefused` if it is missing or cannot be read."""
    try:
        raw = json.loads((directory / CARD).read_text())
        named = {"settings": old_names.settings(raw["settings"]), "metrics": old_names.metrics(raw["metrics"])}
        card = AdapterCard(**raw | named | {"proof": [Proof(**each) for each in raw["proof"]]})
    except OSError as error:
        raise AdapterRefused(f"adapter {directory.name} has no {CARD}; its directory is not whole") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AdapterRefused(f"adapter {directory.name} has a damaged {CARD}") from error
    texts = (card.id, card.base_name, card.base_sha256, card.method, card.weights_sha256)
    if not all(isinstance(each, str) for each in texts) or not all(map(_is_possible, card.proof)):
        raise AdapterRefused(f"adapter {directory.name} has a damaged {CARD}")
    return card


def _is_possible(proof: Proof) -> bool:
    """Whether a proof holds lists of token ids and of finite log-probs, with both log-probs for every reply token."""
    ids, numbers = (proof.prompt_ids, proof.reply_ids), (proof.logprobs, proof.base_logprobs)
    return (
        all(isinstance(each, list) for each in (*ids, *numbers))
        and all(type(each) is int and 0 <= each < HIGHEST_ID for some in ids for each in some)
        and all(type(each) in (int, float) and abs(each) < HIGHEST_NATS for some in numbers for each in some)
        and len(proof.prompt_ids) > 0
        and len(proof.reply_ids) == len(proof.logprobs) == len(proof.base_logprobs) > 0
    )


def checked_card(directory: Path, base_sha256: str) -> AdapterCard:
    """The card of an adapter that is complete, undamaged, made for this base and of a kind that can be served.

    Raises `AdapterRefused` with the reason if it is not.
    """
    name = directory.name
    if not directory.is_dir():
        raise AdapterRefused(f"there is no adapter directory {directory.name}")
    card = read_card(directory)
    if card.base_sha256 != base_sha256:
        raise AdapterRefused(f"adapter {name} was made for another base model ({card.base_name})")
    weights = directory / WEIGHTS
    if not weights.is_file() or file_sha256(weights) != card.weights_sha256:
        raise AdapterRefused(f"adapter {name} is damaged: {WEIGHTS} is not what its card says")
    _config(directory)
    return card


def read_adapter(
    directory: Path, base_sha256: str, shapes: Mapping[str, tuple[int, int]]
) -> tuple[AdapterCard, Factors]:
    """Read and check an adapter's card and factors for a base whose linear layers' (out, in) are given by name.

    Raises `AdapterRefused` if it is incomplete, damaged, made for another base, or of a kind that is not served.
    """
    return checked_card(directory, base_sha256), read_factors(directory, shapes)


def _config(directory: Path) -> dict[str, Any]:
    """Read PEFT's config. Raises `AdapterRefused` on anything that is not served."""
    name = directory.name
    try:
        config: dict[str, Any] = json.loads((directory / CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterRefused(f"adapter {name} has no readable {CONFIG}") from error
    if not isinstance(config, dict):
        raise AdapterRefused(f"adapter {name} has no readable {CONFIG}")
    if config.get("peft_type") != "LORA":
        raise AdapterRefused(f"adapter {name} is {str(config.get('peft_type'))[:40]!r}, and only LORA is served")
    for option in UNSERVED:
        if config.get(option):
            raise AdapterRefused(f"adapter {name} uses {option}, which is not served")
    begun = config.get("init_lora_weights")
    if (begun.lower() if isinstance(begun, str) else begun) not in BEGINNINGS:
        raise AdapterRefused(
            f"adapter {name} was begun by {str(begun)[:40]!r}, which changes the base's own weights, and that is not "
            "served; have PEFT convert it to a plain LoRA (path_initial_model_for_weight_conversion)"
        )
    if config.get("bias", "none") != "none":
        raise AdapterRefused(f"adapter {name} trains biases, which is not served")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise AdapterRefused(f"adapter {name} has no lora_alpha that is a number")
    if not abs(alpha) < HIGHEST_ALPHA:
        raise AdapterRefused(f"adapter {name} has a lora_alpha with which its factors are not finite")
    if not isinstance(config.get("use_rslora") or False, bool):
        raise AdapterRefused(f"adapter {name} does not say by true or false whether it uses use_rslora")
    return config


def read_factors(directory: Path, shapes: Mapping[str, tuple[int, int]]) -> Factors:
    """Read an adapter's factors for the linear layers of a model, whose (out, in) are given by name.

    Raises `AdapterRefused` if they do not fit the model or are not finite.
    """
    from safetensors.torch import load_file

    name, config = directory.name, _config(directory)
    try:
        tensors = load_file(directory / WEIGHTS)
    except Exception as error:  # safetensors raises its own class, not importable by a stable name
        raise AdapterRefused(f"adapter {name} cannot be read: {one_line(error)}") from error
    factors = {}
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        a, b = tensors.pop(key), tensors.pop(key.replace(".lora_A.", ".lora_B."), None)
        if layer not in shapes:
            raise AdapterRefused(f"adapter {name} is for a layer that the model has not: {layer}")
        outputs, inputs = shapes[layer]
        rank = a.shape[0] if a.dim() else 0
        fits = b is not None and a.shape == (rank, inputs) and b.shape == (outputs, rank)
        if b is None or not fits or not 1 <= rank <= HIGHEST_RANK:
            raise AdapterRefused(f"adapter {name} has the wrong shape at {layer}")
        scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        factors[layer] = a.float(), b.float() * scale
        if not all(each.isfinite().all() for each in factors[layer]):
            raise AdapterRefused(f"adapter {name} has numbers that are not finite at {layer}")
    if tensors or not factors:
        raise AdapterRefused(f"adapter {name} holds weights that are not served: {next(iter(tensors), 'none at all')}")
    return factors


@dataclass(frozen=True)
class Agreement:
    """How the server's log-probs of the proof tokens compare with the trainer's.

    The adapter's effect is what it adds to the base's log-probs. The server's share of it is the projection of the
    served effect on the trainer's: 1 if all of it is served, 0 if the base answers. The base's own rounding cancels
    out, so the share reveals even a weak adapter in a number format that rounds.
    """

    from_trainer: float  # nats per token, root mean square
    from_base: float  # the same, from the trainer's base
    share: float
    share_error: float  # its standard error, from the format's rounding of the base
    tolerance: float  # the most that from_trainer may be
    base_from_trainer: float = 0.0  # nats per token, root mean square: the server's base from the trainer's

    def require(self, name: str) -> None:
        """Raise `AdapterRefused` unless the server computes what the trainer did, and not the base."""
        if math.isnan(self.from_trainer):
            raise AdapterRefused(f"adapter {name} has no proof on its card")
        if not self.from_trainer <= self.tolerance and not self.base_from_trainer <= self.tolerance:
            raise AdapterRefused(
                f"adapter {name} failed its proof: without it, too, the server's log-probs differ from the trainer's, "
                f"by {self.base_from_trainer:.2g} nats a token, and {self.tolerance:g} is allowed: the base's weights "
                "were read in another number format then (now they are rounded to bfloat16), so train it anew"
            )
        if not self.from_trainer <= self.tolerance:
            raise AdapterRefused(
                f"adapter {name} failed its proof: the server's log-probs differ from the trainer's by "
                f"{self.from_trainer:.2g} nats a token, and {self.tolerance:g} is allowed"
            )
        if not self.share > SURE * self.share_error:
            raise AdapterRefused(
                f"adapter {name} failed its proof: it answers like the base model, as far as the server's number "
                "format tells"
            )
        if not abs(self.share - 1) <= SHARE_TOLERANCE + SURE * self.share_error:
            raise AdapterRefused(
                f"adapter {name} failed its proof: {self.share:.0%} of what it learned is served instead of all"
            )


def agreement(
    proofs: Sequence[Proof], served: Sequence[Sequence[float]], served_base: Sequence[Sequence[float]], tolerance: float
) -> Agreement:
    """Compare the server's log-probs, with the adapter and without, with those on the card.

    Each holds one list per proof; `tolerance` is the number format's, in nats per token.
    """
    ours, our_base = _in_a_row(served), _in_a_row(served_base)
    trainer, base = _in_a_row([each.logprobs for each in proofs]), _in_a_row([each.base_logprobs for each in proofs])
    effect = trainer - base
    strength = effect.square().sum()
    share = (ours - our_base) @ effect / strength
    error = 2**0.5 * _rms(our_base - base) / strength.sqrt()  # both runs are rounded
    from_base, off = _rms(ours - base), _rms(our_base - base)
    return Agreement(_rms(ours - trainer), from_base, float(share), float(error), tolerance, off)


def _in_a_row(texts: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([each for text in texts for each in text], dtype=torch.float64)


def _rms(difference: Tensor) -> float:
    """The root mean square; NaN if there is nothing to compare, which no proof passes."""
    return float(difference.square().mean().sqrt())
