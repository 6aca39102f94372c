"""How rows, places and memory are shared between people, so that nobody waits for one who asks for much.

One person may take nearly all while no other is there: the last quarter is for those who hold little. While others
are there, or were a moment ago, one person's replies advance by few rows a step, whatever was begun before, so that
steps stay short. Who holds least comes first; of several, who has waited longest.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from assistant.engine.request import Busy, Who

BESIDE_OTHERS = 4  # rows of one person's in a step, while others are there
BESIDE_NEWCOMERS = 1  # the same in a step that reads what one with fewer rows has said: their first token comes next
BESIDE_OTHERS_S = 0.03  # of a step, that reading prompts may take while others are there: who comes next waits as long
KEYS_A_STEP = 2048  # of the texts so far, that a person's may read in a step beside others, on average
NEWCOMERS_FIRST = 4  # steps longer that a reply waits which would read more than that, while a newcomer is read
PUT_OFF = 32  # steps that a prompt waits for those of people who hold less, before it is read a little beside them
ABOUT_AS_LITTLE = 2  # times what the first has to read, that others may have who are read beside them
LATELY_S = 60.0  # so long after a reply its reader is still there: people read, think and write


def may_take(who: Who, held: int, more: int, taken: int, places: int) -> bool:
    """Whether a person who holds `held` of the `taken` places may have `more`."""
    taken += more
    is_little = held == 0 or held + more <= places // 8
    return taken <= places and (who is None or is_little or taken <= places - places // 4)


def require_places(who: Who, count: int, waiting: Iterable[Who], places: int) -> None:
    """Raises `Busy` unless `count` more requests of a person may wait beside these. One may have half of the places."""
    held = Counter(waiting)
    most = places // 2
    if who is not None and held[who] + count > most:
        raise Busy(f"busy: {held[who]} requests of yours wait already, and one person may have {most}; try again soon")
    if not may_take(who, held[who], count, held.total(), places):
        raise Busy(f"busy, position {held.total() + 1} in the queue: too many requests wait already; try again soon")


class Turns:
    """Whose replies may read how many keys: a long text costs a step more than the whole model does.

    Deficit round robin (Shreedhar and Varghese, 1996): who has too little for their next token saves it up.
    """

    def __init__(self) -> None:
        self._saved: dict[Who, int] = {}

    def begin(self, most: Mapping[Who, int]) -> None:
        """A step in which these people have texts that could go on, the longest of which reads so many keys."""
        self._saved = {
            who: min(self._saved.get(who, 0) + KEYS_A_STEP, keys + KEYS_A_STEP * NEWCOMERS_FIRST)
            for who, keys in most.items()
        }

    def take(self, who: Who, keys: int, beside_newcomer: bool) -> bool:
        """Whether a reply may read so many keys now; they are taken off."""
        waits = KEYS_A_STEP * NEWCOMERS_FIRST if beside_newcomer and keys > KEYS_A_STEP else 0
        if self._saved[who] < keys + waits:
            return False
        self._saved[who] -= keys
        return True


class Present:
    """Who is there, or was lately; for one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Who, float] = {}

    def see(self, people: Iterable[Who]) -> None:
        """These are there now. The machine's own work is nobody's."""
        now = self._clock()
        self._seen |= {who: now for who in people if who is not None}
        if len(self._seen) > 1:
            self._seen = {who: at for who, at in self._seen.items() if now - at < LATELY_S}

    def is_alone(self, who: Who) -> bool:
        """Whether nobody else is there."""
        return not any(each != who for each in self._seen)
