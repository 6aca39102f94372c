"""Reward models: a LoRA and a scalar head each on one shared backbone, used as an ensemble.

A score is read from the mean hidden state of a reply's tokens, all of which see the prompt: from a few hundred
comparisons a head learns more this way than from the last token's state alone (docs/measurements.md). Scores are
normalised to mean 0 and standard deviation 1 on the reference model's replies, so that a KL coefficient means the same
every night. A head is saved with its adapter, and loaded models must score as they did when they were saved.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from feedback import atomic
from feedback.errors import Refused
from training.model.packing import TOKENS_AT_ONCE, Row, pack, together
from training.model.policy import Backbone

HEAD, CARD = "head.safetensors", "card.json"
SAME = {"float32": 1e-3, "bfloat16": 0.05}  # the most by which a loaded model's score may differ from the saved one


class ScoreHead(nn.Module):
    """A linear map from a hidden state to a score, kept in fp32, and the two constants that normalise scores.

    Weights start from N(0, 1 / (d + 1)), a variance, and the bias from 0, as in the code of arXiv 2009.01325 (arXiv
    2403.17031, detail 11).
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(drawn / (width + 1) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(()))
        self.log_tie = nn.Parameter(torch.zeros(()))  # log nu of `preference.davidson_loss`; trained by ties only
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, states: Tensor) -> Tensor:
        """(N,) raw scores of hidden states (N, d)."""
        return states.float() @ self.weight + self.bias

    def normalise(self, raw: Tensor) -> None:
        """Set gain and shift so that these raw scores (S,) of the reference model's replies get mean 0 and std 1.

        Raises `Refused` if they are all the same.
        """
        spread = float(raw.double().std(correction=0))
        if not spread > 0:
            raise Refused("the reward model scores all of the reference's replies the same; it needs more feedback")
        self.gain.fill_(1 / spread)
        self.shift.fill_(-float(raw.double().mean()) / spread)


@dataclass(frozen=True)
class RewardCard:
    """Where reward models came from, and their scores on fixed texts, by which a loaded copy is checked."""

    id: str
    base_sha256: str
    template_sha256: str
    precision: str
    settings: dict[str, Any]
    temperature: float
    metrics: dict[str, Any]
    reference_ends: float = 0.0
    proof: list[dict[str, Any]] = field(default_factory=list)  # prompt_ids, replies, scores (M, R)


class RewardModels:
    """An ensemble of M reward models on a backbone."""

    def __init__(self, backbone: Backbone, heads: dict[str, ScoreHead]) -> None:
        self.backbone, self.heads = backbone, heads
        self.reference_ends = 0.0  # the share of the reference model's replies that end by themselves
        self.temperature = 1.0  # divides a margin before it is read as a probability (`calibration`)
        self.metrics: dict[str, Any] = {}  # of `calibration.Believed` on held-out pairs; empty: there were none

    @torch.no_grad()
    def scores(self, rows: Sequence[Row]) -> list[Tensor]:
        """Every model's normalised score of each of a row's R replies: (M, R) for each row, on the CPU."""
        found: list[Tensor] = [torch.zeros(0)] * len(rows)
        by_model = [self.raw_scores(name, rows) for name in self.heads]
        for at in range(len(rows)):
            parts = zip(self.heads.values(), by_model, strict=True)
            found[at] = torch.stack([(head.gain * raw[at] + head.shift).cpu() for head, raw in parts])
        return found

    def raw_scores(self, name: str, rows: Sequence[Row]) -> list[Tensor]:
        """One model's raw scores, (R,) for each row, a pack of rows at a time."""
        found: list[Tensor] = [torch.zeros(0)] * len(rows)
        for group in together(rows, TOKENS_AT_ONCE):
            values = raw_scores(self.backbone, name, self.heads[name], [rows[at] for at in group])
            for at, each in zip(group, values, strict=True):
                found[at] = each
        return found

    def pessimistic(self, rows: Sequence[Row], uncertainty_penalty: float = 1.0) -> list[Tensor]:
        """Mean score minus `uncertainty_penalty` times the ensemble disagreement: (R,) for each row.

        As arXiv 2310.02743, eq. 5, but with the standard deviation instead of the variance: a high score on which the
        models disagree is not believed.
        """
        return [each.mean(0) - uncertainty_penalty * disagreement(each) for each in self.scores(rows)]


def disagreement(scores: Tensor) -> Tensor:
    """Ensemble disagreement: the standard deviation across M models, (R,) from (M, R); 0 for one model."""
    return scores.std(0, correction=0)


def raw_scores(backbone: Backbone, name: str, head: ScoreHead, rows: Sequence[Row]) -> list[Tensor]:
    """A model's raw scores of several rows in one pass, with gradient: (R,) for each."""
    return [head(each) for each in reply_states(backbone, name, rows)]


def reply_states(backbone: Backbone, name: str | None, rows: Sequence[Row]) -> list[Tensor]:
    """Each reply's mean hidden state, several rows in one pass, with gradient: (R, d) in fp32 for each row.

    `name` is the adapter to apply; None: the base alone.
    """
    packed = pack(rows).to(backbone.device)
    with backbone.using(name):
        states = backbone.states(packed).index_select(0, packed.reply_at).float()
    of_rows = states.split([row.reply_tokens for row in rows])
    return [
        torch.stack([each.mean(0) for each in row.by_reply(values)]) for row, values in zip(rows, of_rows, strict=True)
    ]


def save(models: RewardModels, folder: Path, card: RewardCard, proofs: Sequence[Row]) -> RewardCard:
    """Write adapters, heads and card into `folder`, which appears whole or not at all; return the completed card."""
    scored = zip(proofs, models.scores(proofs), strict=True)
    proof = [
        {"prompt_ids": list(row.prompt_ids), "replies": [list(each) for each in row.replies], "scores": scores.tolist()}
        for row, scores in scored
    ]
    card = RewardCard(**asdict(card) | {"proof": proof, "temperature": models.temperature})
    with atomic.folder(folder) as making:
        for name, head in models.heads.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                models.backbone.peft.save_pretrained(
                    str(making), safe_serialization=True, save_embedding_layers=False, selected_adapters=[name]
                )
            save_file({key: each.detach().cpu() for key, each in head.state_dict().items()}, making / name / HEAD)
        (making / "README.md").unlink(missing_ok=True)
        (making / CARD).write_text(json.dumps(asdict(card), indent=1))
    return card


def load(backbone: Backbone, folder: Path, prefix: str = "") -> tuple[RewardModels, RewardCard]:
    """Load reward models from a folder onto this backbone, where `prefix` begins their names.

    Raises `Refused` if they are incomplete, of another base, or score differently than when they were saved.
    """
    try:
        card = RewardCard(**json.loads((folder / CARD).read_text()))
        names = sorted(each.name for each in folder.iterdir() if (each / HEAD).is_file())
        if card.base_sha256 != backbone.base.sha256:
            raise Refused(f"the reward models {folder.name} were made for another base model")
        heads = {}
        for name in names:
            tensors = load_file(folder / name / HEAD)
            heads[prefix + name] = ScoreHead(len(tensors["weight"]), seed=0).to(backbone.device)
            heads[prefix + name].load_state_dict(tensors)
            backbone.hold(folder / name, adapter=prefix + name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"the reward models in {folder} cannot be read: {error}") from error
    models = RewardModels(backbone, heads)
    models.temperature, models.reference_ends, models.metrics = card.temperature, card.reference_ends, card.metrics
    _require_same(models, card)
    return models, card


def _require_same(models: RewardModels, card: RewardCard) -> None:
    precision = str(models.backbone.head.dtype).removeprefix("torch.")
    allowed = max(SAME[precision], SAME[card.precision])
    rows = [Row(each["prompt_ids"], each["replies"]) for each in card.proof]
    for scores, each in zip(models.scores(rows), card.proof, strict=True):
        written = torch.tensor(each["scores"])
        if scores.shape != written.shape or not (scores - written).abs().max() <= allowed:
            raise Refused(f"the reward models {card.id} read back score otherwise than when they were written")
