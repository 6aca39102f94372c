"""The cost of a number format: how far the served next-token distributions are from the exact ones."""

import statistics
from collections.abc import Callable, Sequence

from torch import Tensor

from benchmarks.material import Conversation

LogProbs = Callable[[list[int], int], Tensor]  # (T,) token ids, first -> (T - first, V) nats: what those are drawn from


def nats_per_token(exact: LogProbs, served: LogProbs, conversations: Sequence[Conversation]) -> float:
    """Mean over all reply tokens of KL(exact || served)."""
    kls = [float(kl) for each in conversations for kl in reply_kls(exact, served, each)]
    return statistics.fmean(kls)


def reply_kls(exact: LogProbs, served: LogProbs, conversation: Conversation) -> Tensor:
    """KL(exact || served) of the distribution that each reply token was drawn from, (reply tokens,)."""
    ids = conversation.prompt_ids + conversation.reply_ids
    first = len(conversation.prompt_ids)
    p, q = exact(ids, first).double(), served(ids, first).double()
    return (p.exp() * (p - q)).sum(-1)
