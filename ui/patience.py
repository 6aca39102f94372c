"""Who is refused again and again is answered late, so that a flood of what is refused costs others little.

Left out on purpose: what is refused, and who somebody is (`auth.Gate` asks and counts here).
"""

import asyncio

from starlette.types import Message, Send

from ui.tries import Tries

WITHIN_S = 60.0  # refusals count for so long
REFUSALS = 120  # of one person, or of one address that nobody is known at, after which
LATE_S, MOST_LATE = 1.0, 200  # each answer comes so much later; so many at once wait for theirs


class Late:
    """Answers that wait before they are given; for the event loop."""

    def __init__(self) -> None:
        self._held = 0

    async def wait(self) -> bool:
        """Wait `LATE_S`; False, and at once, where `MOST_LATE` wait already."""
        if self._held >= MOST_LATE:
            return False
        self._held += 1
        try:
            await asyncio.sleep(LATE_S)
        finally:
            self._held -= 1
        return True


class Patience:
    """Counts who was refused how often; for the event loop."""

    def __init__(self) -> None:
        self._refused = Tries(WITHIN_S)
        self._late = Late()

    async def lasts(self, who: str) -> bool:
        """Whether to go on with a request of theirs, now or after a wait; False: too many of such wait already."""
        return self._refused.count(who) < REFUSALS or await self._late.wait()

    def counting(self, who: str, send: Send) -> Send:
        """`send`, counting an answer that refuses."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and 400 <= message["status"] < 500:
                self._refused.add(who)
            await send(message)

        return sending
