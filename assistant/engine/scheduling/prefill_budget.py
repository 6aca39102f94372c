"""How much of waiting prompts a step may read, so that those who are being answered hardly notice.

Reading may take as long as the tokens of the others, so that their gaps double, and more where many wait for their
first token beside few who are being answered. A step that reads costs something however little it reads (it multiplies
in another number format, for one), so it then reads as long as that takes, within reason; or where that is too long,
only as much as the format for few rows takes along. The times are measured as the engine goes, so a slow machine reads
less at a time, and nothing is to be set.
"""

from dataclasses import dataclass

ALONE = 512  # prompt tokens in a step when nobody waits for a token
LEAST = 16
FEW = 4  # the same in a step of few rows
MOST = 512  # beside others, where many wait
MOST_OF_FEW = 64  # where few wait: a wrong estimate then costs the others little
TRIED_AGAIN = 64  # steps kept to few rows, after which one of more shows what that takes by now
MOST_SLOWED = 1.5  # of a step's own time, that it may take longer so as to read more than `LEAST`
APART = (0.9, 1.1)  # a little less and a little more in turn: only steps that differ tell what a token takes
KEPT = 0.9  # of what is remembered, after another step


@dataclass
class OnlineLinearFit:
    """What reading adds to a step: seconds, and seconds a token; least squares over the last steps."""

    count: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0  # of tokens
    products: float = 0.0  # of tokens and seconds

    def add(self, tokens: int, seconds: float) -> None:
        """A step read so much, and took so much longer. One slow step counts for no more than twice what was due."""
        if self.count:
            fixed_s, token_s = self.costs()
            seconds = min(seconds, 2 * (fixed_s + token_s * tokens))
        found = (1.0, tokens, seconds, tokens**2, tokens * seconds)
        before = (self.count, self.tokens, self.seconds, self.squares, self.products)
        self.count, self.tokens, self.seconds, self.squares, self.products = (
            KEPT * old + new for old, new in zip(before, found, strict=True)
        )

    def costs(self) -> tuple[float, float]:
        """Seconds of reading anything at all, and of each token."""
        tokens, seconds = self.tokens / self.count, self.seconds / self.count
        mean = seconds / tokens
        variance = self.squares / self.count - tokens**2
        if variance < (0.05 * tokens) ** 2:
            return 0.0, mean
        slope = (self.products / self.count - tokens * seconds) / variance
        slope = min(max(slope, 0.05 * mean), mean)
        return seconds - slope * tokens, slope

    def within(self, seconds: float) -> int:
        """How many tokens are read in so many seconds."""
        if not self.count:
            return MOST
        fixed_s, token_s = self.costs()
        return int((seconds - fixed_s) / token_s)


class PrefillBudget:
    """Measured seconds of a step that reads nothing, and what reading adds to it."""

    def __init__(self, few_rows: int = 0) -> None:
        """`few_rows`: as many are multiplied in a format of their own; 0: there is none."""
        self._few_rows = few_rows
        self._kept_few = 0  # steps in a row
        self._step_s: dict[int, float] = {}  # by rows that grow, in powers of two
        self._reading = OnlineLinearFit()  # of steps with more than few rows
        self._few = OnlineLinearFit()  # of the others
        self._turn = 0
        self._last = LEAST

    def prompt_tokens(self, growing: int, reading: int) -> int:
        """How many prompt tokens the next step may read beside so many rows that grow; so many prompts wait for it."""
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
        """How many prompt tokens a step reads in about so many seconds, beside so many rows that grow."""
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
        """A step with so many rows that grow and so many prompt tokens took so long."""
        alone_s = self._alone_s(growing) if growing else 0.0
        if not read:
            before = self._step_s.get(growing.bit_length(), seconds)
            share = 0.5 if seconds < before else 0.2  # what is slow once is mostly another's doing
            self._step_s[growing.bit_length()] = before + share * (min(seconds, 2 * before) - before)
        elif alone_s is not None:
            line = self._reading if growing + read > self._few_rows else self._few
            line.add(read, max(seconds - alone_s, 0.05 * seconds))

    def _alone_s(self, growing: int) -> float | None:
        """What a step with so many rows takes that reads nothing; as long as none did, with fewer rows."""
        known = [size for size in self._step_s if size <= growing.bit_length()]
        return self._step_s[max(known)] if known else None
