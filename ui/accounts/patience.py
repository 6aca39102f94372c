"""A rate limit for clients that are refused again and again, so that their floods cost others little."""

import asyncio

from starlette.types import Message, Send

from ui.accounts.tries import Tries

WITHIN_S = 60.0  # refusals count for so long
REFUSALS = 300  # of one person, or of one address without a known person, after which
A_SECOND = 20  # of their requests are answered, whatever they ask
LONGEST_S = 5.0  # a request that would have to wait longer is refused at once
REMEMBERED = 1000  # clients; beyond that, those whose turn has passed are dropped


class Pace:
    """Limits each client to `A_SECOND` requests a second. To be used from the event loop only."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}  # when the next request of each may go on

    async def wait(self, who: str) -> bool:
        """Wait for this client's turn; False, and at once, if that would take too long."""
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
    """Counts the refusals of each client. To be used from the event loop only."""

    def __init__(self) -> None:
        self._refused = Tries(WITHIN_S)
        self._pace = Pace()

    async def lasts(self, who: str) -> bool:
        """Whether to go on with a client's request, now or after a wait; False if too many of theirs wait already."""
        return self._refused.count(who) < REFUSALS or await self._pace.wait(who)

    def counting(self, who: str, send: Send) -> Send:
        """A `send` that counts responses with a 4xx status."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and 400 <= message["status"] < 500:
                self._refused.add(who)
            await send(message)

        return sending
