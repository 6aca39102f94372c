"""Who is refused again and again is answered at a pace, so that a flood of what is refused costs others little."""

import asyncio

from starlette.types import Message, Send

from ui.accounts.tries import Tries

WITHIN_S = 60.0  # refusals count for so long
REFUSALS = 300  # of one person, or of one address that nobody is known at, after which
A_SECOND = 20  # requests of theirs are answered, whatever they ask
LONGEST_S = 5.0  # who would have to wait longer is refused at once
REMEMBERED = 1000  # of those who were answered at a pace


class Pace:
    """Spaces what each of some people ask: so many a second; for the event loop."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}  # when the next request of each may go on

    async def wait(self, who: str) -> bool:
        """Wait for their turn; False, and at once, where that would take too long."""
        now = asyncio.get_running_loop().time()
        due = max(self._due.get(who, 0.0), now)
        if due - now > LONGEST_S:
            return False
        self._due[who] = due + 1 / A_SECOND
        if len(self._due) > REMEMBERED:
            self._due = {each: at for each, at in self._due.items() if at > now}
        await asyncio.sleep(due - now)
        return True


class Patience:
    """Counts who was refused how often; for the event loop."""

    def __init__(self) -> None:
        self._refused = Tries(WITHIN_S)
        self._pace = Pace()

    async def lasts(self, who: str) -> bool:
        """Whether to go on with a request of theirs, now or after a wait; False: too many such wait already."""
        return self._refused.count(who) < REFUSALS or await self._pace.wait(who)

    def counting(self, who: str, send: Send) -> Send:
        """`send`, counting an answer that refuses."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and 400 <= message["status"] < 500:
                self._refused.add(who)
            await send(message)

        return sending
