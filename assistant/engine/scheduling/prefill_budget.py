"""The prefill budget: how many prompt tokens a step may read, so that replies being written hardly slow down.

Prefill may take as long as the step's other tokens, which doubles the gaps between these, and longer if many prompts
wait for their first token beside few replies being written. A step that reads anything has a fixed cost (it multiplies
in another number format, for one), so it may then read for as long as that takes, within reason; if that is too long,
it reads only as much as the format for few rows can take along. The times are measured as the engine runs, so a slow
machine reads less at a time, and there is nothing to configure.
"""

from dataclasses import dataclass

ALONE = 512  # prompt tokens in a step when no reply is being written
LEAST = 16
FEW = 4  # in place of `LEAST`, in a step of few rows
MOST = 512  # beside replies being written, if many prompts wait
MOST_OF_FEW = 64  # if few wait: a wrong estimate then costs the others little
TRIED_AGAIN = 64  # steps in a row kept to few rows, before one with more measures its cost again
MOST_SLOWED = 1.5  # times a step's own duration, that prefill may take in order to read more than `LEAST`
APART = (0.9, 1.1)  # a little less and a little more in turn: only steps that differ reveal the time per token
KEPT = 0.9  # weight of earlier measurements after another step


@dataclass
class OnlineLinearFit:
    """The seconds, and seconds per token, that reading adds to a step: least squares over recent steps."""

    count: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0  # of tokens
    products: float = 0.0  # of tokens and seconds

    def add(self, tokens: int, seconds: float) -> None:
        """Add a step that `tokens` made `seconds` longer. A slow one counts at most twice the expected time."""
        if self.count:
            fixed_s, token_s = self.costs()
            seconds = min(seconds, 2 * (fixed_s + token_s * tokens))
        found = (1.0, tokens, seconds, tokens**2, tokens * seconds)
        before = (self.count, self.tokens, self.seconds, self.squares, self.products)
        self.count, self.tokens, self.seconds, self.squares, self.products = (
            KEPT * old + new for old, new in zip(before, found, strict=True)
        )

    def costs(self) -> tuple[float, float]:
        """The seconds of reading anything at all, and the seconds per token."""
        tokens, seconds = self.tokens / self.count, self.seconds / self.count
        mean = seconds / tokens
        variance = self.squares / self.count - tokens**2
        if variance < (0.05 * tokens) ** 2:
            return 0.0, mean
        slope = (self.products / self.count - tokens * seconds) / variance
        slope = min(max(slope, 0.05 * mean), mean)
        return seconds - slope * tokens, slope

    def within(self, seconds: float) -> int:
        """The number of tokens that are read in this many seconds."""
        if not self.count:
            return MOST
        fixed_s, token_s = self.costs()
        return int((seconds - fixed_s) / token_s)


class PrefillBudget:
    """The measured seconds of a step that reads nothing, and what reading adds to them."""

    def __init__(self, few_rows: int = 0) -> None:
        """`few_rows` is the most rows that are multiplied in a format of their own; 0: there is none."""
        self._few_rows = few_rows
        self._kept_few = 0  # steps in a row
        self._step_s: dict[int, float] = {}  # by growing rows, in powers of two
        self._reading = OnlineLinearFit()  # of steps with more than few rows
        self._few = OnlineLinearFit()  # of the others
        self._turn = 0
        self._last = LEAST

    def prompt_tokens(self, growing: int, reading: int) -> int:
        """The prompt tokens that the next step may read beside `growing` rows, while `reading` prompts wait for it."""
        if not growing:
            return ALONE
        step_s = self._alone_s(growing)
        if step_s is None or not self._reading.count:
            return 2 * LEAST
        fixed_s, token_s = self._reading.costs()
        allowed_s = max(step_s * max(1.0, 2 * reading / growing), min(2 * fixed_s, MOST_SLOWED * step_s))
        self._turn = 1 - self._turn
        fair = int(APART[self._turn] * (allowed_s - fixed_s) / token_s)
        most = MOST if 2 * reading > growing else MOST_OF_FEW
        self._last = max(LEAST, min(fair, most, 2 * self._last))
        return self._last

    def tokens_within(self, seconds: float, growing: int) -> int:
        """The prompt tokens that a step reads in about this many seconds, beside `growing` rows."""
        if not self._reading.count:
            return 2 * LEAST
        tokens = self._reading.within(seconds)
        few = self._few_rows - growing
        if tokens < LEAST and few > 0 and self._kept_few < TRIED_AGAIN:
            self._kept_few += 1
            return max(min(few, FEW), min(few, self._few.within(seconds)))
        self._kept_few = 0
        return max(LEAST, min(tokens, MOST))

    def took(self, seconds: float, growing: int, read: int) -> None:
        """Record that a step with `growing` rows and `read` prompt tokens took this many seconds."""
        alone_s = self._alone_s(growing) if growing else 0.0
        if not read:
            before = self._step_s.get(growing.bit_length(), seconds)
            share = 0.5 if seconds < before else 0.2  # a single slow step is mostly another program's doing
            self._step_s[growing.bit_length()] = before + share * (min(seconds, 2 * before) - before)
        elif alone_s is not None:
            line = self._reading if growing + read > self._few_rows else self._few
            line.add(read, max(seconds - alone_s, 0.05 * seconds))

    def _alone_s(self, growing: int) -> float | None:
        """The seconds of a step with this many rows that reads nothing; until one is measured, with fewer rows."""
        known = [size for size in self._step_s if size <= growing.bit_length()]
        return self._step_s[max(known)] if known else None
