"""The threads that wait for tokens, shared between people: one who asks for much cannot take them all."""

from collections import Counter
from collections.abc import Callable
from typing import Annotated, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends

from assistant.chat.chat import share_of
from assistant.engine.request import Who
from assistant.engine.scheduling.fair_shares import require_places
from ui.accounts.auth import Person
from ui.accounts.dependencies import TheStore

T = TypeVar("T")


class Generating:
    """So many threads, and whose work they do; for the event loop."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._threads = CapacityLimiter(places)
        self._held: Counter[Who] = Counter()

    async def begin(self, who: Who, work: Callable[[], T]) -> T:
        """What `work` returns, done in a thread. Raises `Busy`, before it takes one, where this person has too many."""
        if who is not None:
            require_places(who, 1, self._held.elements(), self._places)
        return await self.go_on(who, work)

    async def go_on(self, who: Who, work: Callable[[], T]) -> T:
        """The same for work that belongs to a request that was begun."""
        self._held[who] += 1
        try:
            return await to_thread.run_sync(work, limiter=self._threads)
        finally:
            self._held[who] -= 1
            self._held += Counter()  # only those who hold any


def share(user: Person, store: TheStore) -> Who:
    """Whose share a request counts to."""
    return share_of(store, user)


Share = Annotated[Who, Depends(share)]
