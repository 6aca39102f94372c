"""What a rehearsal measures of the replies that its server recorded."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from feedback.chats import conversations
from feedback.database.database import Database
from feedback.kinds.correction import CORRECTION
from feedback.kinds.tally import counts
from feedback.records import adapters
from training.evaluation.text_quality import whole_words, words
from training.rehearsal import preference_rule
from training.rehearsal.figures import Figures
from training.rehearsal.preference_rule import Taste

if TYPE_CHECKING:  # these import torch, which waits until the server is done
    from assistant.models.base_model import Base
    from training.data.kl import Kl
    from training.model.packing import Row
    from training.model.policy import Backbone


@dataclass(frozen=True)
class Answers:
    """Two replies to one prompt."""

    prompt: str
    left: str  # reply ids
    right: str
    left_text: str
    right_text: str


def measure(
    store: Database,
    options: SimpleNamespace,
    likes: Taste,
    asked: Sequence[Answers],
    judged: Sequence[Answers],
    night: dict[str, Any],
    began: float,
) -> Figures:
    """Compute all figures from the recorded replies."""
    import torch

    from assistant.models import base_model
    from training.model.policy import Backbone

    texts = [text for each in (*asked, *judged) for text in (each.prompt + " .", each.left_text, each.right_text)]
    known = whole_words(texts)
    scores, before, after = [], [], []
    for each in judged:
        choice = preference_rule.choose(likes, each.prompt, each.left_text, each.right_text, known)
        on_left = conversations.provenance(store, each.left).adapter is not None
        scores.append(0.5 + (choice if on_left else -choice) / 2)
        base, adapter = (each.right, each.left) if on_left else (each.left, each.right)
        before.append(base)
        after.append(adapter)
    low, high = interval(scores)
    model = base_model.find_base(options.model)
    compared = [reply for each in asked for reply in (each.left, each.right)]
    written, own, rated = (rows_of(store, replies, model) for replies in (before, after, compared))
    backbone = Backbone(model, torch.float32, base_model.pick_device(), rank=1, alpha=1, seed=0)
    kl = distance(backbone, adapters.directory(store, str(night["adapter"])), own, rated)
    return Figures(
        win_rate=float(np.mean(scores)),
        win_rate_low=low,
        win_rate_high=high,
        prompts=len(scores),
        comparisons=len(asked),
        corrections=counts(store).get(CORRECTION.table, 0),
        kl_per_token=kl.mean,
        kl_error=kl.error,
        kl_words=kl.words,
        words_before=mean_words(store, before),
        words_after=mean_words(store, after),
        base_nll_before=likelihood(backbone, written),
        base_nll_after=likelihood(backbone, own),
        minutes=(time.monotonic() - began) / 60,
        taste=options.taste.stem if options.taste else "easy to take in, and spoken to the reader (built in)",
        adapter=str(night["adapter"]),
        verdict=night["verdict"],
    )


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over prompts, by the percentile bootstrap."""
    from scipy.stats import bootstrap

    if len(set(scores)) == 1:  # no variation to resample: the rule of three
        return max(0.0, scores[0] - 3 / len(scores)), min(1.0, scores[0] + 3 / len(scores))
    found = bootstrap((scores,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def mean_words(store: Database, replies: Sequence[str]) -> float:
    """The mean number of words of these replies."""
    return float(np.mean([len(words(conversations.node(store, reply).content)) for reply in replies]))


def rows_of(store: Database, replies: Sequence[str], base: "Base") -> "list[Row]":
    """Recorded replies as rows of the token ids that were drawn, one each."""
    from assistant.models import base_model, chat_template
    from training.model.packing import Row

    tokenizer = base_model.load_tokenizer(base)
    rows = []
    for reply in replies:
        if by := conversations.provenance(store, reply).token_ids:
            said = conversations.messages_of(conversations.path(store, reply)[:-1])
            rows.append(Row(chat_template.encode_prompt(tokenizer, said, 4096), [list(by)]))
    return rows


def likelihood(backbone: "Backbone", rows: "Sequence[Row]") -> float:
    """Mean negative log-likelihood of replies under the base, in nats a token."""
    from training.model.packing import TOKENS_AT_ONCE, together

    passes = [backbone.log_probs_of([rows[at] for at in group], True) for group in together(rows, TOKENS_AT_ONCE)]
    return -sum(float(each) for group in passes for each in group) / max(1, sum(row.reply_tokens for row in rows))


def distance(backbone: "Backbone", adapter: Path, own: "Sequence[Row]", judged: "Sequence[Row]") -> "Kl":
    """The KL of a finished adapter from the base, on its own replies and on those that the rater compared."""
    from training.data.kl import KlFromBase
    from training.data.tokenize import TokenizedExample

    backbone.hold(adapter)
    examples = [TokenizedExample("comparison", list(row.prompt_ids), (list(row.replies[0]),), 1.0) for row in judged]
    with backbone.as_serving():
        return KlFromBase(backbone, own, examples).measure()
