"""The figures that a rehearsal measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """The results of a rehearsal. Win rates are of the adapter's replies over the base's; a tie counts half."""

    win_rate: float
    win_rate_low: float  # of the 95 % interval over prompts
    win_rate_high: float
    prompts: int  # unseen prompts, each answered by base and adapter
    comparisons: int  # that the rater made, ties included
    corrections: int
    kl_per_token: float  # of the adapter from the base (`training.data.kl`), half of the replies being its own
    kl_error: float  # its standard error over replies
    kl_words: str  # what it is
    words_before: float  # mean words of the base's replies
    words_after: float  # and of the adapter's
    base_nll_before: float  # nats a token of the base's replies under the base
    base_nll_after: float  # of the adapter's replies under the base
    minutes: float
    taste: str
    adapter: str
    verdict: str | None  # of the gate
