"""How much of waiting prompts a step may read, so that those who are being answered hardly notice.

Reading is worth as long as the tokens of the others take: their gaps double at most. The times are measured as the
engine goes, so a slow machine reads less at a time, and nothing is to be set.
Left out on purpose: whose prompt is read first (`engine`).
"""

ALONE = 512  # prompt tokens in a step when nobody waits for a token
LEAST = 8
MOST = 256  # beside others


class Pace:
    """Measured seconds of a step, and of a prompt token read in one."""

    def __init__(self) -> None:
        self._step_s: dict[int, float] = {}  # by rows that grow, in powers of two
        self._token_s: float | None = None
        self._last = LEAST

    def prompt_tokens(self, growing: int) -> int:
        """How many prompt tokens the next step may read beside so many rows that grow."""
        if not growing:
            return ALONE
        step_s = self._step_s.get(growing.bit_length())
        if step_s is None or self._token_s is None:
            return 2 * LEAST
        fair = int(step_s / self._token_s)
        self._last = max(LEAST, min(fair, MOST, 2 * self._last))
        return self._last

    def took(self, seconds: float, growing: int, read: int) -> None:
        """A step with so many rows that grow and so many prompt tokens took so long."""
        size = growing.bit_length()
        if not read:
            self._step_s[size] = _smoothed(self._step_s.get(size), seconds)
        elif not growing:
            if self._token_s is None:
                self._token_s = seconds / read
        elif size in self._step_s:
            extra = max(seconds - self._step_s[size], 0.05 * seconds)
            self._token_s = _smoothed(self._token_s, extra / read)


def _smoothed(before: float | None, now: float) -> float:
    """A mean that forgets, and is not moved far by one slow step."""
    return now if before is None else 0.8 * before + 0.2 * min(now, 2 * before)
