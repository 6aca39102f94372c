"""One frozen base and one LoRA on it: with the LoRA on it is the policy, with it off the reference.

There is never a second copy of the base. Log-probs are computed at reply tokens only, a chunk of positions at a time,
so that no tensor of every position by the whole vocabulary ever exists.
Left out on purpose: losses and loops (`losses`, `preference`).
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from assistant import models
from assistant.adapters import read_adapter
from assistant.models import Base
from feedback.store import Refused
from training.batches import Row

CHUNK = 128  # positions whose logits live at one time
SAME_LENGTH = 32  # lengths are padded to multiples: a kernel is compiled, and kept, for each length that ever comes
TRAINED, SERVING = "default", "serving"  # what PEFT calls the two adapters
RECOMPUTE_ABOVE = 2048  # tokens in one pass; more keep each layer's input only and compute the rest again in backward


def courteous_threads() -> int:
    """How many threads a night computes with: where there are more than two processors, one is left to the chats."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), allowed - 1 if allowed > 2 else allowed))


class Backbone:
    """A base model with one LoRA adapter in training. Raises `Refused` on a model it cannot train faithfully."""

    def __init__(self, base: Base, dtype: torch.dtype, device: str, rank: int, alpha: int, seed: int) -> None:
        self.base, self.device = base, device
        causal = models.load_model(base, dtype, device)
        torch.manual_seed(seed)  # the LoRA's first factors are random
        config = LoraConfig(
            task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between the two libraries
            self.peft: PeftModel = get_peft_model(causal, config, autocast_adapter_dtype=True)  # fp32 factors
        self.peft.eval()  # no dropout anywhere
        for each in self.peft.modules():
            if isinstance(each, LoraLinear):
                setattr(each, "forward", MethodType(_low_rank_forward, each))  # noqa: B010
        self._prepare_recomputing()
        self._check_head()

    @property
    def causal(self) -> Any:
        """The base's own network, the LoRA inside its layers."""
        return self.peft.get_base_model()

    @property
    def head(self) -> Tensor:
        """The output embedding, (V, d)."""
        return self.causal.get_output_embeddings().weight

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: each for name, each in self.peft.named_parameters() if each.requires_grad}

    def shapes(self) -> dict[str, tuple[int, int]]:
        """The (out, in) of the base's linear layers by name, as `assistant.adapters.read_adapter` wants them."""
        modules = {name.replace(".base_layer", ""): each for name, each in self.causal.named_modules()}
        return {
            name: (each.out_features, each.in_features)
            for name, each in modules.items()
            if isinstance(each, nn.Linear) and ".lora_" not in name
        }

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside, the model is the base alone."""
        with self.peft.disable_adapter():
            yield

    def hold(self, directory: Path) -> None:
        """Take in a second adapter, that of `as_serving`, from its directory; it is not trained.

        Raises `AdapterRefused` where it is damaged or not of this base.
        """
        read_adapter(directory, self.base.sha256, self.shapes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.peft.load_adapter(str(directory), adapter_name=SERVING, is_trainable=False)
        self.peft.set_adapter(TRAINED)

    @contextmanager
    def as_serving(self) -> Iterator[None]:
        """Inside, the adapter that `hold` took in stands in for the trained one."""
        self.peft.set_adapter(SERVING)
        try:
            yield
        finally:
            self.peft.set_adapter(TRAINED)

    def log_probs(self, row: Row, reference: bool = False) -> Tensor:
        """Summed log-prob of each of the row's R replies: (R,) nats in fp32; without gradient for the reference."""
        return self.log_probs_of([row], reference)[0]

    def log_probs_of(self, rows: Sequence[Row], reference: bool = False) -> list[Tensor]:
        """As `log_probs`, of several rows in one pass; the caller keeps them few (`batches.together`)."""
        found = self.each_token_of(rows, reference)
        return [row.to(self.device).summed(values) for row, values in zip(rows, found, strict=True)]

    def each_token_of(self, rows: Sequence[Row], reference: bool = False) -> list[Tensor]:
        """The log-prob of every reply token of several rows in one pass: (N,) nats in fp32 for each row."""
        if reference:
            with torch.no_grad(), self.as_reference():
                return self.each_token_of(rows)
        rows = [row.to(self.device) for row in rows]
        hidden, targets = torch.cat(self.hidden_of(rows)), torch.cat([row.targets for row in rows])
        return list(token_log_probs(hidden, self.head, targets).split([len(row.targets) for row in rows]))

    def hidden(self, row: Row) -> Tensor:
        """The last hidden states that predict the row's reply tokens: (N, d)."""
        return self.hidden_of([row.to(self.device)])[0]

    def hidden_of(self, rows: Sequence[Row]) -> list[Tensor]:
        """As `hidden`, of several rows in one pass, the shorter ones padded with a tail that nothing sees."""
        length = max(len(row.ids) for row in rows)
        length += -length % SAME_LENGTH
        padded = [row.padded(length) for row in rows]
        self._recompute(length * len(rows) > RECOMPUTE_ABOVE and torch.is_grad_enabled())
        out = self.causal.base_model(
            input_ids=torch.stack([row.ids for row in padded]),
            attention_mask=torch.stack([row.mask() for row in padded]),
            position_ids=torch.stack([row.positions for row in padded]),
            use_cache=False,
        )
        return [states[row.predicted_at] for states, row in zip(out.last_hidden_state, rows, strict=True)]

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) logits of (N, d) hidden states; the caller keeps N small."""
        return hidden @ self.head.T

    def to_plain(self) -> None:
        """Compute in fp32 and by PEFT's own layers from now on; the base's bf16 weights are kept exactly."""
        self.peft.float()
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


def _low_rank_forward(layer: LoraLinear, x: Tensor) -> Tensor:
    """What PEFT's layer computes, in the base's own number format and in as few passes over memory as it takes."""
    if layer.disable_adapters:
        return layer.base_layer(x)
    (name,) = layer.active_adapters
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


def token_log_probs(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Log-prob of each target token: (N,) fp32 from hidden states (N, d), a frozen head (V, d), token ids (N,)."""
    tail = -len(targets) % SAME_LENGTH
    padded_hidden, padded_targets = F.pad(hidden, (0, 0, 0, tail)), F.pad(targets, (0, tail))
    parts = [
        _TokenLogProbs.apply(
            padded_hidden[at : at + CHUNK], head, padded_targets[at : at + CHUNK], torch.is_grad_enabled()
        )
        for at in range(0, len(targets), CHUNK)
    ]
    return torch.cat(parts)[: len(targets)]


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(h W^T)[target], whose gradient, W[target] - softmax(h W^T) W, is worked out while the logits live.

    So backward needs (N, d) numbers, not (N, V), and multiplies by the head no more often than it must.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, with_gradient: bool) -> Tensor:
        logits = (hidden @ head.T).float()
        normaliser = logits.logsumexp(-1, keepdim=True)
        picked = logits.gather(-1, targets[:, None]) - normaliser
        if with_gradient:
            probs = logits.sub_(normaliser).exp_().to(head.dtype)
            ctx.save_for_backward(head[targets] - probs @ head)
        return picked[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (grads[0][:, None] * slope).to(slope.dtype), None, None, None
