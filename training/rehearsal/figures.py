"""What a rehearsal found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """What a rehearsal found. Rates are of the adapter's replies over the base's, a tie counting half."""

    win_rate: float
    win_rate_low: float  # of the 95 % interval over prompts
    win_rate_high: float
    prompts: int  # unseen ones, with a reply of each
    comparisons: int  # that the rater made, ties included
    kl_per_token: float  # nats from the base, over the tokens of the adapter's own replies
    words_before: float  # of a reply, on average
    words_after: float
    base_nll_before: float  # nats a token of the base's replies under the base
    base_nll_after: float  # of the adapter's replies under the base
    minutes: float
    taste: str
    adapter: str
    verdict: str | None  # of the gate
