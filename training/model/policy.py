"""One frozen base model with LoRA adapters on it: the policy, reward models and a value model.

The base is in memory once: switching means naming another adapter, and without any it is the reference model. Rows are
computed as packs (`packing`). Log-probs are computed at reply tokens only, a chunk of positions at a time, so no tensor
of all positions by the whole vocabulary ever exists.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.models import base_model
from assistant.models.adapter import UNSERVED, AdapterRefused, read_adapter
from assistant.models.base_model import Base
from feedback.errors import Refused
from training.model import tree_attention
from training.model.packing import Pack, Row, pack

LOGITS = 50_000_000  # bytes of logits in memory at once
IN_CACHE = 8  # positions whose logits a CPU normalises at once, so that they stay in its cache
SAME_LENGTH = 32  # lengths are padded to multiples, as a kernel is compiled and cached for every distinct length
# PEFT's names for the policy, for the adapter that is only compared with, and for the reference, if it is not the base.
TRAINED, SERVING, REFERENCE = "default", "serving", "reference"
EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}  # names of an expert's layers and the router
RECOMPUTE_ABOVE = 2048  # tokens in one pass; above it, only each layer's input is kept and backward recomputes the rest


def courteous_threads() -> int:
    """The number of threads a night computes with; on more than two CPUs, one is left for chats."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), allowed - 1 if allowed > 2 else allowed))


@dataclass
class Switch:
    """The adapter that every layer applies now; None: the base alone."""

    on: str | None = TRAINED


class Backbone:
    """A base model with the policy's LoRA and others on it. Raises `Refused` on a model it cannot train faithfully."""

    def __init__(self, base: Base, dtype: torch.dtype, device: str, rank: int, alpha: int, seed: int) -> None:
        self.base, self.device = base, device
        self._switch, self._plain = Switch(), False
        self.reference_sha256 = ""  # of the weights of the reference; empty: it is the base
        causal = base_model.load_model(base, dtype, device)
        self._targets = _targets(causal)
        try:
            self._put_on(causal, _lora(rank, alpha, self._targets), seed)
            self._check_head()
            self._check_packs()
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:  # of layers not known here
            reason = base_model.one_line(error)
            raise Refused(f"the model {base.name!r} has layers that cannot be trained here yet: {reason}") from error

    def _put_on(self, causal: Any, lora: LoraConfig, seed: int) -> None:
        """Put the policy's fresh LoRA on the base, and our own attention and products into it."""
        torch.manual_seed(seed)  # the LoRA is initialised at random
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers
            # autocast_adapter_dtype keeps the factors in fp32.
            self.peft: PeftModel = get_peft_model(causal, lora, autocast_adapter_dtype=True)
        for option in UNSERVED:
            if getattr(lora, option, None):
                raise Refused(f"the model {self.base.name!r} is trained with {option} by PEFT, which is not served")
        self.peft.eval()  # no dropout anywhere
        for each in self.peft.modules():
            if isinstance(each, LoraLinear):
                setattr(each, "forward", partial(_low_rank_forward, each, self._switch))  # noqa: B010
        self._attention = self.causal.config._attn_implementation  # Gemma 2 has another one than most
        tree_attention.lend(self.causal)
        self._prepare_recomputing()

    @property
    def causal(self) -> Any:
        """The base's network, with the LoRAs inside its layers."""
        return self.peft.get_base_model()

    @property
    def head(self) -> Tensor:
        """The output embedding, (V, d)."""
        return self.causal.get_output_embeddings().weight

    def parameters(self, adapter: str = TRAINED) -> dict[str, nn.Parameter]:
        """The LoRA factors of an adapter, by name."""
        return {name: each for name, each in self.peft.named_parameters() if "lora_" in name and f".{adapter}." in name}

    def rank_and_alpha(self, adapter: str = TRAINED) -> tuple[int, int]:
        """An adapter's rank and LoRA alpha."""
        config: Any = self.peft.peft_config[adapter]
        return config.r, config.lora_alpha

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of the base's linear layers by name, as `assistant.models.adapter.read_adapter` expects them."""
        modules = {name.replace(".base_layer", ""): each for name, each in self.causal.named_modules()}
        return {
            name: (each.out_features, each.in_features)
            for name, each in modules.items()
            if isinstance(each, nn.Linear) and ".lora_" not in name
        }

    def add(self, adapter: str, rank: int, alpha: int, seed: int) -> None:
        """Add an adapter to be trained; the seed alone decides its initial factors."""
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.peft.add_adapter(adapter, _lora(rank, alpha, self._targets), autocast_adapter_dtype=True)
        self._all_trained()

    def hold(self, directory: Path, adapter: str = SERVING) -> None:
        """Load an adapter from its directory.

        Afterwards every adapter but `SERVING` and `REFERENCE` has gradients. Raises `AdapterRefused` if one of these is
        damaged or of another base.
        """
        if adapter in (SERVING, REFERENCE):
            card, _ = read_adapter(directory, self.base.sha256, self.shapes())
            if adapter == REFERENCE:
                self.reference_sha256 = card.weights_sha256
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.peft.load_adapter(str(directory), adapter_name=adapter)
        self._all_trained()

    @torch.no_grad()
    def start_as(self, directory: Path) -> None:
        """Give the policy the weights of an adapter of the same rank and alpha.

        Raises `AdapterRefused` if it is damaged, of another base, or of another rank.
        """
        card, factors = read_adapter(directory, self.base.sha256, self.shapes())
        lora: Any = self.peft.peft_config[TRAINED]
        scale = lora.lora_alpha / lora.r  # factors B carry it
        for name, each in self.parameters().items():
            layer, factor = name.removeprefix("base_model.model.").split(".lora_")
            if layer not in factors:
                each.zero_()
                continue
            read = factors[layer][0] if factor.startswith("A.") else factors[layer][1] / scale
            if read.shape != each.shape:
                raise AdapterRefused(f"adapter {card.id} is not of rank {lora.r}, at {layer}")
            each.copy_(read)

    def drop(self, adapter: str) -> None:
        """Remove an adapter."""
        self.peft.delete_adapter(adapter)
        self._all_trained()

    def _all_trained(self) -> None:
        # PEFT leaves gradients on for one adapter only; here several are trained, and these two never are.
        self.peft.set_adapter(TRAINED)
        for name, each in self.peft.named_parameters():
            held = f".{SERVING}." in name or f".{REFERENCE}." in name
            each.requires_grad_("lora_" in name and not held)

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Within the context, the model is the base with this adapter; None: the base alone."""
        before, self._switch.on = self._switch.on, adapter
        try:
            yield
        finally:
            self._switch.on = before

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within the context, the model is the reference: the base, or the adapter on it that `hold` loaded as that."""
        with self.using(REFERENCE) if self.reference_sha256 else self.as_base():
            yield

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Within the context, the model is the base alone."""
        if self._plain:
            with self.peft.disable_adapter():
                yield
        else:
            with self.using(None):
                yield

    @contextmanager
    def as_serving(self) -> Iterator[None]:
        """Within the context, the serving adapter that `hold` loaded replaces the trained one."""
        with self.using(SERVING):
            yield

    def log_probs(self, row: Row, reference: bool = False) -> Tensor:
        """Summed log-prob of each of the row's R replies: (R,) nats in fp32; without gradient for the reference."""
        return self.log_probs_of([row], reference)[0]

    def log_probs_of(self, rows: Sequence[Row], reference: bool = False) -> list[Tensor]:
        """`log_probs` of several rows in one pass; the caller keeps them few (`packing.together`)."""
        found = self.each_token_of(rows, reference)
        return [row.summed(values) for row, values in zip(rows, found, strict=True)]

    def each_token_of(self, rows: Sequence[Row], reference: bool = False, temperature: float = 1.0) -> list[Tensor]:
        """The log-prob of every reply token of several rows in one pass: (N,) nats in fp32 for each row."""
        if reference:
            with torch.no_grad(), self.as_reference():
                return self.each_token_of(rows, temperature=temperature)
        packed = pack(rows).to(self.device)
        predicting = self.states(packed).index_select(0, packed.predicted_at)
        return list(token_log_probs(predicting, self.head, packed.targets, temperature).split(packed.sizes))

    def hidden(self, rows: Sequence[Row]) -> Tensor:
        """The last hidden states that predict the reply tokens of several rows, computed in one pass: (N, d)."""
        packed = pack(rows).to(self.device)
        return self.states(packed).index_select(0, packed.predicted_at)

    def states(self, packed: Pack) -> Tensor:
        """The last hidden states of a pack on this device: (T, d), T padded to a multiple of `SAME_LENGTH`."""
        length = len(packed.ids)
        packed = packed.padded(length + -length % SAME_LENGTH)
        self._recompute(length > RECOMPUTE_ABOVE and torch.is_grad_enabled())
        out = self.causal.base_model(
            input_ids=packed.ids[None], position_ids=packed.positions[None], use_cache=False, blocks=packed.blocks
        )
        return out.last_hidden_state[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) logits of (N, d) hidden states; the caller keeps N small."""
        return hidden @ self.head.T

    def to_plain(self) -> None:
        """Switch to fp32 and the libraries' own layers for good; the base's bf16 weights are represented exactly."""
        self._plain = True
        self.peft.float()
        self.causal.set_attn_implementation(self._attention)
        for each in self.peft.modules():
            each.__dict__.pop("forward", None)

    def _prepare_recomputing(self) -> None:
        """Set up gradient checkpointing, which `_recompute` turns on and off."""
        self.causal.activation_checkpointing_enable({"use_reentrant": False})
        self._recomputing = [each for each in self.causal.modules() if getattr(each, "gradient_checkpointing", False)]

    def _recompute(self, on: bool) -> None:
        # transformers checks each layer's own `training` flag; its submodules stay in eval mode, so dropout stays off.
        for each in self._recomputing:
            each.training = on

    def _check_head(self) -> None:
        """Refuse a model whose logits are more than hidden states times the head (bias, scale, soft cap)."""
        ids = torch.arange(3, 7, device=self.device)[None]
        with torch.no_grad():
            theirs = self.causal(input_ids=ids, use_cache=False).logits[0].float()
            hidden = self.causal.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            ours = self.logits(hidden).float()
        if not torch.allclose(theirs, ours, rtol=0.02, atol=0.02):
            raise Refused(f"the model {self.base.name!r} shapes its logits in a way that cannot be trained here yet")

    def _check_packs(self) -> None:
        """Refuse a model whose hidden states in a pack differ from those of each text alone."""
        rows = [Row([3, 4, 5], [[6, 7], [8]]), Row([3, 4, 9, 10], [[11]])]
        with torch.no_grad():
            packed = pack(rows, dense=1).to(self.device)
            shared = self.states(packed)[packed.reply_at[[1, 2, 3]]].float()  # at each reply's last token
            for row, states in zip(rows, shared.split([2, 1]), strict=True):
                for reply, state in zip(row.replies, states, strict=True):
                    ids = torch.tensor([[*row.prompt_ids, *reply]], device=self.device)
                    alone = self.causal.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1].float()
                    if (state - alone).norm() > 0.05 * alone.norm():
                        raise Refused(f"the model {self.base.name!r} attends in a way that cannot be trained here yet")


def _lora(rank: int, alpha: int, targets: str | list[str]) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)


def _targets(causal: Any) -> str | list[str]:
    """The linear layers that a LoRA is on: all of them, but in a mixture of experts none that share an expert's name.

    Experts are stacked in one parameter, on which PEFT puts factors with a scale of their own, which are not served.
    """
    if all(each.dim() < 3 for each in causal.parameters()):
        return "all-linear"
    head = causal.get_output_embeddings()
    linear = {name for name, each in causal.named_modules() if isinstance(each, nn.Linear) and each is not head}
    return sorted({name.rpartition(".")[2] for name in linear} - EXPERTS)


def _low_rank_forward(layer: LoraLinear, switch: Switch, x: Tensor) -> Tensor:
    """PEFT's LoRA layer, computed in the base's number format and with as few passes over memory as possible."""
    name = switch.on
    if name is None:
        return layer.base_layer(x)
    base, a, b = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    return _LowRank.apply(x, base.weight, base.bias, a, b, layer.scaling[name])


class _LowRank(torch.autograd.Function):
    """x W^T + bias + s (x A^T) B^T, without a gradient for the frozen W (LoRA, arXiv 2106.09685, eq. 3).

    x (..., in), W (out, in), A (r, in) and B (out, r); A and B are kept in fp32 and multiplied in x's format.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a, b = a.to(x.dtype), (b * scale).to(x.dtype)
        inner = rows @ a.T
        out = F.linear(rows, weight, bias).addmm_(inner, b.T)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, a, b = ctx.saved_tensors
        slope = grads[0].reshape(-1, weight.shape[0])
        slope_inner = slope @ b
        to_x = torch.addmm(slope_inner @ a, slope, weight).view(*grads[0].shape[:-1], -1)
        return to_x, None, None, (slope_inner.T @ rows).float(), (slope.T @ inner).float() * ctx.scale, None


def positions_at_once(head: Tensor) -> int:
    """The number of positions whose logits under a head (V, d) are in memory at once."""
    return max(SAME_LENGTH, LOGITS // (len(head) * head.itemsize) // SAME_LENGTH * SAME_LENGTH)


def token_log_probs(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-prob of each target token: (N,) fp32 from hidden states (N, d), a frozen head (V, d), token ids (N,)."""
    tail, most = -len(targets) % SAME_LENGTH, positions_at_once(head)
    padded_hidden, padded_targets = F.pad(hidden, (0, 0, 0, tail)), F.pad(targets, (0, tail))
    parts = [
        _TokenLogProbs.apply(
            padded_hidden[at : at + most], head, padded_targets[at : at + most], temperature, torch.is_grad_enabled()
        )
        for at in range(0, len(targets), most)
    ]
    return torch.cat(parts)[: len(targets)]


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(h W^T / t)[target], with its gradient computed in the forward pass.

    The gradient, (W[target] - softmax(h W^T / t) W) / t, reuses the memory of the logits. So backward needs (N, d)
    numbers instead of (N, V), and no further product with the head.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, temperature: float, with_gradient: bool
    ) -> Tensor:
        logits = hidden @ head.T
        found = logits.gather(-1, targets[:, None]).float().div_(temperature)
        few = IN_CACHE if logits.device.type == "cpu" else len(logits)
        for at in range(0, len(logits), few):
            some = logits[at : at + few]
            scaled = some.float().div_(temperature)
            highest = scaled.amax(-1, keepdim=True)
            total = scaled.sub_(highest).exp_().sum(-1, keepdim=True)
            found[at : at + few] -= highest + total.log()
            if with_gradient:
                some.copy_(scaled.div_(total))
        if with_gradient:
            ctx.save_for_backward((head[targets] - logits @ head) / temperature)
        return found[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (grads[0][:, None] * slope).to(slope.dtype), None, None, None, None
