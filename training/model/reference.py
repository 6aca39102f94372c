"""The reference model's log-probs of replies: computed once, and kept in the ledger for later nights.

They are keyed by reply (the hash of the token ids of prompt and reply), reference (the base's hash, the number format,
and the hash of its weights if it is an adapter) and template (its hash), since a change in any of these changes the
log-probs.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from assistant.models.rounding import rounded_from
from feedback.database.database import Database
from feedback.records import reference_logprobs
from training.model.packing import Row
from training.model.policy import Backbone


class References:
    """The log-probs known so far, all on the CPU."""

    def __init__(self, backbone: Backbone, template_sha256: str = "") -> None:
        dtype = str(backbone.head.dtype).removeprefix("torch.")
        # What was kept before weights were rounded everywhere is of the weights as stored, and no longer known.
        rounded = " rounded" if dtype == "float32" and rounded_from(backbone.base) else ""
        other = f" {backbone.reference_sha256}" if backbone.reference_sha256 else ""
        self.reference, self.template_sha256 = f"{backbone.base.sha256} {dtype}{rounded}{other}", template_sha256
        self.computed = 0  # replies computed here, not recalled
        self._backbone = backbone
        self._known: dict[str, Tensor] = {}
        self._fresh: dict[str, Tensor] = {}

    def each_token_of(self, rows: Sequence[Row]) -> list[Tensor]:
        """The log-prob of every reply token: (N,) nats for each row. Rows with unknown replies share one pass."""
        keys = [_keys(row) for row in rows]
        unknown = [at for at, each in enumerate(keys) if not all(key in self._known for key in each)]
        if unknown:
            found = self._backbone.each_token_of([rows[at] for at in unknown], reference=True)
            for at, values in zip(unknown, found, strict=True):
                for key, part in zip(keys[at], rows[at].by_reply(values.cpu()), strict=True):
                    if key not in self._known:
                        self._known[key] = self._fresh[key] = part.clone()
                        self.computed += 1
        return [torch.cat([self._known[key] for key in each]) for each in keys]

    def of(self, row: Row) -> Tensor:
        """Summed log-prob of each of a row's R replies: (R,) nats."""
        return row.summed(self.each_token_of([row])[0])

    def recall(self, store: Database, rows: Iterable[Row]) -> None:
        """Load the log-probs that the ledger has for these rows."""
        keys = [key for row in rows for key in _keys(row)]
        found = reference_logprobs.known(store, self.reference, self.template_sha256, keys)
        self._known |= {key: torch.frombuffer(bytearray(each), dtype=torch.float32) for key, each in found.items()}

    def keep(self, store: Database) -> None:
        """Write the newly computed log-probs to the ledger."""
        if self._fresh:
            fresh = {key: each.numpy().tobytes() for key, each in self._fresh.items()}
            reference_logprobs.keep(store, self.reference, self.template_sha256, fresh)
            self._fresh = {}


def _keys(row: Row) -> list[str]:
    """A key for each of a row's replies: the hash of its prompt's and its own token ids."""
    prompt = array("i", row.prompt_ids).tobytes()
    ids = [array("i", reply).tobytes() for reply in row.replies]
    return [hashlib.sha256(len(prompt).to_bytes(8) + prompt + each).hexdigest() for each in ids]
