"""Any causal model of transformers, computed by its own forward, one sequence after another and therefore slower.

For models that the fast path does not read (`architectures`). The contract is the same: an adapter for each sequence,
on the linear layers, and forks for beams.
"""

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from assistant.engine.model_runner import SequenceChunk
from assistant.models.adapter import Factors


@dataclass(eq=False)
class PlainRow:
    """A sequence: the tokens that were read, and the model's own cache of them."""

    room: int
    key: Hashable
    token_ids: list[int] = field(default_factory=list)
    kept: Any = None

    @property
    def length(self) -> int:
        """The number of tokens read."""
        return len(self.token_ids)


class PlainCache:
    """The sequences being written, within `budget` bytes."""

    worth_waiting = 1 << 60  # sequences share nothing here

    def __init__(self, token_bytes: int, budget: int, make: Any) -> None:
        self.budget = budget
        self.token_bytes = token_bytes
        self._make = make
        self._rows: list[PlainRow] = []

    def fits(self, room: int, texts: int = 1, share: float = 1.0) -> bool:
        """Whether `texts` sequences of `room` tokens each fit beside those being written, in `share` of the budget."""
        return self.taken_bytes + texts * room * self.token_bytes <= share * self.budget

    def take(self, room: int, key: Hashable) -> PlainRow:
        """Take a row for a sequence of up to `room` tokens."""
        row = PlainRow(room, key, kept=self._make())
        self._rows.append(row)
        return row

    def fork(self, row: PlainRow) -> PlainRow:
        """Copy a sequence, so that the copy can go on differently."""
        other = PlainRow(row.room, row.key, list(row.token_ids), copy.deepcopy(row.kept))
        self._rows.append(other)
        return other

    def free(self, row: PlainRow) -> None:
        """Drop a sequence."""
        self._rows.remove(row)

    def reuse(self, row: PlainRow, prompt_ids: Sequence[int]) -> bool:
        """Return False: sequences share nothing here."""
        return False

    def forget(self, key: Hashable) -> None:
        """Do nothing: nothing is kept."""

    def clear(self) -> None:
        """Drop everything."""
        self._rows = []

    @property
    def kept_bytes(self) -> int:
        """The memory that finished sequences hold: none."""
        return 0

    @property
    def taken_bytes(self) -> int:
        """The memory that the sequences being written may come to hold."""
        return sum(row.room for row in self._rows) * self.token_bytes


@dataclass(frozen=True, eq=False)
class PlainSlot:
    """An adapter's factors by the name of the linear layer, in the model's number format."""

    factors: Factors


class AdapterLinear(nn.Module):
    """A linear layer plus the adapter of the sequence being computed (LoRA, eq. 3 of arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear, name: str, network: "PlainNetwork") -> None:
        super().__init__()
        self.base = base
        self._name = name
        self._network = [network]  # in a list, so that it is no submodule of this one

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        lora_slot = self._network[0].lora_slot
        if lora_slot is None or self._name not in lora_slot.factors:
            return y
        a, b = lora_slot.factors[self._name]
        return y + (x @ a.T) @ b.T


class PlainNetwork:
    """A transformers model, and the adapter of the sequence it is computing."""

    few_rows = 0  # one format for any number of rows

    def __init__(self, model: Any) -> None:
        self.model = model
        self.lora_slot: PlainSlot | None = None
        self._lora_slots: set[PlainSlot] = set()
        head = model.get_output_embeddings()
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
        self.shapes: Mapping[str, tuple[int, int]] = {
            name: (layer.out_features, layer.in_features) for name, layer in layers.items()
        }
        self.vocabulary: int = head.weight.shape[0]
        for name, layer in layers.items():
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, AdapterLinear(layer, name, self))

    def new_cache(self, budget: int) -> PlainCache:
        """Make a cache of `budget` bytes for sequences of this model."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token_bytes = 2 * config.num_hidden_layers * heads * width * self.model.dtype.itemsize
        return PlainCache(token_bytes, budget, lambda: DynamicCache(config=config))

    def add(self, factors: Factors) -> PlainSlot:
        """Load an adapter's factors; return its LoRA slot."""
        like = next(self.model.parameters())
        lora_slot = PlainSlot({name: (a.to(like), b.to(like)) for name, (a, b) in factors.items()})
        self._lora_slots.add(lora_slot)
        return lora_slot

    def holds(self, lora_slot: PlainSlot) -> bool:
        """Whether an adapter is still in memory."""
        return lora_slot in self._lora_slots

    def remove(self, lora_slot: PlainSlot) -> None:
        """Drop an adapter; its memory is freed with the last reference to it."""
        self._lora_slots.discard(lora_slot)

    @torch.inference_mode()
    def forward(self, parts: Sequence[SequenceChunk]) -> Tensor:
        """Append each part's tokens to its row; return float32 logits (parts, V) after the last token of each."""
        return torch.stack([self._read(part) for part in parts])

    def _read(self, part: SequenceChunk) -> Tensor:
        row: Any = part.row
        device = self.model.device
        self.lora_slot = part.lora_slot
        positions = torch.arange(row.length, row.length + len(part.token_ids), device=device)
        out = self.model(
            input_ids=torch.tensor([part.token_ids], device=device),
            position_ids=positions[None],
            past_key_values=row.kept,
            use_cache=True,
        )
        row.kept = out.past_key_values
        row.token_ids += part.token_ids
        return out.logits[0, -1].float()
