"""One frozen base and LoRAs on it: a policy, reward models, a value model; with none of them on it is the reference.

There is never a second copy of the base, and to switch is to name another adapter. Rows are computed as a pack
(`packing`): without padding, what they share once. Log-probs are computed at reply tokens only, a chunk of positions
at a time, so that no tensor of every position by the whole vocabulary ever exists.
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
from assistant.models.adapter import read_adapter
from assistant.models.base_model import Base
from feedback.errors import Refused
from training.model import tree_attention
from training.model.packing import Pack, Row, pack

LOGITS = 50_000_000  # bytes of logits that live at one time
IN_CACHE = 8  # positions whose logits a processor normalises at one time: what they take stays near it
SAME_LENGTH = 32  # lengths are padded to multiples: a kernel is compiled, and kept, for each length that ever comes
TRAINED, SERVING = "default", "serving"  # what PEFT calls the policy, and the adapter that is only compared with
RECOMPUTE_ABOVE = 2048  # tokens in one pass; more keep each layer's input only and compute the rest again in backward


def courteous_threads() -> int:
    """How many threads a night computes with: where there are more than two processors, one is left to the chats."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), allowed - 1 if allowed > 2 else allowed))


@dataclass
class Switch:
    """Which adapter every layer applies now; None: none."""

    on: str | None = TRAINED


class Backbone:
    """A base model with the policy's LoRA on it, and others. Raises `Refused` on a model it cannot train faithfully."""

    def __init__(self, base: Base, dtype: torch.dtype, device: str, rank: int, alpha: int, seed: int) -> None:
        self.base, self.device = base, device
        self._switch, self._plain = Switch(), False
        causal = base_model.load_model(base, dtype, device)
        torch.manual_seed(seed)  # the LoRA's first factors are random
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between the two libraries
            # The factors are kept in fp32.
            self.peft: PeftModel = get_peft_model(causal, _lora(rank, alpha), autocast_adapter_dtype=True)
        self.peft.eval()  # no dropout anywhere
        for each in self.peft.modules():
            if isinstance(each, LoraLinear):
                setattr(each, "forward", partial(_low_rank_forward, each, self._switch))  # noqa: B010
        tree_attention.lend(self.causal)
        self._prepare_recomputing()
        self._check_head()
        self._check_packs()

    @property
    def causal(self) -> Any:
        """The base's own network, the LoRAs inside its layers."""
        return self.peft.get_base_model()

    @property
    def head(self) -> Tensor:
        """The output embedding, (V, d)."""
        return self.causal.get_output_embeddings().weight

    def parameters(self, adapter: str = TRAINED) -> dict[str, nn.Parameter]:
        """What is trained of an adapter, by name."""
        return {name: each for name, each in self.peft.named_parameters() if "lora_" in name and f".{adapter}." in name}

    def shapes(self) -> dict[str, tuple[int, int]]:
        """The (out, in) of the base's linear layers by name, as `assistant.models.adapter.read_adapter` wants them."""
        modules = {name.replace(".base_layer", ""): each for name, each in self.causal.named_modules()}
        return {
            name: (each.out_features, each.in_features)
            for name, each in modules.items()
            if isinstance(each, nn.Linear) and ".lora_" not in name
        }

    def add(self, adapter: str, rank: int, alpha: int, seed: int) -> None:
        """One more adapter, to be trained; the seed alone decides its first factors."""
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.peft.add_adapter(adapter, _lora(rank, alpha), autocast_adapter_dtype=True)
        self._all_trained()

    def hold(self, directory: Path, adapter: str = SERVING, trained: bool = False) -> None:
        """Take in an adapter from its directory; unless `trained`, it is only read.

        Raises `AdapterRefused` where `SERVING` is damaged or not of this base.
        """
        if adapter == SERVING:
            read_adapter(directory, self.base.sha256, self.shapes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.peft.load_adapter(str(directory), adapter_name=adapter, is_trainable=trained)
        self._all_trained()

    def drop(self, adapter: str) -> None:
        """An adapter is needed no more."""
        self.peft.delete_adapter(adapter)
        self._all_trained()

    def _all_trained(self) -> None:
        # PEFT turns off the gradients of all adapters but one; here each has an optimiser of its own, or none.
        self.peft.set_adapter(TRAINED)
        for name, each in self.peft.named_parameters():
            each.requires_grad_("lora_" in name and f".{SERVING}." not in name)

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Inside, the model is the base with this adapter; None: the base alone."""
        before, self._switch.on = self._switch.on, adapter
        try:
            yield
        finally:
            self._switch.on = before

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside, the model is the base alone."""
        if self._plain:
            with self.peft.disable_adapter():
                yield
        else:
            with self.using(None):
                yield

    @contextmanager
    def as_serving(self) -> Iterator[None]:
        """Inside, the adapter that `hold` took in stands in for the trained one."""
        with self.using(SERVING):
            yield

    def log_probs(self, row: Row, reference: bool = False) -> Tensor:
        """Summed log-prob of each of the row's R replies: (R,) nats in fp32; without gradient for the reference."""
        return self.log_probs_of([row], reference)[0]

    def log_probs_of(self, rows: Sequence[Row], reference: bool = False) -> list[Tensor]:
        """As `log_probs`, of several rows in one pass; the caller keeps them few (`packing.together`)."""
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
        """The last hidden state of every token of a pack on this device: (T, d)."""
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
        """Compute in fp32 and by the libraries' own layers from now on; the base's bf16 weights are kept exactly."""
        self._plain = True
        self.peft.float()
        self.causal.set_attn_implementation("sdpa")
        for each in self.peft.modules():
            each.__dict__.pop("forward", None)

    def _prepare_recomputing(self) -> None:
        """Let layers recompute in backward; `_recompute` says when."""
        self.causal.activation_checkpointing_enable({"use_reentrant": False})
        self._recomputing = [each for each in self.causal.modules() if getattr(each, "gradient_checkpointing", False)]

    def _recompute(self, on: bool) -> None:
        # transformers asks a layer's own `training` flag; its parts stay in eval mode, so dropout stays off.
        for each in self._recomputing:
            each.training = on

    def _check_head(self) -> None:
        """Refuse a model that does more to its logits than multiply by the head (bias, scale, soft cap)."""
        ids = torch.arange(3, 7, device=self.device)[None]
        with torch.no_grad():
            theirs = self.causal(input_ids=ids, use_cache=False).logits[0].float()
            hidden = self.causal.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            ours = self.logits(hidden).float()
        if not torch.allclose(theirs, ours, rtol=0.02, atol=0.02):
            raise Refused(f"the model {self.base.name!r} shapes its logits in a way that cannot be trained here yet")

    def _check_packs(self) -> None:
        """Refuse a model in which what stands in one pack is not what it would be alone."""
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


def _lora(rank: int, alpha: int) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear")


def _low_rank_forward(layer: LoraLinear, switch: Switch, x: Tensor) -> Tensor:
    """What PEFT's layer computes, in the base's own number format and in as few passes over memory as it takes."""
    name = switch.on
    if name is None:
        return layer.base_layer(x)
    base, a, b = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    return _LowRank.apply(x, base.weight, base.bias, a, b, layer.scaling[name])


class _LowRank(torch.autograd.Function):
    """x W^T + bias + s (x A^T) B^T, the frozen W's gradient left out (LoRA, arXiv 2106.09685, eq. 3).

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
    """At how many positions the logits of a head (V, d) live at one time."""
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
    """log softmax(h W^T / t)[target], whose gradient, (W[target] - softmax(h W^T / t) W) / t, is worked out while the
    logits live, in their place.

    So backward needs (N, d) numbers, not (N, V), and multiplies by the head no more often than it must.
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
