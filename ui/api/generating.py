"""The threads that wait for tokens, shared fairly: no one person can take them all."""

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
    """A fixed number of threads, and the person each works for. To be used from the event loop only."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._threads = CapacityLimiter(places)
        self._held: Counter[Who] = Counter()

    async def begin(self, who: Who, work: Callable[[], T]) -> T:
        """Run `work` in a thread, for its result. Raises `Busy`, before taking one, when this person has too many."""
        if who is not None:
            require_places(who, 1, self._held.elements(), self._places)
        return await self.go_on(who, work)

    async def go_on(self, who: Who, work: Callable[[], T]) -> T:
        """The same for further work of a request that has begun, without the check."""
        self._held[who] += 1
        try:
            return await to_thread.run_sync(work, limiter=self._threads)
        finally:
            self._held[who] -= 1
            self._held += Counter()  # drops those who hold none


def share(user: Person, store: TheStore) -> Who:
    """The share that a request counts towards."""
    return share_of(store, user)


Share = Annotated[Who, Depends(share)]
